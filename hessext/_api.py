"""Hessians of weights given as tensors, and of modules that are chains; `_layer.py` has layers of any network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import _checks, _hints
from ._parameters import Given, chain
from ._tensors import lifted
from .data.batches import Batches
from .data.classes import own_rows, rows_of
from .data.ranks import Ranks, over_ranks
from .data.samples import Samples
from .data.shared import Shared
from .matrix.hessian import Hessian
from .model import loss_arguments, trace
from .model.activations import is_activation, resolve
from .model.loss_arguments import LossLike
from .model.losses import Loss
from .model.network import Network

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

KEPT = 1 << 30  # bytes of batches that are kept for norms


@_hints.positional(3)
@over_ranks
def linear(
    weight: Tensor,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    loss: LossLike = "cross_entropy",
    memory: int = KEPT,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Hessian of a linear model f = W x + b: equations (3), (5). One layer, "output", C blocks of d (+1 with a bias).

    Args:
        weight: W (C, d), float32 or float64; bfloat16 and float16 are converted to float32, the dtype of the results,
            a large weight piece by piece. It and the bias are copied; a weight above 64 MiB, x and y are not and
            must not be changed in place. Where its rows are split over ranks, a DTensor with Shard(0), or (rows on this
            rank, first row, group); x and y are then the same on these ranks, which ask for results together.
        x: inputs (N, d), of weight's dtype and device; or (N, T, d), as language models have them, with targets (N, T)
            or (N, T, C): every position is a sample, as in torch's loss of flattened logits and targets. Or batches
            (x, y), a DataLoader or another iterable, which is read anew for every result: blocks, dense, products and
            diagonals are summed over it, a mean divided by the total of all batches (of class weights, of labels that
            are not ignored). Batches are moved to weight's device and dtype.
        y: labels (N,) int64, or class probabilities or regression targets (N, C); None where H does not depend on it.
            Of "mse" and nn.MSELoss labels stand for one-hot targets. Of binary cross-entropy: targets (N, C), of one
            logit also (N,), or labels 0 and 1, int64 or bool.
        bias: b (C,).
        loss: "cross_entropy" (mean over samples), "binary_cross_entropy" (of each logit's sigmoid, as torch's: mean
            over samples and logits), "mse" (mean over samples of ||f - y||^2, no 1/2), or an nn.CrossEntropyLoss,
            nn.BCEWithLogitsLoss or nn.MSELoss with its own options, whose weights are copied.
        memory: bytes that all samples of batches may take where a result is no sum over them: norms, ratio, row_norms.
        group: a torch.distributed process group. Each of its ranks brings samples of its own, tensors or batches, or
            none (None, an empty tensor or list), and the same weights; H is that of all of them. Results are the same
            on all ranks, which must ask for them together.

    Raises:
        ValueError: a shape, device or value; TypeError: not a tensor, or its dtype. The argument is named.
            Errors in later batches come with the results that read them.
    """
    return output_layer("output", weight, bias, x, y, loss, memory=memory, group=group)


@_hints.positional(4, activation=is_activation)
@over_ranks
def one_hidden(
    hidden_weight: Tensor,
    output_weight: Tensor,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    hidden_bias: Tensor | None = None,
    output_bias: Tensor | None = None,
    activation: str | nn.Module = "relu",
    loss: LossLike = "cross_entropy",
    memory: int = KEPT,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Hessian of a network f = V act(W x + b) + c: equations (1), (8), (9), (11), (14), (15), (18).

    Layers "hidden" (m blocks of d, +1 with a bias) and "output" (C blocks of m, +1 with a bias).

    Args:
        hidden_weight: W (m, d), float32 or float64. Parameters are copied; weights above 64 MiB, x and y are not and
            must not be changed in place.
        output_weight: V (C, m).
        x: inputs (N, d) or (N, T, d), or batches as in `linear`.
        y: targets as in `linear`; needed unless x is batches.
        hidden_bias: b (m,).
        output_bias: c (C,).
        activation: "relu", "leaky_relu", "identity", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "softplus", or
            torch's module of it. Derivatives at kinks are torch's: relu'(0) = 0.
        loss: as in `linear`.
        memory: as in `linear`.
        group: as in `linear`.

    Raises:
        ValueError: a shape, device, value or name; TypeError: not a tensor, or its dtype. The argument is named.
    """
    layers = [
        Given("hidden", "hidden_weight", hidden_weight, "hidden_bias", hidden_bias, resolve(activation)),
        Given("output", "output_weight", output_weight, "output_bias", output_bias),
    ]
    return _hessian(Network(chain(layers)), x, y, loss, memory, group)


@_hints.positional(3, activations=is_activation)
@over_ranks
def feed_forward(
    weights: Sequence[Tensor],
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    biases: Sequence[Tensor | None] | None = None,
    activations: str | nn.Module | Sequence[str | nn.Module] = "relu",
    loss: LossLike = "cross_entropy",
    memory: int = KEPT,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Hessian of a network of any depth, z_l = W_l a_{l-1} + b_l, a_l = act_l(z_l), a_0 = x, logits z_L.

    Within layer l, H_ij = sum_n S_n[i, j] a_{l-1} a_{l-1}^T with S = d2 l_n / d z_l^2 ("Deeper networks" in
    docs/mathematics.md). Layers "0", "1", ... in the
    order in which they are applied, K_l blocks of K_{l-1} (+1 with a bias).

    Args:
        weights: W_l (K_l, K_{l-1}), float32 or float64, the output layer's last. Parameters are copied; weights above
            64 MiB, x and y are not and must not be changed in place.
        x: inputs (N, d) or (N, T, d), or batches as in `linear`.
        y: targets as in `linear`; needed for two layers or more, unless x is batches.
        biases: b_l (K_l,), or None for a layer without one; None: no layer has one.
        activations: one for all hidden layers or one for each of them, as in `one_hidden`.
        loss: as in `linear`.
        memory: as in `linear`.
        group: as in `linear`.

    Raises:
        ValueError: a shape, device, value or name, or not one bias or activation for each layer that takes one;
            TypeError: not a tensor, or its dtype. The argument is named.
    """
    weights = _sequence("weights", weights, "weights, one for each layer")
    if not weights:
        raise ValueError("weights: expected one for each layer, at least one; got none")
    biases = [None] * len(weights) if biases is None else _sequence("biases", biases, "biases, or None for all")
    if len(biases) != len(weights):
        raise ValueError(f"biases: expected {len(weights)}, one or None for each layer; got {len(biases)}")
    if isinstance(activations, str | nn.Module):
        activations = [activations] * (len(weights) - 1)
    activations = _sequence("activations", activations, "an activation, or one for each hidden layer")
    if len(activations) != len(weights) - 1:
        raise ValueError(f"activations: expected {len(weights) - 1}, one for each hidden layer; got {len(activations)}")
    found = [resolve(activation, f"activations[{k}]") for k, activation in enumerate(activations)]
    layers = [
        Given(str(k), f"weights[{k}]", weight, f"biases[{k}]", bias, activation)
        for k, (weight, bias, activation) in enumerate(zip(weights, biases, [*found, None], strict=True))
    ]
    return _hessian(Network(chain(layers)), x, y, loss, memory, group)


@_hints.also_named(x="batches")
@over_ranks
def hessian(
    model: nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    loss: LossLike = "cross_entropy",
    *,
    memory: int = KEPT,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Hessian of a module whose forward is a chain of nn.Linear and activations, of any depth, however it is written.

    The equations are those of `feed_forward`. Without an activation between two layers, it is the identity.

    forward is followed with torch.fx: modules may be nested; torch's functions count as activations (F.relu, relu_,
    z * sigmoid(z)); what has no parameters may come first (nn.Flatten, x.view(...), x.to(...), x / 255, (x - mean) /
    std with buffers, which are copied); Identity and Dropout in evaluation mode may stand anywhere. Where a weight is
    pruned (torch.nn.utils.prune), H is that in the weight, masked entries included.
    `layers` are the names of `model.named_parameters()`; a module's name ("0") is its weight and bias together.

    Args:
        model: the module; it is read once, and later training does not change the result. Weights above 64 MiB are
            not copied; changing one in place raises RuntimeError.
        x: what the module takes, of its dtype and device; its first linear layer then sees (N, d) or (N, T, d).
            Or batches (x, y) of it, as in `linear`; `batches=` is the same.
        y: targets as in `linear`.
        loss: as in `linear`.
        memory: as in `linear`.
        group: as in `linear`.

    Raises:
        TypeError: the part of the module that is not supported; dropout in training mode; tied parameters; hooks.
        ValueError: as `linear` and `one_hidden`.
    """
    form, registered = trace.read(model)
    layers = []
    for step in form.steps:
        weight, bias = (f"{step.name}.{part}" if step.name else part for part in ("weight", "bias"))
        parameters = weight, step.parameter("weight"), bias, step.parameter("bias")
        layers.append(Given(step.name, *parameters, step.activation, step.bias_first))
    return _hessian(Network(chain(layers), registered, by_parameter=True), x, y, loss, memory, group, form.before)


def output_layer(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor | Iterable[Any],
    y: Tensor | None,
    loss: LossLike,
    *,
    memory: int = KEPT,
    by_parameter: bool = False,
    bias_first: bool = False,
    group: ProcessGroup | None = None,
) -> Hessian:
    """Return the Hessian of a linear model whose layer has this name; the rest as of `Network` and its `Layer`."""
    ranks, rows = Ranks.of(group), rows_of("weight", weight)
    if rows is None:
        layers = chain([Given(name, "weight", weight, "bias", bias, bias_first=bias_first)])
        return _hessian(Network(layers, by_parameter=by_parameter), x, y, loss, memory, ranks)
    weight, split = own_rows("weight", rows, ranks)
    with ranks.operation("linear"):
        bias = _own_bias(bias, split, len(weight))
        layers = chain([Given(name, "weight", weight, "bias", bias, bias_first=bias_first)])
        return _hessian(Network(layers, by_parameter=by_parameter, split=split), x, y, loss, memory, ranks)


def _own_bias(bias: Any, split: tuple[int, int] | None, rows: int) -> Tensor | None:
    """The bias of the rows that are here, given for all rows, or split as they are."""
    of_bias = rows_of("bias", bias)
    if of_bias is not None:
        return of_bias.here
    first, total = split or (0, rows)
    return bias[first : first + rows] if isinstance(bias, Tensor) and bias.shape == (total,) else bias


def _sequence(name: str, value: Any, expected: str) -> list:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: expected a list of {expected}; got {type(value).__name__}")
    return list(value)


def _hessian(
    network: Network,
    x: Tensor | Iterable[Any],
    y: Tensor | None,
    loss: LossLike,
    memory: int,
    group: ProcessGroup | Ranks | None,
    before: Callable[[Tensor], Tensor] | None = None,
) -> Hessian:
    """Of samples x, or of batches (x, y) of which at most `memory` bytes are kept; before(x) are the inputs."""
    loss, memory, ranks = loss_arguments.resolve(loss), _checks.count("memory", memory), Ranks.of(group)
    x, y = (_lift(t, network.like) for t in (x, y))
    if not ranks.alone:
        x, batches = _on_this_rank(x)
        make = None
        if batches:
            make = partial(_batches, network, x=x, y=y, memory=memory, before=before)
            x = y = None
        elif x is not None and before is not None:
            x = before(x)
        return Hessian(Shared.of(network, loss, ranks, x, y, make))
    if not _is_batches(x):
        return Hessian(Samples.of(network, loss, x if before is None else before(x), y))
    return Hessian(_batches(network, loss, x, y, memory, before))


def _lift(t: Any, like: Tensor) -> Any:
    """A tensor in half precision in the dtype of the results; anything else as it is."""
    half = isinstance(t, Tensor) and t.is_floating_point() and lifted(t.dtype) == like.dtype != t.dtype
    return t.to(like.dtype) if half else t


def _is_batches(x: Any) -> bool:
    return isinstance(x, Iterable) and not isinstance(x, Tensor | str | dict) and type(x).__module__ != "numpy"


def _on_this_rank(x: Any) -> tuple[Any, bool]:
    """Samples or batches, None where there are none, and which of both."""
    if isinstance(x, Tensor):
        return x if x.numel() else None, False
    if not _is_batches(x):
        return x, False
    empty = not isinstance(x, Iterator) and next(iter(x), None) is None
    return (None, False) if empty else (x, True)


def _batches(
    network: Network, loss: Loss, x: Any, y: Tensor | None, memory: int, before: Callable[[Tensor], Tensor] | None
) -> Batches:
    if y is not None:
        got = type(x).__name__
        if isinstance(y, str | nn.Module):
            raise TypeError(
                f"y: expected None beside batches (x, y); got {type(y).__name__}: a loss is passed as loss="
            )
        hint = _hints.of_other_type(x) or " (of batches (x, y)? they come without a y beside them)"
        raise TypeError(f"x: expected a torch.Tensor; got {got}{hint}")
    return Batches(network, loss, x, memory, before)
