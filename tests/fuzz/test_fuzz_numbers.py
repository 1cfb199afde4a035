"""Hypothesis on what makes data, pictures, theory and sweeps out of numbers."""

from __future__ import annotations

import inspect
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from helpers.arguments import NUMBERS, SIZES, any_number, any_size, anything, junk, outcome
from helpers.cases import DTYPES
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import hessext
from hessext import datasets, plot, theory

# --- data and pictures -------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 5), st.integers(0, 4), st.floats(0, 2), st.booleans())
def test_data(N, d, C, more, radius, balanced):
    for dtype in DTYPES:
        x, y = datasets.clustered(N, d, C, C + more, radius=radius, dtype=dtype)
        assert x.dtype == dtype and x.shape == (N, d) and torch.equal(y, torch.arange(N) % (C + more) % C)
        assert torch.allclose(x.norm(dim=1), torch.ones(N, dtype=dtype), atol=1e-5)
        x, y = datasets.gaussian(N, d, C, balanced=balanced, dtype=dtype)
        assert x.isfinite().all() and y.min() >= 0 and y.max() < C
        if balanced:
            assert torch.bincount(y, minlength=C).max() - torch.bincount(y, minlength=C).min() <= 1


@given(*[any_size] * 4, any_number, anything, st.sampled_from([torch.float64, torch.int8, "x", None]))
def test_junk_for_data(N, d, C, k, radius, seed, dtype):
    names = ("samples", "features", "classes", "clusters", "radius", "seed", "dtype")
    outcome(lambda: datasets.gaussian(N, d, C, seed=seed, dtype=dtype), *names)
    outcome(lambda: datasets.clustered(N, d, C, k), *names)
    for options in ({"radius": radius}, {"seed": seed}, {"dtype": dtype}):
        outcome(lambda o=options: datasets.clustered(9, 3, 2, 3, **o), *names)
    for samples in (N, radius):
        outcome(lambda s=samples: datasets.digits(samples=s, seed=seed), *names)


LIMITS = [
    (1, 2),
    [1e-100, 1e100],
    [1e-300, 1],
    None,
    (1, 2, 3),
    "ab",
    {},
    (2, 1),
    (10**400, 1),
    np.ones(2),
    torch.ones(3),
]


@given(anything, anything, st.sampled_from(LIMITS), any_size, st.integers(0, 6))
def test_junk_for_pictures(H, values, limits, max_pixels, which):
    """A figure that can be drawn, or an argument that is named."""
    names = ("H", "pooled", "norms", "limits", "max_pixels", "pooling", "ax", "result")
    good = hessext.linear(torch.ones(2, 2), torch.ones(3, 2))
    calls = (
        lambda: plot.heat_map(good, pooled=values),
        lambda: plot.heat_map(H, limits=limits),
        lambda: plot.heat_map(good, limits=H, pooling=values),
        lambda: plot.heat_map(good, ax=values, max_pixels=max_pixels),
        lambda: plot.block_norm_map(good, norms=values, limits=limits),
        lambda: plot.pool(H, max_pixels=max_pixels),
        lambda: plot.ratios(values),
    )
    result = outcome(calls[which], *names)
    if isinstance(result, Figure):
        result.draw_without_rendering()


# --- theory ------------------------------------------------------------------------------------------------------

POSITIVE = st.sampled_from([1e-9, 0.5, 1, 3.0, 1e9, *NUMBERS])
COUNT = st.sampled_from([2, 3, 6, 40, *(size for size in SIZES if size != 2**31)])
KINDS = {  # name of a parameter: a good value, and any
    **dict.fromkeys(("gamma", "s2", "variance", "powers"), (0.5, POSITIVE)),
    **dict.fromkeys(("t", "s"), (0.25, POSITIVE)),
    **dict.fromkeys(("m", "C", "N", "d"), (3, COUNT)),
    "widths": ([4, 3], st.one_of(anything, st.lists(COUNT, max_size=4))),
    "draws": (2, st.sampled_from([0, 2, 3, 2.0, "2", 2**62])),
    "points": (64, st.sampled_from([0, 1, 2, 3, 4.0, 8, 2**62, "2"])),
    "block": ("diagonal", st.sampled_from(["diagonal", "off_diagonal", "", None, 3, []])),
    "loss": ("cross_entropy", st.sampled_from(["mse", "", None, []])),
    **dict.fromkeys(("i", "j"), (0, st.sampled_from([0, 1, -1, 2, 0.0, "0", 2**70]))),
    "W": (torch.eye(3, 4), st.one_of(junk, st.sampled_from([torch.zeros(3, 4), torch.eye(3) * 1e38]))),
    "V": (torch.eye(4, 3), st.one_of(junk, st.sampled_from([torch.ones(4, 3), torch.eye(4, 3) * 1e38]))),
    "tau": ([1, 2.0], st.one_of(anything, st.lists(any_number, max_size=3))),
    "weights": ([1, 0.5], st.one_of(anything, st.lists(any_number, max_size=3))),
    "seed": (0, st.sampled_from([0, 2**70, -1, "1", 0.5])),
}
THEORY = {name: f for name in theory.__all__ if inspect.isfunction(f := getattr(theory, name))}
THEORY |= {"Spectrum": theory.Spectrum}


@given(st.sampled_from(list(THEORY)), st.data())
def test_theory_of_any_arguments(name, data):
    """Good arguments but for a few: a result, or one of them is named."""
    function = THEORY[name]
    parameters = inspect.signature(function).parameters
    odd = data.draw(st.sets(st.sampled_from(list(parameters)), max_size=2), "odd")
    kept = [key for key, p in parameters.items() if p.default is p.empty or key in (*odd, "draws", "points")]
    values = {key: data.draw(KINDS[key][1], key) if key in odd else KINDS[key][0] for key in kept}
    if {"N", "d"} & odd and "gamma" in values:
        values["gamma"] = None
    positional = [values.pop("C"), values.pop("powers")] if "powers" in values else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of weights beyond what can be squared
        result = outcome(lambda: function(*positional, **values), *parameters, "N, d", "m, d", "W, points", "block")
    if isinstance(result, theory.Spectrum | theory.MarchenkoPastur):
        assert np.isfinite(result.density([-1.0, 0.3, 7.0])).all()
        cdf = result.cdf([-1.0, 0.3, 7.0])
        assert (cdf >= -1e-6).all() and (cdf <= 1 + 1e-6).all()
    elif result is not None and not {"W", "V"} & odd:
        flat = [result] if isinstance(result, float) else [v for part in result for v in np.ravel(part)]
        assert math.inf in flat or not np.isnan(flat).any(), (values, result)


@given(st.floats(1e-12, 1e12), st.floats(1e-6, 1e6), st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_marchenko_pastur(gamma, s2, scores):
    """Distribution functions rise from 0 to 1 across the support, and those of a Spectrum agree where it is wide."""
    law = theory.marchenko_pastur(gamma, s2)
    a, b = law.support
    assert np.allclose(law.cdf([-1.0, a / 2, 2 * b]), [0, law.atom, 1], atol=1e-9)
    assert np.allclose(law.density([-1.0, a / 2, 2 * b]), 0, atol=1e-9 / b)
    inside = np.sort(a + (b - a) * (np.tanh(scores) + 1) / 2)
    assert (np.diff(law.cdf(inside)) >= -1e-9).all()
    if 1e-3 < gamma < 1e3:
        assert np.allclose(theory.Spectrum(gamma, [s2]).cdf(inside), law.cdf(inside), atol=1e-5)


# --- sweeps ------------------------------------------------------------------------------------------------------


@given(
    *(st.integers(1, 4), st.sampled_from(["classes", "samples", "features", "hidden"])),
    *(st.lists(st.integers(2, 6), min_size=1, max_size=3), st.integers(2, 3), st.sampled_from(DTYPES)),
    *(st.integers(-(2**70), 2**70), st.floats(0, 1)),
)
def test_sweeps_continue_from_anywhere(case, swept, values, draws, dtype, seed, share):
    """Cut anywhere, a file is completed to the same rows."""
    assume(swept != "hidden" or case > 2)
    options = {"classes": 3, "samples": 4, "features": 5} | ({"hidden": 2} if case > 2 else {}) | {swept: values}
    options |= {"draws": draws, "seed": seed, "dtype": dtype, "progress": False, "workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "draws.csv")
        result = hessext.sweep(case, **options, path=path)
        whole = path.read_bytes()
        header = whole.index(b"\n")
        path.write_bytes(whole[: header + round(share * (len(whole) - header))])
        again = hessext.sweep(case, **options, path=path)
        assert repr(again.rows) == repr(result.rows)  # nan is itself
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(result.rows) == draws * len(set(values)) * (1 + (case > 2))
    assert all(row.diagonal >= 0 and row.off_diagonal >= 0 for row in result.rows)
    assert result.table() and result.summary()


@given(st.data(), st.sampled_from([3, "", ".", b"x", "a\0b", True, "no such folder/x.csv", __file__, None]))
def test_junk_for_sweeps(data, path):
    good = {"case": 2, "classes": 2, "samples": 2, "features": 2, "draws": 2, "workers": 1}
    odd = data.draw(st.sets(st.sampled_from([*good, "seed", "hidden"]), max_size=3), "odd")
    junk = st.one_of(any_number, any_size.filter(lambda size: size != 2**31))
    bad = {name: data.draw(junk, name) for name in odd}
    if data.draw(st.booleans()):
        bad |= {"gamma": data.draw(any_number), "samples": None}
    if data.draw(st.booleans()):
        bad |= {"path": path}
    names = (*good, "hidden", "gamma", "seed", "path")
    outcome(lambda: hessext.sweep(**(good | bad), progress=False), *names)
