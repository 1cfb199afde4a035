"""What nvcc makes of csrc/cuda, as PTX, and its host code, compiled with what a clone has: both kept in build/ptx."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from .parse import Kernel, kernels

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted(ROOT.glob("csrc/cuda/*.cu"))
_HOST = [*KERNELS, ROOT / "csrc/bindings.cpp", *ROOT.glob("tests/emulator/*.cpp"), Path(__file__).with_name("cpu.cpp")]


def nvcc() -> str | None:
    """Where it is: on the PATH, or that of the nvidia-cuda-nvcc wheel."""
    if found := shutil.which("nvcc"):
        return found
    wheels = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc")
    return next(map(str, wheels), None)


def missing() -> str:
    """What is missing to build, as a sentence; empty if nothing."""
    if not nvcc():
        return "nvcc is not found."
    if not shutil.which("c++filt") or not shutil.which(_compiler()[0]):
        return "A C++ compiler and c++filt are not found."
    return "" if importlib.util.find_spec("pybind11") else "pybind11 is not installed."


def _compiler() -> list[str]:
    return os.environ.get("CXX", "c++").split()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _folder(*inputs: str) -> Path:
    """A folder for what is made of these sources by this nvcc."""
    state = hashlib.sha256(subprocess.run([nvcc(), "--version"], capture_output=True, check=True).stdout)
    for path in sorted(path for pattern in inputs for path in ROOT.glob(pattern) if path.is_file()):
        state.update(path.read_bytes())
    folder = ROOT / "build" / "ptx" / state.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _made(target: Path, command: list[str]) -> Path:
    """The target, made by a command that ends with `-o`, if it is not there."""
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        _run([*command, "-o", str(partial)])
        partial.replace(target)
    return target


def _ptx(source: Path, architecture: str, folder: Path) -> str:
    command = [nvcc(), "-std=c++17", "-O3", "-ptx", f"-arch=compute_{architecture}", str(source)]
    return _made(folder / f"{source.stem}.{architecture}.ptx", command).read_text()


def _object(source: Path, folder: Path) -> Path:
    import pybind11

    flags = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"]
    names = ['-DHESSEXT_VERSION=""', '-DHESSEXT_BUILD=""']
    folders = [pybind11.get_include(), sysconfig.get_path("include"), ROOT / "tests/emulator", ROOT / "csrc"]
    command = [*_compiler(), *flags, *names, *(f"-I{path}" for path in folders), "-x", "c++", "-c", str(source)]
    return _made(folder / f"{source.name}.o", command)


def build(architectures: Sequence[str]) -> tuple[ModuleType, dict[str, dict[str, Kernel]]]:
    """The host code as a module, and all kernels for each architecture."""
    device, host = _folder("csrc/**/*"), _folder("csrc/**/*", "tests/emulator/*", "tests/ptx/cpu.cpp")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # what takes longest first
        objects = [pool.submit(_object, source, host) for source in sorted(_HOST, key=lambda p: p.suffix == ".cu")]
        texts = {a: [pool.submit(_ptx, source, a, device) for source in KERNELS] for a in architectures}
        linked = [str(job.result()) for job in objects]
        library = _made(host / "_emulated.so", [*_compiler(), "-shared", *linked, "-ldl"])
        ptx = {a: kernels("\n".join(job.result() for job in jobs)) for a, jobs in texts.items()}
    spec = importlib.util.spec_from_file_location("_emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ptx
