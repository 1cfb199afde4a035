"""Q_n between two layers: which closed form it has, and the tensors that the form is made of.

With V the last weight, D_n = diag act'(z_n) of the layer before it and B_n = d2 l_n / d f_n2:

    Kind.OUTPUT  last layer                  Q_n = B_n                       (3), (5), (9), (15)
    Kind.HIDDEN  layer before it             Q_n = D V^T B V D + diag(bend)  (8), (14)
    Kind.CROSS   between these two           Q_n = D V^T B, and the residual r_n[j] D x_n e_i^T   (11), (18)
    Kind.GIVEN   any other                   entries; nothing here forms them yet, so these parts raise

The entries of the first three are computed in csrc/curvature.h, on either device. V^T B V of (14) is a covariance over
the classes: csrc/cpu/isa/class_sums.h and csrc/cuda/weights.h.
"""

from __future__ import annotations

from hessext._ops import Curvature, Kind
from hessext.data.samples import Data, Samples


def curvature_between(samples: Samples, row: int, col: int, term: str) -> Curvature:
    """Q_n of the part between two layers, the earlier one first; `term` says which of its summands."""
    samples.check_unchanged()
    last, classes, o = samples.network.last, samples.network.classes, samples.output
    gauss_newton, residual = term != "residual", term != "gauss_newton"
    output = {"scale": o.scale, "probs": o.probs, "top": o.top, "rest": o.rest}
    if row == last:
        return Curvature(Kind.OUTPUT, classes, classes, True, classes, gauss_newton, **output)
    if row < last - 1:
        raise NotImplementedError("the curvature of a layer before the last two")
    V = samples.network.layers[last].weight
    units, hidden = V.shape[1], {"weight": V, "shift": samples.shift, "slope": samples.slope(row)}
    if col == last:
        r = samples.residual if residual else None
        return Curvature(Kind.CROSS, units, classes, False, classes, gauss_newton, **output, **hidden, residual=r)
    gram = V.T @ V if o.probs is None else None
    bend = samples.bend(row) if residual else None
    own = {"gram": gram, "bend": bend}
    return Curvature(Kind.HIDDEN, units, units, True, classes, gauss_newton, **output, **hidden, **own)


def is_multiple_of_identity(data: Data, layer: int) -> bool:
    """Whether Q_n within a layer is c_n I: without softmax the losses of the logits are apart."""
    return layer == data.network.last and not data.loss.softmax
