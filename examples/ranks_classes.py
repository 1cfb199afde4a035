"""How block-diagonal is the head of a language model whose vocabulary is split over ranks, as tensor parallelism does?

    torchrun --nproc-per-node 2 examples/ranks_classes.py

A head of SmolLM2's sizes, 49,152 classes of 576 features, random, made vocabulary-parallel by torch's own
ColwiseParallel: its weight is then a DTensor with Shard(0), of which each rank has some rows. All ranks have the same
states. torchrun sets OMP_NUM_THREADS=1: give it --threads for more in each rank.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import hessext


class Model(nn.Module):
    """States (N, d) to logits, through a norm and a head without bias."""

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.norm, self.lm_head = nn.RMSNorm(features), nn.Linear(features, classes, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """The logits."""
        return self.lm_head(self.norm(states))


def main() -> None:
    """Print what rank 0 has found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=49_152, help="vocabulary (49152)")
    parser.add_argument("--features", type=int, default=576, help="width of the model, d (576)")
    parser.add_argument("--samples", type=int, default=512, help="tokens of text, N (512)")
    parser.add_argument("--threads", type=int, default=None, help="threads of each rank (OMP_NUM_THREADS)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("classes",))

    torch.manual_seed(0)
    model = Model(args.classes, args.features).to(device)
    model = parallelize_module(model, mesh, {"lm_head": ColwiseParallel()})
    states = torch.randn(args.samples, args.features, generator=torch.Generator().manual_seed(1)).to(device)
    y = torch.randint(args.classes, (args.samples,), generator=torch.Generator().manual_seed(2)).to(device)

    B = hessext.head(model, "lm_head", states, y)["lm_head"]
    ratio, trace, block = B.ratio(), B.trace(), B.block(0, args.classes - 1)
    if dist.get_rank() == 0:
        print(f"rows here: {len(model.lm_head.weight.to_local())} of {args.classes}")
        print(f"trace {trace:.6f}, block (0, {args.classes - 1}) of norm {block.norm():.3e}")
        print(f"off/diagonal {ratio.ratio:.3e}, times C: {args.classes * ratio.ratio:.3e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
