# Stubs of the compiled core (csrc/bindings.cpp). Integers named like tensors are their addresses, 0 for None.
from collections.abc import Callable
from typing import overload

__version__: str
build: str
cuda: bool

class Features:
    def __init__(self, data: int, ld: int, cols: int, ones: bool) -> None: ...

class Curvature:
    def __init__(
        self,
        samples: int,
        units: int,
        classes: int,
        gauss_newton: bool,
        scale: int,
        probs: int,
        top: int,
        rest: int,
        weight: int,
        gram: int,
        shift: int,
        slope: int,
        bend: int,
        residual: int,
    ) -> None: ...

class Where:
    """Threads of the CPU; or a CUDA stream, and what gives a call its workspace: bytes -> address."""

    @overload
    def __init__(self, threads: int) -> None: ...
    @overload
    def __init__(self, device: int, stream: int, allocate: Callable[[int], int]) -> None: ...

def dense(
    float64: bool,
    part: int,
    left: Features,
    right: Features,
    symmetric: bool,
    curvature: Curvature,
    out: int,
    ld: int,
    axes: list[int],
    direct: bool,
    mirror: bool,
    where: Where,
) -> None: ...
def pairs(
    float64: bool,
    part: int,
    left: Features,
    right: Features,
    symmetric: bool,
    curvature: Curvature,
    pairs: int,
    pair_count: int,
    blocks: int,
    transposed: bool,
    norms: int,
    where: Where,
) -> None: ...
def softmax(float64: bool, logits: int, samples: int, classes: int, top: int, rest: int, where: Where) -> None: ...
def label_residual(
    float64: bool,
    probs: int,
    scale: int,
    label: int,
    top: int,
    rest: int,
    samples: int,
    classes: int,
    out: int,
    where: Where,
) -> None: ...
def softmax_product(
    float64: bool, probs: int, scale: int, top: int, v: int, samples: int, classes: int, out: int, where: Where
) -> None: ...
def softmax_shift(
    float64: bool,
    probs: int,
    top: int,
    weight: int,
    samples: int,
    classes: int,
    units: int,
    shift: int,
    where: Where,
) -> None: ...
def curvature_entries(
    float64: bool, part: int, curvature: Curvature, pairs: int, pair_count: int, out: int, where: Where
) -> None: ...
def logits(
    weight: Features, bias: int, features: Features, classes: int, samples: int, out: int, where: Where
) -> None: ...
def softmax_scan(
    float64: bool,
    logits: int,
    classes: int,
    samples: int,
    first: int,
    largest: int,
    top: int,
    others: int,
    where: Where,
) -> None: ...
def softmax_others(
    float64: bool,
    logits: int,
    classes: int,
    samples: int,
    first: int,
    largest: int,
    top: int,
    others: int,
    lift: int,
    where: Where,
) -> None: ...
def gram_sums(
    float64: bool,
    depth: int,
    rows: int,
    cols: int,
    left: int,
    left_ld: int,
    right: int,
    right_ld: int,
    weight: int,
    triangle: bool,
    products: int,
    left_unit: int,
    right_unit: int,
    sums: int,
    where: Where,
) -> None: ...
def gram_tops(
    float64: bool,
    rows: int,
    cols: int,
    weight: int,
    triangle: bool,
    products: int,
    left_unit: int,
    right_unit: int,
    left: list[int],
    right: list[int],
    sums: int,
    where: Where,
) -> None: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def set_tensor_cores(allowed: bool) -> None: ...
def tensor_cores(where: Where) -> bool: ...
def set_limits(span: int, workspace: int, blocks: int) -> None: ...
