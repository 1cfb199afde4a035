"""The machine of a run: its description, and the peak rates that form its roofline."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from .measure import clock_of, cpu_clock

BUSY = 0.25  # load per core from which timings count as disturbed


@dataclass(frozen=True)
class Peaks:
    """The best rates of a few probes, for one dtype, device and thread count."""

    flops: float  # per second: of multiply-adds in registers on a CPU, of matrix products on a GPU
    matmul: float  # flops per second of torch's matrix product
    bytes: float  # per second, read and written by a copy

    def floor(self, flops: float, size: float) -> float:
        """Least seconds for so many flops and bytes: the roofline."""
        return max(flops / self.flops, size / self.bytes)


def describe(device: str, threads: int) -> dict[str, object]:
    """Describe processor, libraries and load, without the machine's name."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = {}
    if torch.device(device).type == "cuda":
        gpu = {"gpu": torch.cuda.get_device_properties(device).name, "cuda": torch.version.cuda}
    peers = {"jax": "jax", "curvlinops": "curvlinops-for-pytorch", "sklearn": "scikit-learn"}
    import hessext

    return gpu | {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": hessext._core.isa(),
        "hessext": hessext.__version__,
        "torch": torch.__version__,
        **{name: metadata.version(package) for name, package in peers.items() if find_spec(name)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }


def busy() -> bool:
    """Whether other work runs on this machine."""
    return os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)


def peaks(dtype: torch.dtype, device: str, quick: bool = False) -> Peaks:
    """Measure the peaks at the current number of threads.

    On a GPU a float32 product may also be formed from three TF32 products, as hessext does. A third of the TF32 rate is
    then the peak, if it is higher.
    """
    matmul = _matmul(dtype, device, quick)
    if torch.device(device).type == "cpu":
        return Peaks(max(matmul, _multiply_add(dtype)), matmul, _copy(device))
    flops = matmul
    if dtype == torch.float32:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            flops = max(matmul, _matmul(dtype, device, quick) / 3)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return Peaks(flops, matmul, _copy(device))


def _matmul(dtype: torch.dtype, device: str, quick: bool, tries: int = 4) -> float:
    """Best flop/s of torch.mm on square and on long operands."""
    clock, n = clock_of(device), 1024 if quick else 2048
    n *= 4 if torch.device(device).type == "cuda" else 1
    best = 0.0
    for rows, inner, columns in ((n, n, n), (2 * n, n // 2, 2 * n), (n // 4, 2 * n, 2 * n)):
        options = {"dtype": dtype, "device": device}
        left, right = torch.rand(rows, inner, **options), torch.rand(inner, columns, **options)
        out = torch.empty(rows, columns, **options)
        for _ in range(tries):
            seconds = clock(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), 1)
            best = max(best, 2 * rows * inner * columns / seconds)
    return best


def _copy(device: str, size: int = 1 << 28, tries: int = 6) -> float:
    """Best bytes/s, read plus written, of a copy into allocated memory."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    out, clock = torch.ones_like(source), clock_of(device)
    return max(2 * size / clock(lambda: out.copy_(source), 1) for _ in range(tries))


def _multiply_add(dtype: torch.dtype, tries: int = 6, rounds: int = 5_000_000) -> float:
    """Best flop/s of multiply-adds in registers; 0 without a C compiler."""
    real, c_real = {torch.float32: ("float", ctypes.c_float), torch.float64: ("double", ctypes.c_double)}[dtype]
    source = Path(__file__).with_name("multiply_add.c")
    compiler = [*os.environ.get("CC", "cc").split(), "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/multiply_add.so"
        try:
            subprocess.run([*compiler, f"-DREAL={real}", source, "-o", library], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return 0.0
        function = ctypes.CDLL(library).multiply_add
    function.restype, function.argtypes = ctypes.c_double, (ctypes.c_int64, ctypes.c_int, ctypes.POINTER(c_real))
    threads, sink, flops = torch.get_num_threads(), c_real(), 0.0

    def run() -> None:
        nonlocal flops
        flops = function(rounds, threads, ctypes.byref(sink))

    seconds = min(cpu_clock(run) for _ in range(tries))
    return flops / seconds
