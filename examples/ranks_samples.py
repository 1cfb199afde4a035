"""A network's Hessian over samples that are split over ranks: what each rank has, and what all of them get.

    torchrun --nproc-per-node 2 examples/ranks_samples.py

Every rank reads its own samples, of any number; results are those of all samples, the same on all ranks. Without
torchrun it runs alone. torchrun sets OMP_NUM_THREADS=1: give it --threads for more in each rank.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist

import hessext


def main() -> None:
    """Print what rank 0 has found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=500, help="samples of the first rank; each next one has half")
    parser.add_argument("--threads", type=int, default=None, help="threads of each rank (OMP_NUM_THREADS)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rank = 0
    if "RANK" in os.environ:  # started by torchrun
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")
        rank = dist.get_rank()
    group = dist.group.WORLD if dist.is_initialized() else None
    device = "cuda" if group is not None and dist.get_backend() == "nccl" else "cpu"

    torch.manual_seed(0)  # the same weights on all ranks
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.GELU(), torch.nn.Linear(16, 10)).to(device)
    own = torch.Generator().manual_seed(1 + rank)  # samples of its own
    count = args.samples >> rank
    x, y = torch.randn(count, 32, generator=own), torch.randint(10, (count,), generator=own)

    H = hessext.hessian(model, x.to(device), y.to(device), group=group)
    found = {name: H[name].ratio() for name in ("0.weight", "2.weight")}
    table, trace = H["0.weight"].approximations(), H.trace()
    if rank == 0:
        print(f"trace {trace:.6f}")
        for name, ratio in found.items():
            print(f"{name}: {ratio.off_diagonal / ratio.diagonal:.3e} off the diagonal")
        print(table)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
