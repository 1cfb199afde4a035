"""The paper's limits and their finite-size forms as functions (arXiv 2505.02809). Needs scipy.

Everything is at LeCun initialization: x ~ N(0, I_d), linear weights and hidden W ~ N(0, 1/d), output V ~ N(0, 1/m),
with ReLU. The losses are cross-entropy (mean over samples) and MSE (mean over samples of the squared norm). gamma is
d / N, C the number of classes and m the number of hidden neurons. Squared Frobenius norms of (d, d) blocks are
multiplied by 1/d; those of the (m, m) output blocks are not. Limits are taken in N and d first, then in C.
"""

from ._averages import cross_ce, hidden_ce, output_ce
from ._deep import deep_mse, effective_ranks
from ._given_weights import given_weights
from ._laws import hidden_spectrum, linear_spectrum, marchenko_pastur
from ._limits import F, cross_ce_limit, fourth_moment, h0, h1, hidden_ce_limit, output_ce_limit
from ._linear import linear_ce, linear_ce_limit, linear_mse
from ._mse import cross_mse, hidden_mse, hidden_mse_limit, output_mse
from ._replica import ReplicaMoments, replica_moments
from ._results import CrossEstimate, CrossNorms, Estimate, Layers
from ._softmax import softmax_moment
from ._spectra import MarchenkoPastur, Spectrum

__all__ = [
    "CrossEstimate",
    "CrossNorms",
    "Estimate",
    "F",
    "Layers",
    "MarchenkoPastur",
    "ReplicaMoments",
    "Spectrum",
    "cross_ce",
    "cross_ce_limit",
    "cross_mse",
    "deep_mse",
    "effective_ranks",
    "fourth_moment",
    "given_weights",
    "h0",
    "h1",
    "hidden_ce",
    "hidden_ce_limit",
    "hidden_mse",
    "hidden_mse_limit",
    "hidden_spectrum",
    "linear_ce",
    "linear_ce_limit",
    "linear_mse",
    "linear_spectrum",
    "marchenko_pastur",
    "output_ce",
    "output_ce_limit",
    "output_mse",
    "replica_moments",
    "softmax_moment",
]
