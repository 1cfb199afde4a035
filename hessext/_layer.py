"""The Hessian of one linear layer of any network; of the last one it is that of a linear model of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import _checks, _hints
from ._api import output_layer
from ._progress import check_tqdm
from .data.classes import refuse_split, rows_of
from .data.data import Data
from .data.features import Forward, collected
from .data.group import Group
from .data.headers import checksum
from .data.places import NoPlaces, Places
from .data.question import Question
from .data.ranks import Ranks, over_ranks
from .data.shared import Shared, signature
from .data.tails import Tails
from .matrix.hessian import Hessian
from .matrix.layers import LayerHessians
from .model.linear import LinearLayer, check_modes, find
from .model.loss_arguments import LossLike, resolve

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

KEPT = 4 << 30  # bytes


@_hints.also_named(name="module", x="batches")
@over_ranks
def layer(
    model: nn.Module,
    name: str | nn.Module | Sequence[str | nn.Module],
    x: Any,
    y: Tensor | None = None,
    loss: LossLike = "cross_entropy",
    *,
    forward: Callable[[nn.Module, Any], tuple[Any, Tensor]] | None = None,
    memory: int = KEPT,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Exact Hessian of a loss in one linear layer anywhere in any network, all other parameters held fixed.

    H = sum_n S_n (x) a_n a_n^T over the places n (samples, positions) where the layer is applied, a_n its inputs and
    S_n = d2 loss / d z_n^2 at its outputs (K, K): "One layer of any network" in docs/mathematics.md. S_n comes row by
    row from what follows the layer, the tail, by differentiating it twice, for all places at once. If a linear layer
    gives the logits, the head, it is never differentiated: it and the loss enter as their curvature at the head's
    inputs, which all layers share. If a layer reaches the loss only through another one that was asked for, its tail
    ends there in the same way.

    H["name"] is the layer, K blocks of its inputs (+1 with a bias). Several names share the work; H["a"] and H["b"] are
    then had, parts between two layers and what needs them (dense, H @ v) are not. The layer that gives the logits may
    be among them; alone, it is what `head` gives.

    The model runs twice on the first batch and once on each other one at the call, and again where `memory` is short.
    Parameters, buffers, gradients, modes and torch's random numbers stay as they are. Attention runs in parts, as fused
    kernels have no second derivative. A model in half precision runs in float32 on its own values.

    Args:
        model: any module, without dropout or batch normalization in training mode.
        name: an nn.Linear's or a Conv1D's name in `model.named_modules()`, or the module, or a list of them. A
            Conv1D's weight (inputs, outputs) counts as its transpose. Where the weight is parametrized (weight_norm),
            "fc.weight" asks for the Hessian in the weight itself, not in what it is made of. Where it is pruned
            (torch.nn.utils.prune), H is that in the weight, too, masked entries included. `module=` is the same.
        x: what model(x) takes, or an iterable of batches (x, y), or of anything with `forward`. It is read once.
            `batches=` is the same.
            Batches are kept, not copied; changing them or the model in place raises RuntimeError afterwards.
        y: targets as in `linear`, shaped (B,) or (B, T) for logits (B, C) or (B, T, C), or (B, C), (B, T, C). A loss in
            this place is taken as one.
        loss: as in `linear`; a mean is over the samples of all batches, of class weights and ignored labels too.
        forward: forward(model, batch) runs the model and returns logits and targets, for a language model
            `(model(batch)[:, :-1], batch[:, 1:])`, say. By default x, y = batch and model(x), or its .logits.
        memory: bytes that may be kept: the layers' inputs (MemoryError beyond them), the curvature at the head's
            inputs, S_n of one layer that others reach the loss through alone, and the recorded tails. Where the tails
            do not fit, they are computed again for each slab of rows; where S_n does not, they are longer.
        group: as in `linear`: each rank brings batches of its own, or none (None, an empty list), and the same model.

    Returns:
        A Hessian of the layer's parameters, in float32 or float64. A pickle carries the model, the batches and
        `forward`, a function of a module; loading it, and `to`, run the model again.

    Raises:
        ValueError: no such module; a layer that is not called once in each batch, whose parameters are used again
            after it, on which no logits depend, or whose places the tail mixes (attention's keys and values, layers
            before them, convolutions), with the names of layers that would do; a model in training mode; random
            numbers in the model; no batch; targets of another shape. A warning: probabilities in place of logits.
        TypeError: not a linear layer, a quantized or parametrized one, hooks on it or after it or on all modules,
            operations without second derivatives. MemoryError. As `linear` otherwise.
    """
    if isinstance(y, str | nn.Module):
        y, loss = None, y
    names = [name] if isinstance(name, str | nn.Module | Tensor) or not isinstance(name, Iterable) else list(name)
    if not names:
        raise ValueError("name: expected a linear layer or a list of some; got an empty list")
    layers = [find(model, one, "name") for one in names]
    for one in layers:
        refuse_split(f"name: weight of {one.name!r}", one.weight)
    if len({one.module for one in layers}) < len(layers):
        raise ValueError(f"name: expected different layers; got {', '.join(repr(one.name) for one in layers)}")
    question = Question(model, layers, "name", resolve(loss), forward, _checks.count("memory", memory))
    ranks = Ranks.of(group)
    tails = _tails(question, ranks, x, y)
    if tails is not None:
        inside = [one in tails.layers for one in layers]
    if not ranks.alone:  # of those that have batches
        found = [which for which in ranks.notes("layers", None if tails is None else inside) if which is not None]
        if not found or any(which != found[0] for which in found):
            raise ValueError(
                f"x: expected batches on one rank at least, whose logits the same layer gives; got {found or 'none'}"
            )
        inside = found[0]
    each = {}
    for one, has_tail in zip(layers, inside, strict=True):
        if has_tail:
            each[one.name] = Hessian(_places(question, tails, one, ranks))
        else:
            samples = (None, None) if tails is None else tails.head_samples()
            each[one.name] = _head(one, *samples, loss, ranks)
    return LayerHessians(each) if len(each) > 1 else each[layers[0].name]


def _tails(question: Question, ranks: Ranks, x: Any, y: Tensor | None) -> Tails | None:
    """The tails of this rank's batches, divided by what those of all ranks give; None where there are no batches."""
    if ranks.alone:
        return Tails(question, _batches(x, y))
    parameters = checksum(*(p for p in question.model.parameters()))
    ranks.agree("model and loss", [parameters, str(question.loss)[:200], [one.name for one in question.layers]])
    tails = None if _nothing(x) else Tails(question, _batches(x, y), 0.0)
    divisor = sum(ranks.notes("divisor", 0.0 if tails is None else tails.divisor))
    if tails is not None:
        tails.divide_by(divisor)
    return tails


def _places(question: Question, tails: Tails | None, one: LinearLayer, ranks: Ranks) -> Data:
    if tails is not None:
        own = Places(tails, tails.layers.index(one))
    else:
        weight = one.weight
        dtype = question.dtype or torch.promote_types(torch.float32, weight.dtype)
        own = NoPlaces(one, question.loss, question.device or weight.device, dtype)
    if ranks.alone:
        return own
    ranks = ranks.copy()
    signature(ranks, own.network, own.loss)
    return Shared(own.network, own.loss, own, ranks, divided=True)


def _nothing(x: Any) -> bool:
    """Whether there is no batch."""
    return x is None or (isinstance(x, Tensor) and not x.numel()) or (isinstance(x, list | tuple) and not len(x))


@_hints.also_named(module="name", x="batches")
@over_ranks
def head(
    model: nn.Module,
    module: nn.Module | str,
    x: Any,
    y: Tensor | None = None,
    loss: LossLike = "cross_entropy",
    *,
    forward: Forward | None = None,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Hessian of a loss in one linear layer whose outputs are the logits, (3), (5), all that comes before held fixed.

    The model runs once over the batches, without gradients; what the layer is given is kept, (samples, d). H has one
    layer of the module's name, H["lm_head"] or H["lm_head.weight"]; other uses of a tied weight are held fixed, too.
    Features, weights and floating targets become float32 (float64 where the layer is): half precision is fine. It is
    `layer` without a tail.

    Args:
        model: any module, without dropout or batch normalization in training mode.
        module: the layer or its name, as in `layer`. `name=` is the same.
        x: what model(x) takes, or an iterable of (x, y), a DataLoader for example. `batches=` is the same.
        y: targets as in `linear`, shaped (B,) or (B, T) for logits (B, C) or (B, T, C), or (B, C), (B, T, C). T may
            differ from batch to batch. A loss in this place is taken as one.
        loss: as in `linear`; a mean is over the samples of all batches, of class weights and ignored labels too.
        forward: for batches of another form: forward(model, batch) runs the model and returns the targets, or None,
            for a language model `F.pad(batch["labels"][:, 1:], (0, 1), value=-100)`, say; or logits and targets.
            By default x, y = batch and model(x), which must return the layer's outputs.
        group: as in `linear`: each rank brings batches of its own, or none (None, an empty list), and the same weights.

    Raises:
        ValueError: a model in training mode, no such module, no batch, a layer that is not called once in each batch or
            does not give the model's output, targets of another shape; TypeError: not a linear layer, or one with
            hooks; MemoryError: the features do not fit. As `linear` otherwise.
    """
    if isinstance(y, str | nn.Module):
        y, loss = None, y
    one = find(model, module, "module")
    check_modes(model)
    resolve(loss)
    ranks, rows = Ranks.of(group), rows_of("module", one.weight)
    if rows is not None:
        ranks.classes = Group(rows.group)
    with ranks.operation("head"):
        samples = (None, None) if not ranks.alone and _nothing(x) else collected(model, one, _batches(x, y), forward)
        return _head(one, *samples, loss, ranks)


def _head(one: LinearLayer, features: Tensor | None, y: Tensor | None, loss: LossLike, ranks: Ranks) -> Hessian:
    """The Hessian of a layer that gives the logits of these features."""
    device = one.weight.device if features is None else features.device
    weight, bias = (None if p is None else p.to(device) for p in (one.weight, one.bias))
    kinds = {"by_parameter": True, "bias_first": one.bias_first}
    return output_layer(one.name, weight, bias, features, y, loss, **kinds, group=ranks.copy())


def _batches(x: Any, y: Tensor | None) -> Iterable[Any]:
    """Batches, or the one batch (x, y)."""
    if isinstance(x, DataLoader) and y is not None:
        raise TypeError(f"y: expected None beside batches (x, y); got {type(y).__name__}")
    if isinstance(x, Tensor) or y is not None:
        return [(x, y)]
    if isinstance(x, str | Mapping) or not isinstance(x, Iterable):
        hint = _hints.of_other_type(x)
        raise TypeError(f"x: expected a tensor beside y, or an iterable of batches; got {type(x).__name__}{hint}")
    check_tqdm(x)
    return x
