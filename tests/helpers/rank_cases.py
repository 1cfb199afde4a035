"""Cases that ranks of torch.distributed run together, each beside one process, with world sizes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

import hessext

from .cases import Case, make_inputs
from .deep import Deep, make_deep
from .networks import C, Transformer
from .ranks import BOTH, case, close, compare, compare_part, compare_structure, own, raises

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
