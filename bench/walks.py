"""Walks over the sizes at which the way of computing switches: which sizes, what is computed, and what decides.

A walk varies one of N, d, C, m. Two neighbouring sizes between which the decision changes are a pair. A walk without a
decision takes sizes in steps of 5%. `crossed` and PIECES together name every constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch

from .cases import CASES, Case, Sizes, make
from .methods import asked

ROOT = Path(__file__).parent.parent
FINER = 1.05


@dataclass(frozen=True)
class Walk:
    """What is computed, and at which sizes."""

    about: str  # names of constants as in CONSTANTS, and of functions that decide
    sizes: Sizes
    varied: str
    ends: tuple[int, int]
    ask: Callable[[object], object]
    part: str = "output"
    loss: str = "cross_entropy"
    decides: Callable[[Sizes], Hashable] | None = None

    def at(self, size: int) -> Sizes:
        """All sizes, the varied one being `size`."""
        return self.sizes._replace(**{self.varied: size})

    def case(self, size: int) -> Case:
        """The case of a size."""
        return replace(CASES["linear"], sizes=self.at(size), part=self.part, loss=self.loss)

    def part_of(self, sizes: Sizes):
        """The part on which a decision depends, at these sizes."""
        return asked(make(replace(self.case(1), sizes=sizes)))._part

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs of neighbouring sizes."""
        low, high = self.ends
        if self.decides is None:
            while low < high:
                yield low, (above := max(low + 1, round(low * FINER)))
                low = above
            return
        while self.decides(self.at(low)) != self.decides(self.at(high)):
            state, below, above = self.decides(self.at(low)), low, high
            while above - below > 1:
                middle = (below + above) // 2
                below, above = (middle, above) if self.decides(self.at(middle)) == state else (below, middle)
            yield below, above
            low = above


def constant(name: str) -> int:
    """The value of package/module._NAME, or of file.h:name of the core."""
    file, _, local = name.partition(":")
    if local:
        value = re.search(rf"\b{local} <?= ((?:i64\(\d+\)|\d+)[^;&]*)", (ROOT / "csrc/cpu" / file).read_text())
        known = {"chunk": 192, "span": 48 * 192}
        return int(eval(value[1].replace("i64", "int"), known))  # of the project's own source
    module, _, local = name.rpartition(".")
    return getattr(import_module("hessext." + module.replace("/", ".")), local)


def _ceil(a: float, b: float) -> int:
    return int(-(-a // b))


def _walks() -> Iterator[tuple[str, Walk]]:
    from hessext.matrix import cost
    from hessext.matrix.gram import SamplePairs

    c, cpu = constant, torch.device("cpu")

    def norms(B):
        return B.norms()

    def ratio(B):
        return B.ratio()

    def dense(B):
        return B.dense()

    def chosen(form: Callable, walk: Walk) -> Walk:
        return replace(walk, decides=lambda sizes: form(walk.part_of(sizes)))

    # ------------------------------------------------------------------------------------------------- norms, ratios
    tile = "matrix/softmax_gram._CLASSES"
    yield "class-tiles", Walk(tile, Sizes(16, 64, 0), "C", (2000, 2100), norms, decides=lambda s: _ceil(s.C, c(tile)))
    work = "matrix/softmax_gram._WORK"
    yield (
        "class-work",
        Walk(
            work,
            Sizes(0, 64, 512),
            "N",
            (100, 150),
            norms,
            decides=lambda s: len(SamplePairs(s.N, 4 * s.C, cpu, c(work)).blocks),
        ),
    )
    class_tile, product = "matrix/other_classes._TILE", "matrix/other_classes._SAMPLES"
    yield (
        "ratio-tiles",
        Walk(
            class_tile,
            Sizes(256, 32, 0),
            "C",
            (32000, 34000),
            ratio,
            decides=lambda s: _ceil(s.C, c(class_tile) // (4 * s.N)),
        ),
    )
    yield (
        "ratio-products",
        Walk(product, Sizes(0, 64, 4000), "N", (500, 530), ratio, decides=lambda s: _ceil(s.N, c(product))),
    )
    squares = "matrix/gram._SQUARES"
    yield (
        "ratio-samples",
        Walk(
            squares, Sizes(0, 16, 64), "N", (3000, 3300), ratio, decides=lambda s: len(SamplePairs(s.N, 20, cpu).blocks)
        ),
    )
    form, of_all, of_ratio = "cost.form_of_squares", "cost.form_of_all", "cost.form_of_ratio"
    for name, about, which, sizes, letter, ends, part, ask in (
        ("norms-form-d", of_all, cost.form_of_all, Sizes(128, 0, 128), "d", (2, 128), "output", norms),
        ("norms-form-N", of_all, cost.form_of_all, Sizes(0, 16, 128), "N", (4, 1024), "output", norms),
        ("norms-form-C", of_all, cost.form_of_all, Sizes(1000, 8, 0), "C", (2, 256), "output", norms),
        ("hidden-form-N", of_all, cost.form_of_all, Sizes(0, 32, 10, 48), "N", (16, 1024), "hidden", norms),
        ("hidden-form-d", of_all, cost.form_of_all, Sizes(200, 0, 10, 48), "d", (2, 128), "hidden", norms),
        ("cross-form-N", form, cost.form_of_all, Sizes(0, 64, 64, 8), "N", (8, 1024), "cross", norms),
        ("ratio-form-d", of_ratio, cost.form_of_ratio, Sizes(400, 0, 64), "d", (1, 128), "output", ratio),
        ("ratio-form-N", of_ratio, cost.form_of_ratio, Sizes(0, 8, 64), "N", (8, 2048), "output", ratio),
        ("ratio-hidden-N", of_ratio, cost.form_of_ratio, Sizes(0, 32, 10, 48), "N", (16, 2048), "hidden", ratio),
    ):
        yield name, chosen(which, Walk(about, sizes, letter, ends, ask, part))
    strip = "matrix/gram._STRIP"
    yield (
        "strip",
        Walk(strip, Sizes(0, 200, 4, 16), "N", (200, 300), norms, "hidden", decides=lambda s: _ceil(s.N, c(strip))),
    )
    pairs, entries = "matrix/norms._PAIRS", "matrix/gram._ENTRIES"
    yield "pairs", Walk(
        f"{pairs} {entries}", Sizes(64, 64, 4, 0), "m", (340, 380), norms, "hidden",
        decides=lambda s: (_ceil(s.m, max(1, c(pairs) // s.m)), _ceil(s.m * s.m / 2, c(entries) // (32 * s.N))),
    )  # fmt: skip

    # ------------------------------------------------------------------------------- dense, diagonals, blocks, products
    for name, sizes, letter, ends in (
        ("dense-d", Sizes(300, 0, 24), "d", (2, 100)),
        ("dense-C", Sizes(300, 8, 0), "C", (2, 200)),
        ("dense-N", Sizes(0, 24, 24), "N", (4, 1000)),
    ):
        yield name, Walk("csrc make_plan", sizes, letter, ends, dense)
    for name, sizes, letter, ends in (
        ("dense-net-N", Sizes(0, 24, 24, 4), "N", (8, 800)),
        ("dense-net-C", Sizes(200, 24, 0, 4), "C", (2, 128)),
        ("dense-net-m", Sizes(200, 24, 8, 0), "m", (1, 24)),
    ):
        yield name, Walk("csrc make_plan", sizes, letter, ends, dense, "all")
    features, sliced = "plan.h:most_feature_pairs", "plan.h:most_sliced_pairs"
    span, held = "isa/kernels.h:span", "plan.h:slice"
    yield (
        "feature-pairs",
        Walk(features, Sizes(32, 0, 3), "d", (700, 740), dense, decides=lambda s: s.d * (s.d + 1) / 2 <= c(features)),
    )
    yield (
        "sliced-pairs",
        Walk(sliced, Sizes(50000, 0, 4), "d", (88, 93), dense, decides=lambda s: s.d * (s.d + 1) / 2 <= c(sliced)),
    )
    yield "slice", Walk(held, Sizes(0, 20, 8), "N", (46000, 46200), dense, decides=lambda s: c(held) < s.N)
    yield "span", Walk(span, Sizes(0, 8, 32), "N", (9000, 9400), dense, decides=lambda s: c(span) < s.N)
    rows = "matrix/assemble._SAMPLES"
    yield (
        "diagonal-samples",
        Walk(rows, Sizes(0, 32, 64), "N", (8000, 8400), lambda B: B.diagonal(), decides=lambda s: _ceil(s.N, c(rows))),
    )
    some = "matrix/assemble._ENTRIES"
    yield (
        "diagonal-entries",
        Walk(
            some,
            Sizes(8192, 32, 0),
            "C",
            (480, 540),
            lambda B: B.diagonal(),
            decides=lambda s: _ceil(s.C, c(some) // s.N),
        ),
    )
    thin = "matrix/product._THIN"
    yield "product-thin", Walk(
        thin, Sizes(2000, 64, 500, 0), "m", (50, 80), lambda H: H @ torch.ones(H.shape[1]), "all",
        decides=lambda s: s.m <= c(thin),
    )  # fmt: skip
    yield "product-samples", Walk(
        "matrix/product._CHUNK_BYTES", Sizes(0, 64, 1000), "N", (1000, 1100), lambda B: B @ torch.ones(B.shape[1]),
        decides=lambda s: _ceil(s.N, c("matrix/product._CHUNK_BYTES")[0] // (4 * s.C)),
    )  # fmt: skip
    copied = "_parameters._COPIED"
    yield (
        "copied",
        Walk(
            copied,
            Sizes(16, 1024, 0),
            "C",
            (16000, 16800),
            lambda B: B.diagonal(),
            decides=lambda s: 4 * s.C * s.d <= c(copied),
        ),
    )

    # ------------------------------------------------------------------------------------- approximations and spectra
    every = "matrix/kronecker._ALL"
    yield (
        "kronecker-samples",
        Walk(
            every,
            Sizes(0, 16, 8),
            "N",
            (180, 205),
            lambda B: B.nearest_kronecker(),
            decides=lambda s: c(every) >= s.N,
        ),
    )
    formed = "matrix/spectrum._DENSE"
    yield "spectrum-parameters", Walk(
        formed, Sizes(200, 0, 8), "d", (60, 68), lambda B: B.preconditioned_spectrum("diagonal"),
        decides=lambda s: s.C * s.d <= c(formed),
    )  # fmt: skip
    together = "matrix/inner._TOGETHER"
    yield (
        "inner-samples",
        Walk(
            together,
            Sizes(0, 8, 10),
            "N",
            (8100, 8300),
            lambda B: B.inner(B),
            decides=lambda s: _ceil(s.N, c(together)),
        ),
    )


def walks() -> dict[str, Walk]:
    """All walks by name."""
    return dict(_walks())


# Constants without a walk: they only cut work into more pieces of equal size, or calls rarely reach them.
PIECES = {
    "memory of what is in hand": """_memory._ALWAYS_FREE _memory._BESIDE _memory._HUGE matrix/assemble._PIECE
        matrix/assemble._COPIED matrix/block_diagonal._PIECE matrix/curvature._ENTRIES matrix/feature_gram._TILE
        matrix/feature_products._TILE matrix/curvature_tiles.ENTRIES matrix/far_residual._PIECE
        matrix/dense_norms._PIECE matrix/dense_norms._ROWS matrix/norms._PIECE matrix/norms._WORK
        model/network._LIFTED matrix/given_curvature._SLAB matrix/sample_pairs._BYTES matrix/sample_pairs._MATRICES
        matrix/product._ADDED data/samples._WIDE data/outputs._WORK data/outputs._BLOCKS data/curvature._WORK
        data/curvature._TOGETHER data/places._SLAB data/batches._PIECE data/tail_curvature._WORK""",
    "who multiplies, of which scripts/calibrate measures both": "_products._THIN",
    "results that differ": "matrix/sample_curvature._TENSOR data/batches.SMALL",
    "kept so as not to be formed again, where memory allows": """_api.KEPT _layer.KEPT matrix/given_curvature._KEPT
        data/curvature._FACTOR matrix/approximations._WHOLE""",
    "what is shown": """_progress._DELAY data/batches._READING matrix/notebook._ROWS matrix/notebook._WORK
        matrix/notebook._BLOCKS matrix/notebook._PIXELS matrix/notebook._WIDTH matrix/notebook._DECADES""",
    "numbers, not sizes": """matrix/cost._ENTRY matrix/cost._TOPS data/symmetric._PANELS
        data/group._HEADER data/group._PATIENCE data/headers.TEXT data/ranks._TOLD
        matrix/norms._LEAST matrix/norms._MOST data/samples.LEAST data/samples.MOST
        matrix/part._SQUARES matrix/gram._SQUARES_ON_GPU matrix/softmax_gram._WORK_ON_GPU
        matrix/other_classes._TILE_ON_GPU
        matrix/softmax_gram._ROUNDED matrix/softmax_gram._ALLOWED matrix/preconditioner.NOISE matrix/sample_pairs._LEAST
        matrix/kronecker.FLOOR matrix/kronecker._FORMED matrix/kronecker._BLOCK
        data/tails._PROPOSED data/tail._ROUNDINGS data/tail_curvature._FEW model/linear._NAMED model/targets._ROUNDED
        matrix/spectrum._FEWEST matrix/spectrum._VECTORS matrix/spectrum._BYTES""",
}


def crossed() -> set[str]:
    """Names of constants that a walk crosses."""
    return {name for walk in walks().values() for name in walk.about.split() if "." in name and "form" not in name}


def named() -> set[str]:
    """Names of the package's numeric constants with which sizes may be compared."""
    found = set()
    for folder in (".", "matrix", "data", "model"):
        for file in sorted((ROOT / "hessext" / folder).glob("*.py")):
            for line in re.findall(r"^(_?[A-Z][A-Z0-9_]*(?:, _?[A-Z][A-Z0-9_]*)*) = [\d(-]", file.read_text(), re.M):
                module = file.relative_to(ROOT / "hessext").with_suffix("").as_posix()
                found |= {f"{module}.{name}" for name in line.split(", ")}
    return {name for name in found if isinstance(constant(name), int | float) or isinstance(constant(name)[0], int)}
