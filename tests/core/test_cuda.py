"""The CUDA kernels against the same truth as the CPU's: on a GPU, and always emulated, threads in several orders."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.cases import DTYPES, OVERFLOWING, PEAKED, Case, make_inputs
from helpers.gram_reference import assert_rounded, assert_tiles, close, mostly_small, softmax_sums, sums
from helpers.reference import (
    TERMS,
    assert_accurate,
    assert_silent,
    assert_softmax,
    assert_softmax_product,
    dense,
    matrix,
    plain,
    truth,
)

from hessext import _ops
from hessext.matrix import gram, other_classes, softmax_gram

ROOT = Path(__file__).parents[2]
_emulated = pytest.importorskip("hessext._emulated", reason="built by scripts/env")

# Every part, one and several tiles, warps and lists that are not full, biases, and what fills the tile.
CASES = [
    Case(1, 1, 2),
    Case(16, 3, 17, bias="o"),
    Case(33, 65, 3),
    Case(17, 2, 5, loss="mse", bias="o"),
    Case(15, 7, 4, loss="ce weight smooth"),
    Case(1, 16, 3, 2, bias="ho"),
    Case(31, 33, 5, 3, bias="h"),
    Case(33, 4, 33, 2, bias="o"),
    Case(16, 97, 3, 1, activation="gelu", bias="ho"),
    Case(17, 3, 2, 9, activation="tanh", loss="mse", bias="o"),
    Case(15, 2, 1, 3, loss="bce weight", bias="h"),
    Case(20, 4, 3, 2, loss="ce sum ignore"),
    Case(17, 50, 50, 1),  # tiles of 64, and of 128
    Case(18, 128, 100, 1),
    Case(20, 250, 2, 1),
]

SUMS = [Case(33, 5, 17), Case(66, 3, 70, bias="o"), Case(65, 2, 16, scale=20), Case(16, 3, 97, bias="o"), Case(1, 2, 3)]


def on(device, case, dtype):
    return make_inputs(case, dtype).to(dtype, device).hessian()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_blocks(case, dtype, cuda):
    inputs, expected, bar = make_inputs(case, dtype), truth(case, dtype), plain(case, dtype)
    H = on(cuda, case, dtype)
    exact = dense(expected, inputs.lift())
    assert_accurate(H.dense().cpu(), exact, dense(bar, inputs))
    v = torch.linspace(-1, 1, H.shape[1], dtype=dtype)
    assert_accurate((H @ v.to(cuda)).cpu(), exact @ v.double())
    for row in H.layers:
        for col in H.layers:
            B, blocks = H[row, col], expected[row, col]
            assert_accurate(B.dense().cpu(), matrix(blocks), matrix(bar[row, col]))
            if blocks.shape[0] * blocks.shape[1] < 2000:
                assert_accurate(B.norms().cpu(), blocks.flatten(2).norm(dim=2))
            last = B.grid[0] - 1, B.grid[1] - 1
            assert_accurate(B.blocks([(0, 0), last]).cpu(), blocks[[0, -1], [0, -1]])
            if row == col:
                assert_accurate(B.diagonal().cpu(), matrix(blocks).diagonal())
                squares = blocks.flatten(2).square().sum(2)
                assert_accurate(torch.tensor(B.ratio().diagonal, dtype=dtype), squares.diagonal().mean())


@pytest.mark.parametrize("term", TERMS[1:])
@pytest.mark.parametrize("case", CASES[7:10], ids=lambda c: c.name)
def test_terms(case, term, cuda):
    H = getattr(on(cuda, case, torch.float64), term)()
    assert_accurate(H.dense().cpu(), dense(truth(case, torch.float64, term), make_inputs(case, torch.float64)))


@pytest.mark.parametrize("case", PEAKED[:3], ids=lambda c: c.name)
def test_peaked_softmax(case, cuda):
    inputs = make_inputs(case, torch.float64)
    assert_accurate(on(cuda, case, torch.float64).dense().cpu(), dense(truth(case, torch.float64), inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SUMS, ids=lambda c: c.name)
def test_sums_over_classes(case, dtype, cuda, memory):
    squares = truth(case, dtype)["output", "output"].flatten(2).square().sum(2)
    got = softmax_sums(on(cuda, case, dtype)["output"]._part)
    for value, wanted in zip(got, sums(squares), strict=True):
        close(value, wanted, {torch.float32: 1e-6, torch.float64: 1e-12}[dtype] * max(1, 4 * case.scale))


def test_small_probabilities_are_rounded(cuda):
    assert_rounded(cuda)


def test_all_is_done_again_where_rounding_could_be_seen(emulated, monkeypatch):
    part, working, asked = mostly_small(), softmax_gram.sums_of_classes, []

    def spy(*arguments, rounding):
        asked.append(rounding)
        return working(*arguments, rounding=rounding)

    monkeypatch.setattr(softmax_gram, "sums_of_classes", spy)
    rounded = softmax_sums(part)
    assert asked == [True]
    monkeypatch.setattr(softmax_gram, "_ALLOWED", 0)
    found = softmax_sums(part)
    assert asked == [True, True, False]
    monkeypatch.setattr(softmax_gram, "sums_of_classes", lambda *arguments, rounding: working(*arguments))
    assert found == softmax_sums(part) != rounded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_where_probabilities_are_kept_and_formed_again(dtype, cuda, monkeypatch):
    """In tiles of classes, and in blocks of samples that begin within what is one product."""
    part, found = on(cuda, Case(150, 20, 140), dtype)["output"]._part, []
    monkeypatch.setattr(other_classes, "_SAMPLES", 64)
    for limit in ("_TILE", "_TILE_ON_GPU"):
        monkeypatch.setattr(other_classes, limit, 70 * 150 * dtype.itemsize)
    for limit in ("_SQUARES", "_SQUARES_ON_GPU"):
        monkeypatch.setattr(gram, limit, 80 * 80 * 20)
    for kept in (True, False):
        monkeypatch.setattr(other_classes, "spare", lambda *_, kept=kept: kept)
        found.append(softmax_sums(part))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_of_pairs(dtype, cuda, monkeypatch):
    """In the Gram form, which asks the core for entries of Q_n and for sums without a softmax."""
    case = Case(9, 40, 5, 6, bias="ho")
    monkeypatch.setattr("hessext.matrix.cost._sample_pairs", lambda *_: 0.0)
    H, expected = on(cuda, case, dtype), truth(case, dtype)
    for row in H.layers:
        for col in H.layers:
            assert_accurate(H[row, col].norms().cpu(), expected[row, col].flatten(2).norm(dim=2))
    squares = expected["hidden", "hidden"].flatten(2).square().sum(2)
    assert_accurate(torch.tensor(H["hidden"].ratio().diagonal, dtype=dtype), squares.diagonal().mean())


def test_tiles_that_several_blocks_share(cuda):
    case = Case(1100, 2, 3, 2, bias="h")
    inputs, bar = make_inputs(case, torch.float32), plain(case, torch.float32)
    exact = dense(truth(case, torch.float32), inputs.lift())
    H = on(cuda, case, torch.float32)
    assert_accurate(H.dense().cpu(), exact, dense(bar, inputs))
    assert_accurate(H["hidden"].norms().cpu(), truth(case, torch.float32)["hidden", "hidden"].flatten(2).norm(dim=2))


def test_covariance_of_many_classes(cuda):
    case = Case(9, 3, 300, 2)
    blocks = truth(case, torch.float32)["hidden", "hidden"]
    assert_accurate(on(cuda, case, torch.float32)["hidden"].dense().cpu(), matrix(blocks))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1])
def test_nan_stays_nan(bits, cuda):
    """A GPU's own NaN has all bits set, which rounding to TF32 carries into the sign."""
    x = torch.ones(20, 33, device=cuda)
    x[3, 5] = torch.tensor([bits], dtype=torch.int32).view(torch.float32).item()
    x.view(torch.int32)[3, 5] = bits
    curvature = _ops.Curvature(int(_ops.Kind.OUTPUT), 1, 1, True, 1, scale=x.new_ones(20))
    pairs = torch.zeros(1, 2, dtype=torch.int64, device=cuda)
    block = _ops.blocks(pairs, False, x, False, x, False, True, *curvature)[0]
    assert block[5].isnan().all() and block[:, 5].isnan().all() and block.isnan().sum() == 65


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 33, 97, 1023, 1025, 2100])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_softmax(classes, scale, dtype, cuda):
    assert_softmax(classes, scale, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 17, 97, 1025])
def test_softmax_product(classes, dtype, cuda):
    assert_softmax_product(classes, dtype, cuda)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("stride", [0, 1, 4], ids=["contiguous", "unaligned", "strided"])
@pytest.mark.parametrize(
    "sizes",
    [
        (64, 64, 1),
        (65, 97, 33),
        (128, 128, 16),
        (130, 257, 20),
        (300, 64, 131),
        (63, 70, 5),
        (70, 64, 0),
        (64, 64, 2000),
    ],
    ids=str,
)
def test_logits_of_many_classes(sizes, stride, bias, cuda):
    classes, samples, d = sizes
    torch.manual_seed(classes)
    weight, features = (torch.randn(rows, d + stride, device=cuda)[:, stride:] for rows in (classes, samples))
    bias = torch.randn(classes, device=cuda) if bias else None
    out = torch.empty(classes, samples, device=cuda)
    _ops.logits_(out, weight, bias, features)
    exact, bar = (
        torch.nn.functional.linear(*(None if t is None else t.to(dtype) for t in (features, weight, bias))).T
        for dtype in (torch.float64, torch.float32)
    )
    assert_accurate(out.cpu(), exact.cpu(), bar.cpu())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", OVERFLOWING, ids=lambda c: c.name)
def test_inactive_unit_under_overflow(case, dtype, cuda):
    assert_silent(make_inputs(case, dtype).to(dtype, cuda))


def test_same_bits(cuda):
    first, second = (on(cuda, CASES[6], torch.float32).dense() for _ in range(2))
    assert torch.equal(first, second)


def test_emulator_finds_a_missing_barrier():
    assert _emulated.reverses(True)
    found = []
    for order in range(4):
        _emulated.set_order(order)
        assert _emulated.reverses(True)
        found.append(not _emulated.reverses(False))
    assert all(found)
    with pytest.raises(RuntimeError, match="different barriers"):
        _emulated.part()


FIRST_CALL = """
import torch
from hessext import _emulated as core
core.set_capturing(True)
logits, top, rest = torch.randn(3, 5), torch.empty(3, dtype=torch.int64), torch.empty(3)
core.softmax(False, logits, 3, 5, top, rest, core.Stream(0, 0, lambda size: 0))
assert torch.equal(top, logits.argmax(1))
"""


def test_the_first_call_may_be_inside_a_capture():
    """In a fresh process: CUDA loads a kernel at its first launch, which a capture does not allow."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_an_old_driver_is_named(emulated):
    emulated.set_driver(12040)
    try:
        with pytest.raises(RuntimeError, match=r"driver is one for CUDA 12\.4, .* needs one for CUDA 13\.0, .* 580 or"):
            _ops.softmax_(torch.zeros(1, 2))
    finally:
        emulated.set_driver(13000)
    _ops.softmax_(torch.zeros(1, 2))


def test_more_blocks_than_a_launch_has_are_refused(emulated):
    """Not launched with the lowest 32 bits of their number."""
    logits, top, rest = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"fewer than 2\^31 blocks"):
        emulated.softmax(False, logits, 2**32, 2, top, rest, emulated.Stream(0, 0, lambda size: 0))


def test_every_gpu_has_code():
    """The architectures of the default build: code of the same major version, or PTX of an older one."""
    text = ROOT.joinpath("CMakeLists.txt").read_text()
    built = " ".join(re.findall(r"(?:set|list)\((?:APPEND )?cuda_architectures ([^$)]*)\)", text))
    real = [int(name.removesuffix("-real")) for name in built.split()]
    ptx = [int(name) for name in built.split() if "-" not in name]
    assert len(real) == 7
    for capability in (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121):
        same = any(a // 10 == capability // 10 and a <= capability for a in real)
        assert same or any(a <= capability for a in ptx), capability


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_over_pairs_of_samples(dtype, cuda):
    torch.manual_seed(0)
    left, right, weight = (torch.randn(*shape, dtype=dtype) for shape in ((20, 33), (20, 65), (33, 65)))
    sums = torch.zeros(2, dtype=torch.float64, device=cuda)
    _ops.gram_sums_(left.to(cuda), right.to(cuda), weight.to(cuda), False, None, [], [], sums)
    terms = weight.double() * (left.double().T @ right.double())
    assert abs(sums[0].item() - terms.sum().item()) < torch.finfo(dtype).eps * terms.abs().sum().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*SUMS, Case(17, 3, 4, 65, bias="h")], ids=lambda c: c.name)
def test_matrices_over_pairs_of_samples(case, dtype, cuda):
    """<Q_n, Q_n'> over entries i = j and i != j: of a softmax, its top classes split off, and of given entries."""
    assert_tiles(on(cuda, case, dtype), make_inputs(case, dtype).lift().hessian(), dtype)


def kernels_in_source():
    """What stands in csrc/cuda: each kernel in every type, and tiles in every shape."""
    sources = ROOT.joinpath("csrc", "cuda").glob("*.[hc]*")
    text = "\n".join(source.read_text() for source in sources)
    names = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", text))
    assert len(names) > 10
    shapes = {"float": ("32, 2, 2", "64, 2, 2", "128, 2, 4"), "double": ("32, 2, 2", "64, 2, 2")}
    tiles = [f"{dtype}, Shape<{dtype}, {shape}>" for dtype in shapes for shape in shapes[dtype]]
    gram = "float, Shape<float, 64, 2, 2>", "double, Shape<double, 32, 2, 2>"
    for name in names:
        if name in ("add_partial", "find_small_stages"):
            yield name
        elif name == "softmax_gram_small_tiles":
            yield f"{name}<Shape<float, 64, 2, 2>>"
        elif name == "logit_tiles":
            yield f"{name}<RowShape<float, 128, 2, 4>>"
        elif name == "add_splits":
            yield from (f"{name}<{tile}>" for tile in tiles)
        elif name == "multiply_tiles":
            rights = "WeightedFeatures", "CurvatureColumn"
            yield from (f"{name}<{t}, {r}<{t}>, {p}>" for t in tiles for r in rights for p in ("true", "false"))
        elif name in ("gram_tiles", "softmax_gram_tiles"):
            yield from (f"{name}<{shape}, {tensor}>" for shape in gram for tensor in ("true", "false"))
        else:
            yield from (f"{name}<{dtype}>" for dtype in shapes)


def test_every_kernel_is_executed(emulated, monkeypatch):
    """In every type and shape, by some of the cases above in one go."""
    emulated.forget_executed()
    for tensor in (True, False):
        emulated.set_tensor_cores(tensor)
        for dtype in DTYPES:
            emulated.set_limits(16, 0, 0)  # sums over several spans
            test_blocks(CASES[7], dtype, "cpu")
            for case in (CASES[9], *CASES[-3:]):
                on("cpu", case, dtype).dense()
            test_sums_over_classes(SUMS[0], dtype, "cpu", None)
            test_small_probabilities_are_rounded("cpu")
            test_sums_over_pairs_of_samples(dtype, "cpu")
            with monkeypatch.context() as patch:
                test_norms_of_pairs(dtype, "cpu", patch)
            emulated.set_limits(0, 0, 0)
            for d in (2, 50):  # tiles of 32 and 64 that several blocks share
                on("cpu", Case(1100, d, 3, 2), dtype)["output"].blocks([(0, 1)])
                on("cpu", Case(1100, d, 3, 2), dtype)["hidden"].blocks([(0, 1)])
        test_logits_of_many_classes((64, 64, 1), 0, True, "cpu")
    executed = {re.sub(r"[\w{}]+::", "", name).replace(" >", ">") for name in emulated.executed()}
    assert set(kernels_in_source()) - executed == set()
