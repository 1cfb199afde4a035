"""Test an installed hessext in a fresh environment, outside of the source tree."""

import subprocess
import sys
from pathlib import Path

import hessext  # first: it must find an OpenMP runtime by itself

installed = Path(hessext.__file__).resolve()
assert "site-packages" in installed.parts, f"expected an installed hessext; got {installed}"

import torch  # noqa: E402

runtimes = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
torchs = str(Path(torch.__file__).with_name("lib") / "libgomp.so.1")
if Path(torchs).exists():  # older torch has its own under another name, and the system's is used
    assert runtimes == {torchs}, f"expected one OpenMP runtime, torch's; got {runtimes}"

for dtype in (torch.float32, torch.float64):
    x, y = torch.randn(300, 20, dtype=dtype), torch.randint(6, (300,))
    H = hessext.one_hidden(torch.randn(5, 20, dtype=dtype) / 20**0.5, torch.randn(6, 5, dtype=dtype) / 5**0.5, x, y)
    report = hessext.autograd.check(H)
    assert report, str(report)
    v = torch.randn(H.shape[0], dtype=dtype)
    assert torch.allclose(H @ v, H.dense() @ v, rtol=1e-3, atol=1e-4)
    assert 0 < H["output"].ratio().ratio < 1

for command in ("info", "check"):
    subprocess.run([sys.executable, "-I", "-m", "hessext", command], check=True)
print(f"hessext {hessext.__version__} works in {sys.prefix}; OpenMP from {', '.join(runtimes)}")
