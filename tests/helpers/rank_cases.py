"""Cases that ranks of torch.distributed run together, each beside one process: functions by name, with world sizes.

Every rank makes the whole problem, takes its own samples of it, and compares with what it computes alone.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import hessext
from hessext.matrix import closed_curvature, cost, softmax_gram

from .cases import Case, make_inputs
from .deep import Deep, make_deep
from .networks import C, Transformer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
BOTH = 2, 4
CASES: dict[str, tuple[tuple[int, ...], Callable[[], None]]] = {}


def case(name: str, *arguments, sizes: tuple[int, ...] = BOTH) -> Callable:
    """Register a function with arguments as a case."""

    def register(function: Callable) -> Callable:
        CASES[name] = sizes, partial(function, *arguments)
        return function

    return register


def own(*tensors: Tensor, empty: bool = False) -> tuple[Tensor | None, ...]:
    """This rank's samples: shares in the ratio 3 : 1 : 2 : 1; with `empty`, the last rank has none."""
    rank, size = dist.get_rank(), dist.get_world_size()
    shares = [3, 1, 2, 1][:size]
    if empty:
        shares[-1] = 0
    N, ends = len(tensors[0]), [0]
    for share in shares:
        ends.append(ends[-1] + share)
    first, last = (N * end // ends[-1] for end in (ends[rank], ends[rank + 1]))
    return tuple(None if first == last else t[first:last] for t in tensors)


def close(found, expected, dtype: torch.dtype, what: str = "") -> None:
    """Equal within the tolerance, relative to the largest number."""
    found, expected = (torch.as_tensor(t, dtype=torch.float64) for t in (found, expected))
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    assert torch.equal(found.isnan(), expected.isnan()), (what, found, expected)
    error, size = ((t.nan_to_num(0.0)).abs().max().item() for t in (found - expected, expected))
    assert error <= TOLERANCE[dtype] * size, (what, error / size if size else error, found, expected)


def same_on_all_ranks(t: Tensor) -> None:
    """The same bits."""
    found = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(found, t.contiguous())
    assert all(torch.equal(t, other) for other in found)


def compare_part(B, E, dtype: torch.dtype, terms: str = "all") -> None:
    """Every result of a part, B of all ranks, E of one process."""
    rows, cols = E.grid
    v = torch.linspace(-1, 1, E.shape[1], dtype=dtype)
    pairs = [(0, cols - 1), (rows - 1, 0), (rows - 1, cols - 1)]
    sums = {
        "dense": lambda M: M.dense(),
        "block": lambda M: M.block(rows - 1, 0),
        "blocks": lambda M: M.blocks(pairs),
        "product": lambda M: M @ v,
        "products": lambda M: M @ torch.stack([v, v * v], 1),
        "norms": lambda M: M.norms(),
        "some norms": lambda M: M.norms(pairs),
        "norm": lambda M: M.norm(),
    }
    if E.symmetric:
        u = torch.linspace(1, 2, E.shape[0], dtype=dtype)
        sums |= {
            "ratio": lambda M: torch.tensor(M.ratio()),
            "row norms": lambda M: torch.stack(M.row_norms()[:3]),
            "diagonal": lambda M: M.diagonal(),
            "trace": lambda M: M.trace(),
            "diagonal blocks": lambda M: M.diagonal_blocks(),
            "inner diagonal": lambda M: M.inner(u),
        }
    for name, result in sums.items():
        close(result(B), result(E), dtype, name)
    same_on_all_ranks(B.norms())


def compare_structure(B, E, dtype: torch.dtype) -> None:
    """What is computed from sums over pairs of samples."""
    K, s = E.grid[0], E.block_shape[0]
    G, A = (torch.arange(1.0, n * n + 1, dtype=dtype).sin().view(n, n) for n in (K, s))
    G, A = G + G.T, A + A.T
    for name, result in {
        "factors": lambda M: M.inner((G, A)),
        "itself": lambda M: M.inner(M),
        "solve": lambda M: M.solve_block_diagonal(torch.ones(K * s, dtype=dtype), 0.5),
        "eigenvalues": lambda M: M.eigh_blocks().eigenvalues,
    }.items():
        close(result(B), result(E), dtype, name)
    if not E.norm():
        return
    groups = [0] * (K // 2) + [1] * (K - K // 2)
    tables = [M.approximations(groups=groups, factors={"given": (G, A)}) for M in (B, E)]
    for row, expected in zip(*tables, strict=True):
        assert row.name == expected.name
        floor = row.note.startswith("below") or expected.note.startswith("below")
        for field, power in {"relative_error": 2, "scaled_error": 2, "cosine": 1}.items():
            if not (floor and power == 2):
                a, b = (getattr(one, field) ** power for one in (row, expected))
                assert a == pytest.approx(b, rel=TOLERANCE[dtype], abs=10 * TOLERANCE[dtype], nan_ok=True), (
                    row,
                    expected,
                )
        for field in ("population", "sampling_error"):
            found = getattr(row, field), getattr(expected, field)
            if field == "population" and expected.cosine > 1 - 1e-12:
                continue  # 1, or by a rounding above it, which is none
            assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6, nan_ok=True), (field, row, expected)
    if K * s <= 20:  # as many products
        spectra = [M.preconditioned_spectrum("diagonal", relative_damping=1.0) for M in (B, E)]
        assert spectra[0].largest == pytest.approx(spectra[1].largest, rel=1e-5)
    nearest, expected = (M.nearest_kronecker(2) for M in (B, E))
    for a, b in zip(nearest.errors, expected.errors, strict=True):
        assert abs(a * a - b * b) <= 10 * TOLERANCE[dtype]
    # vectors keep half of the digits of what they make largest
    close(*(torch.kron(M.G, M.A) for M in (nearest, expected)), torch.float32)


# ------------------------------------------------------------------------------------------- linear, one hidden layer


def shallow(case: Case, dtype: torch.dtype, empty: bool, batches: bool = False) -> None:
    """A model given as tensors, each rank with its own samples."""
    inputs = make_inputs(case, dtype)
    x, y = own(inputs.x, inputs.y, empty=empty)
    if batches:
        x, y = [] if x is None else list(zip(x.split(3), y.split(3), strict=True)), None
    biases = [b for b in (inputs.hidden_bias, inputs.output_bias) if b is not None]
    group = dist.group.WORLD
    if case.hidden is None:
        bias = biases[0] if biases else None
        H = hessext.linear(inputs.output_weight, x, y, bias=bias, loss=inputs.loss, group=group)
    else:
        H = hessext.one_hidden(
            inputs.hidden_weight,
            inputs.output_weight,
            x,
            y,
            hidden_bias=inputs.hidden_bias,
            output_bias=inputs.output_bias,
            activation=case.activation,
            loss=inputs.loss,
            group=group,
        )
    compare(H, inputs.hessian(), dtype)


def compare(H, E, dtype: torch.dtype) -> None:
    """All terms and parts of a Hessian."""
    v = torch.linspace(-1, 1, E.shape[0], dtype=dtype)
    for term in ("full", "gauss_newton", "residual"):
        M, expected = (T if term == "full" else getattr(T, term)() for T in (H, E))
        close(M.dense(), expected.dense(), dtype, term)
        close(M @ v, expected @ v, dtype, term)
        close(M.diagonal(), expected.diagonal(), dtype, term)
        close(M.trace(), expected.trace(), dtype, term)
    close(H.norms(), E.norms(), dtype, "norms")
    close(list(H.shares().values()), list(E.shares().values()), dtype, "shares")
    names = [name for name in E.layers if "bias" not in name]
    for r, row in enumerate(names):
        for col in names[r:]:
            compare_part(H[row, col], E[row, col], dtype)
    for name in names:
        compare_structure(H[name], E[name], dtype)


SHALLOW = [
    Case(23, 5, 7, bias="o"),
    Case(22, 4, 3, loss="mse"),
    Case(21, 3, 6, loss="mse module", bias="o"),
    Case(23, 5, 4, loss="ce weight smooth", bias="o"),
    Case(20, 4, 5, loss="ce sum ignore"),
    Case(22, 4, 5, loss="ce weight prob"),
    Case(21, 3, 1, loss="bce weight"),
    Case(23, 4, 3, 5, bias="ho"),
    Case(21, 3, 4, 6, activation="gelu", loss="ce weight smooth"),
    Case(20, 4, 3, 5, activation="tanh", loss="mse", bias="h"),
    Case(22, 3, 1, 4, activation="silu", loss="bce sum"),
    Case(21, 3, 4, loss="bce weight", bias="o"),
    Case(22, 3, 4, 5, activation="silu", loss="bce weight"),
]
for number, one in enumerate(SHALLOW):
    dtype = (torch.float64, torch.float32)[number % 4 == 3]
    case(f"shallow {one.name}", one, dtype, number % 2 == 1)(shallow)
case("shallow batches", SHALLOW[0], torch.float64, False, True)(shallow)
case("shallow batches, one rank without", SHALLOW[7], torch.float64, True, True)(shallow)


# ------------------------------------------------------------------------------- any depth, modules, heads and layers


def deep(case: Deep, dtype: torch.dtype, empty: bool, as_module: bool) -> None:
    """feed_forward, or hessian of a module."""
    inputs, group = make_deep(case, dtype), dist.group.WORLD
    x, y = own(inputs.x, inputs.y, empty=empty)
    if as_module:
        H = hessext.hessian(inputs.model(), x, y, inputs.loss, group=group)
        E = hessext.hessian(inputs.model(), inputs.x, inputs.y, inputs.loss)
    else:
        kinds = {"biases": inputs.biases, "activations": list(case.activations), "loss": inputs.loss}
        H, E = hessext.feed_forward(inputs.weights, x, y, group=group, **kinds), inputs.hessian()
    compare(H, E, dtype)


DEEP = [
    (Deep(21, (4, 5, 3, 4), "tanh", bias="02"), torch.float64, True, False, BOTH),
    (Deep(20, (3, 4, 4, 3, 2), "relu", "mse"), torch.float64, False, True, (4,)),
    (Deep(20, (3, 4, 3, 3), "gelu", "ce weight smooth", "1"), torch.float32, False, False, (2,)),
]
for *one, sizes in DEEP:
    case(f"deep {one[0].name}", *one, sizes=sizes)(deep)


def tokens(count: int = 10) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(C, (count, 5), generator=g)
    y = torch.randint(C, (count, 5), generator=g)
    y[0, :2] = -100
    return x, y


@case("layer", ["blocks.1.attention.o", "head"], False, sizes=(4,))
@case("layer, one rank without", ["blocks.1.mlp.gate"], True, sizes=(2,))
def layers(names: list[str], empty: bool) -> None:
    """Layers in a transformer, the head among them."""
    model = Transformer(tied=False).eval()
    x, y = tokens()
    mine = own(x, y, empty=empty)
    batches = [] if mine[0] is None else list(zip(*(t.split(2) for t in mine), strict=True))
    H = hessext.layer(model, names, batches, group=dist.group.WORLD)
    E = hessext.layer(model, names, [(x, y)])
    for name in names:
        compare_part(H[name], E[name], torch.float64)
        compare_structure(H[name], E[name], torch.float64)
    assert hessext.autograd.check(H, samples=2)


@case("head", False)
@case("head, one rank without", True)
def head(empty: bool) -> None:
    model = Transformer(dtype=torch.float32).eval()
    x, y = tokens()
    mine = own(x, y, empty=empty)
    H = hessext.head(model, "head", [] if mine[0] is None else [mine], group=dist.group.WORLD)
    E = hessext.head(model, "head", [(x, y)])
    compare_part(H["head"], E["head"], torch.float32)


# ------------------------------------------------------------------------------------------------------ classes split


def own_rows(weight: Tensor) -> tuple[Tensor, int, dist.ProcessGroup]:
    """Rows of this rank, of unequal number, its first one, and the group."""
    (rows,) = own(weight)
    (numbers,) = own(torch.arange(len(weight)))
    return rows, int(numbers[0]), dist.group.WORLD


def classes(case: Case, dtype: torch.dtype, form: str) -> None:
    """Rows of the weight on each rank, samples on all of them; on a mesh of two dimensions both are split."""
    inputs, group = make_inputs(case, dtype), None
    x, y, weight, bias = inputs.x, inputs.y, inputs.output_weight, inputs.output_bias
    if form == "rows":
        weight = own_rows(weight)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard, distribute_tensor

        if form == "mesh":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("samples", "classes"))
            half = len(x) // 3
            rows = slice(0, half) if mesh.get_local_rank("samples") == 0 else slice(half, None)
            x, y, group, mesh = x[rows], y[rows], mesh["samples"], mesh["classes"]
        else:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        weight = distribute_tensor(weight, mesh, [Shard(0)])
        bias = None if bias is None else distribute_tensor(bias, mesh, [Shard(0)])
    H, E = hessext.linear(weight, x, y, bias=bias, loss=inputs.loss, group=group), inputs.hessian()
    compare(H, E, dtype)
    compare_part(H["output.weight"], E["output.weight"], dtype)
    assert hessext.autograd.check(H)
    if form == "dtensor":
        B, E, size = H["output"], E["output"], H["output"].block_shape[0]
        v = torch.linspace(-1, 1, B.shape[0], dtype=dtype).view(-1, size)
        rows = distribute_tensor(v, mesh, [Shard(0)]).to_local().flatten()
        split = DTensor.from_local(rows, mesh, [Shard(0)], shape=(v.numel(),), stride=(1,))
        expected = distribute_tensor((E @ v.flatten()).view(-1, size), mesh, [Shard(0)]).to_local()
        close((B @ split).to_local().view(-1, size), expected, dtype, "rows of a vector")
        raises(ValueError, "v: expected a DTensor only", E.__matmul__, split)


SPLIT = [
    (Case(13, 4, 9, bias="o"), torch.float64, "rows", BOTH),
    (Case(12, 3, 11, loss="ce weight smooth", bias="o"), torch.float64, "dtensor", BOTH),
    (Case(12, 5, 8, scale=30.0), torch.float64, "rows", (2,)),
    (Case(12, 3, 7, loss="mse"), torch.float64, "dtensor", (4,)),
    (Case(14, 4, 9), torch.float32, "rows", (4,)),
    (Case(17, 4, 9, bias="o"), torch.float64, "mesh", (4,)),
    (Case(16, 3, 7, loss="mse module"), torch.float64, "mesh", (4,)),
]
for *one, sizes in SPLIT:
    case(f"classes {one[2]} {one[0].name}", *one, sizes=sizes)(classes)


@case("classes of a head made by ColwiseParallel", sizes=(2,))
def colwise() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor  # noqa: F401  # which older ones do not have
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    x, y = tokens(3)
    E = hessext.head(Transformer(tied=False), "head", [(x, y)])
    model = parallelize_module(Transformer(tied=False), init_device_mesh("cpu", (2,)), {"head": ColwiseParallel()})
    compare_part(hessext.head(model, "head", [(x, y)])["head"], E["head"], torch.float64)


@case("classes refused", sizes=(2,))
def refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    inputs = make_inputs(SPLIT[0][0], torch.float64)
    mesh, W, rank = init_device_mesh("cpu", (2,)), inputs.output_weight, dist.get_rank()
    for placement in (Shard(1), Replicate()):
        raises(ValueError, "Shard\\(0\\)", hessext.linear, distribute_tensor(W, mesh, [placement]), inputs.x)
    whole = distribute_tensor(W, mesh, [Shard(0)])
    raises(TypeError, "plain tensor", hessext.one_hidden, whole, W[:, :3], inputs.x, inputs.y)
    raises(ValueError, "FSDP2", hessext.linear, whole, inputs.x + rank)
    raises(ValueError, "follow one another", hessext.linear, (W[:4], 2 * rank, dist.group.WORLD), inputs.x)
    raises(TypeError, "first row", hessext.linear, (W[:4], "0", dist.group.WORLD), inputs.x)
    binary = {"loss": "binary_cross_entropy"}
    raises(ValueError, "cross-entropy or MSE where classes are split", hessext.linear, whole, inputs.x, **binary)


# ------------------------------------------------------------------------------------------- faults, and what goes on


def raises(kind: type[Exception], pattern: str, function: Callable, *arguments, **options) -> None:
    """An error of this type whose text has the pattern."""
    with pytest.raises(kind, match=pattern):
        function(*arguments, **options)


def problem(group=None, seed: int = 0):
    """A Hessian of this rank's samples."""
    inputs = make_inputs(SHALLOW[seed], torch.float64)
    x, y = own(inputs.x, inputs.y)
    return hessext.linear(
        inputs.output_weight, x, y, bias=inputs.output_bias, loss=inputs.loss, group=group or dist.group.WORLD
    )


@contextlib.contextmanager
def in_sums():
    """The ratio as that of a large layer, in sums over all classes."""
    choice = cost.form_of_ratio
    cost.form_of_ratio = lambda part: cost.Form.SUMS
    try:
        yield
    finally:
        cost.form_of_ratio = choice


@case("faults: ranks that disagree or raise are named")
def faults() -> None:
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    H, inputs = problem(), make_inputs(SHALLOW[0], torch.float64)
    raises(RuntimeError, f"rank.* {last}: diagonal|rank.* {last}: trace", H.trace if rank else H.diagonal)
    bad = inputs.x[:3] * (float("nan") if rank == last else 1)
    raises(
        ValueError,
        f"^linear: rank {last}: x: expected finite",
        hessext.linear,
        inputs.output_weight,
        bad,
        group=dist.group.WORLD,
    )
    W = inputs.output_weight + (rank == last)
    raises(RuntimeError, "weights and loss", hessext.linear, W, inputs.x[:3], group=dist.group.WORLD)
    kind = "mse" if rank == last else "cross_entropy"
    raises(RuntimeError, "mse", hessext.linear, inputs.output_weight, inputs.x[:3], loss=kind, group=dist.group.WORLD)
    raises(ValueError, "x: expected samples", hessext.linear, inputs.output_weight, None, group=dist.group.WORLD)
    raises(IndexError, "ranks 0, 1", H["output"].block, 99, 0)
    raises(RuntimeError, "other arguments", H["output"].block, 0, int(rank == last))
    raises(RuntimeError, "other arguments", H.__matmul__, torch.full((H.shape[0],), 1.0 + rank, dtype=torch.float64))
    far = hessext.linear(inputs.output_weight.float() * 1e-25, inputs.x[:3].float() * 1e25, group=dist.group.WORLD)
    for call in (far["output"].ratio, far["output"].norms, far["output"].row_norms, far["output"].norm):
        raises(ValueError, "x: expected features whose largest is between", call)
    other = problem(seed=1)
    raises(RuntimeError, "another Hessian|expected the same call", (other if rank == last else H).trace)
    for name, part in (("ratio", H["output"]), ("approximations", H["output"])):
        module = {"ratio": softmax_gram, "approximations": closed_curvature}[name]
        working = module.sums_of_classes

        def broken(*arguments, working=working):
            if rank == last:
                raise MemoryError("there is none left")
            return working(*arguments)

        module.sums_of_classes = broken
        try:
            with in_sums():
                raises(MemoryError, f"^{name}: rank {last}: there is none left", getattr(part, name))
        finally:
            module.sums_of_classes = working
    expected = make_inputs(SHALLOW[0], torch.float64).hessian()
    close(H["output"].ratio(), expected["output"].ratio(), torch.float64)  # the group goes on


@case("faults on a mesh of two dimensions", sizes=(4,))
def faults_on_mesh() -> None:
    """One rank raises while its row adds up over classes: the other row hears of it, too."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    inputs, mesh = make_inputs(SPLIT[5][0], torch.float64), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    half = slice(0, 9) if mesh.get_local_rank("a") else slice(9, None)
    W = distribute_tensor(inputs.output_weight, mesh["b"], [Shard(0)])
    B = hessext.linear(W, inputs.x[half], inputs.y[half], group=mesh["a"])["output"]
    working = softmax_gram.FeatureProducts.__call__

    def broken(*arguments):
        if dist.get_rank() == 3:
            raise MemoryError("there is none left")
        return working(*arguments)

    softmax_gram.FeatureProducts.__call__ = broken
    try:
        with in_sums():
            raises(MemoryError, "^ratio: rank 3: there is none left", B.ratio)
    finally:
        softmax_gram.FeatureProducts.__call__ = working
    assert B.trace() > 0
    raises(RuntimeError, "expected the same call", B.trace if dist.get_rank() == 1 else B.ratio)


@case("pickles, copies in another dtype, plots and the same bits")
def goes_on() -> None:
    H, E = problem(), make_inputs(SHALLOW[0], torch.float64).hessian()
    again = pickle.loads(pickle.dumps(H))
    close(again["output"].ratio(), E["output"].ratio(), torch.float64)
    close(H.to(torch.float32).trace(), E.trace(), torch.float32)
    assert torch.equal(problem()["output"].norms(), H["output"].norms())
    assert H["output"].ratio() == problem()["output"].ratio()
    assert hessext.autograd.check(H)
    with contextlib.suppress(ImportError):
        hessext.plot.check_matplotlib()
        hessext.plot.block_norm_map(H)
        hessext.plot.heat_map(H)


@case("a late rank and a dead one are named within the group's timeout", sizes=(4,))
def lost() -> None:
    rank = dist.get_rank()
    if not hasattr(dist.ProcessGroup, "get_group_store"):
        raise ImportError("torch without ProcessGroup.get_group_store does not say which rank is missing")
    for fault in ("late", "dead"):
        group = dist.new_group(timeout=timedelta(seconds=60))  # which is needed to connect, too
        group.set_timeout(timedelta(seconds=3))
        H = problem(group)
        start = time.monotonic()
        if rank == 2 and fault == "late":
            time.sleep(6)
        if rank == 2 and fault == "dead":
            return
        raises(RuntimeError, "^ratio: " + (".*" if rank == 2 else ".*rank 2: dead or late"), H["output"].ratio)
        assert time.monotonic() - start < 12
