"""How block-diagonal is the Hessian of a language model's output layer, over its whole vocabulary?

Makes hidden states (N, d) and a head (C, d), random as at initialization and peaked as after training, and prints the
exact mean squared norms of the C diagonal and C (C - 1) off-diagonal blocks, their ratio, the time and the memory.
With a model of your own: `hessext.head(model, "lm_head", batches, forward=...)["lm_head"].ratio()`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch
from torch import Tensor

import hessext


def make(classes: int, features: int, samples: int, confidence: float | None) -> tuple[Tensor, Tensor]:
    """A head with rows of norm about 1 and states (N, d); with confidence, each state leans to a token of its own.

    Tokens are drawn by Zipf's law, as in text, and p_top is the larger the more a state has of its token's row.
    """
    g = torch.Generator().manual_seed(0)
    head = torch.randn(classes, features, generator=g).div_(features**0.5)
    states = torch.randn(samples, features, generator=g)
    if confidence is not None:
        zipf = 1 / torch.arange(1, classes + 1, dtype=torch.float64)
        token = torch.multinomial(zipf, samples, replacement=True, generator=g)
        spread = torch.rand(samples, 1, generator=g) + 0.5  # some tokens are easier than others
        states += confidence * spread * head[token]
    return head, states


def main() -> None:
    """Print one line per vocabulary and kind of model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[32_000, 128_256], help="vocabularies (32000 128256)")
    parser.add_argument("--samples", type=int, default=2048, help="tokens of text, N (2048)")
    parser.add_argument("--features", type=int, default=1024, help="width of the model, d (1024)")
    parser.add_argument("--threads", type=int, default=None, help="threads (torch's own choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"N = {args.samples}, d = {args.features}, float32, {torch.get_num_threads()} threads")
    print(
        f"{'C':>7}  {'head':8}  {'mean 1-p':>8}  {'mean ||H_ii||^2':>15}  {'mean ||H_ij||^2':>15}  {'ratio':>9}", end=""
    )
    print(f"  {'C x ratio':>9}  {'seconds':>7}  {'GiB, peak':>9}", flush=True)
    for classes in args.classes:
        for name, confidence in (("random", None), ("peaked", 16.0)):
            head, states = make(classes, args.features, args.samples, confidence)
            start = time.perf_counter()
            ratio = hessext.linear(head, states)["output"].ratio()
            seconds = time.perf_counter() - start
            some = torch.softmax(states[:256] @ head.T, 1).amax(1)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "linux" else 30))
            print(
                f"{classes:7d}  {name:8}  {1 - some.mean():8.2g}  {ratio.diagonal:15.4e}  {ratio.off_diagonal:15.4e}",
                end="",
            )
            print(f"  {ratio.ratio:9.2e}  {classes * ratio.ratio:9.2e}  {seconds:7.2f}  {peak:9.2f}", flush=True)


if __name__ == "__main__":
    main()
