"""Faults on some of the ranks, which all of them name, and what goes on afterwards."""

from __future__ import annotations

import contextlib
import pickle
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import hessext
from hessext.matrix import closed_curvature, cost, feature_products, softmax_gram

from .cases import make_inputs
from .rank_cases import SHALLOW, SPLIT
from .ranks import case, close, own, raises


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

        def broken(*arguments, working=working, **options):
            if rank == last:
                raise MemoryError("there is none left")
            return working(*arguments, **options)

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
    working = feature_products.FeatureProducts.__call__

    def broken(*arguments):
        if dist.get_rank() == 3:
            raise MemoryError("there is none left")
        return working(*arguments)

    feature_products.FeatureProducts.__call__ = broken
    try:
        with in_sums():
            raises(MemoryError, "^ratio: rank 3: there is none left", B.ratio)
    finally:
        feature_products.FeatureProducts.__call__ = working
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
    with hessext.progress(), in_sums():  # which the first rank alone shows
        close(H["output"].ratio(), E["output"].ratio(), torch.float64)
        H["output"].approximations()
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
