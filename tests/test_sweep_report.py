"""What a sweep reports: statistics against the theory, exponents, the command, the picture."""

import json
import math

import numpy as np
import pytest

import hessext
from hessext import _sweep_report, plot
from hessext._sweep_draws import Point, Row
from hessext._sweep_report import Sweep
from hessext.cli import main

SMALL = {"classes": [2, 5, 10], "samples": 60, "features": 40, "draws": 60, "progress": False, "workers": 1}
TINY = {"classes": [2, 3], "samples": 6, "features": 4, "draws": 3, "progress": False, "workers": 1}


def made(values, sizes, layer="output", case=2):
    """A result with given (diagonal, off-diagonal) of each draw of each point."""
    points = tuple(Point(C, 100, 50, 0) for C in sizes)
    rows = [
        Row(case, 0, "float32", *point, k, layer, on, off, off / on, None, None)
        for point, draws in zip(points, values, strict=True)
        for k, (on, off) in enumerate(draws)
    ]
    return Sweep(case, "classes", points, len(values[0]), 0, "float32", tuple(rows))


# --------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_theory_and_simulation_agree(case):
    result = hessext.sweep(case, hidden=3 if case > 2 else None, seed=1, **SMALL)
    assert len(result.estimates) == (2 if case > 2 else 1) * 3 * 3
    z = np.array([e.z for e in result.estimates])
    assert np.abs(z).max() < 3.3
    assert case == 1 or np.abs(z).mean() > 0.2  # the errors are not too large either
    assert all(e.error < 0.3 * abs(e.mean) for e in result.estimates if e.mean)


@pytest.mark.parametrize(
    ("swept", "sizes"),
    [
        ("samples", {"samples": [30, 60, 90]}),
        ("features", {"features": range(20, 50, 10)}),
        ("gamma", {"gamma": np.array([0.5, 1.0, 2.0]), "features": None}),
        ("samples", {"samples": [30, 60], "gamma": 0.5, "features": None}),
        ("hidden", {"hidden": (3, 4)}),
    ],
)
def test_other_sizes(swept, sizes):
    case = 4 if swept == "hidden" else 2
    result = hessext.sweep(case, **(SMALL | {"classes": 4} | sizes))
    assert result.swept == swept
    assert abs(result.worst.z) < 3.3
    assert swept in result.table()
    assert all(e.paper is None for e in result.exponents)


def test_gamma_gives_the_other_size():
    points = {gamma: hessext.sweep(1, classes=2, features=10, gamma=gamma, draws=2).points for gamma in (0.5, 3, 100.0)}
    assert [point.samples for (point,) in points.values()] == [20, 3, 1]


def test_a_wrong_theory_is_noticed():
    result = hessext.sweep(2, **SMALL)
    rows = [row._replace(diagonal=1.1 * row.diagonal) for row in result.rows]
    shifted = Sweep(2, "classes", result.points, result.draws, 0, "float32", tuple(rows))
    assert [abs(e.z) > 5 for e in shifted.estimates if e.quantity == "diagonal"] == [True, True, True]
    assert f"{abs(shifted.worst.z):.1f} among 9" in shifted.table()


def test_errors_of_the_mean_and_of_the_ratio():
    rng = np.random.default_rng(0)
    on = rng.gamma(20, size=400)
    draws = np.stack([on, on * rng.gamma(5, size=400)], 1)
    diagonal, off, ratio = made([draws], [5]).estimates
    assert diagonal.mean == pytest.approx(draws[:, 0].mean())
    assert off.error == pytest.approx(draws[:, 1].std(ddof=1) / 20)
    assert ratio.mean == pytest.approx(off.mean / diagonal.mean)
    total = draws.sum(0)
    left_out = (total[1] - draws[:, 1]) / (total[0] - draws[:, 0])  # jackknife
    assert ratio.error == pytest.approx(math.sqrt(399**2 / 400 * left_out.var()), rel=0.01)


def test_rounding_is_part_of_the_error():
    classes_2 = next(e for e in hessext.sweep(2, **SMALL).estimates if e.quantity == "ratio")
    assert classes_2.theory == 1
    assert classes_2.error < 1e-7
    assert abs(classes_2.z) < 1


def test_exponents_are_fitted_over_the_last_decade():
    sizes = [2, 10, 20, 50, 100]
    spread = np.array([0.99, 1.01])[:, None]
    draws = [np.array([[C**-1.5, C**-3.0]]) * (9 if C == 2 else 1) * spread for C in sizes]  # C = 2 does not count
    fits = made(draws, sizes).exponents
    assert [fit.value for fit in fits] == pytest.approx([-1.5, -3.0, -1.5])
    assert [(fit.points, fit.paper) for fit in fits] == [(4, -2), (4, -4), (4, -2)]


def test_error_of_an_exponent():
    rng = np.random.default_rng(0)
    x, error = np.log([10.0, 20, 50, 100]), np.array([0.1, 0.2, 0.1, 0.3])
    fits = np.array([_sweep_report._slope(x, 1 - 2 * x + error * rng.standard_normal(4), error) for _ in range(4000)])
    implied = _sweep_report._slope(x, x, error)[1]
    assert abs(fits[:, 0].mean() + 2) < 4 * implied / math.sqrt(4000)
    assert fits[:, 0].std() == pytest.approx(implied, rel=0.05)
    assert fits[:, 1].min() == pytest.approx(implied)
    assert fits[:, 1].mean() < 1.4 * implied
    assert _sweep_report._slope(x, x**3, error)[1] > 3 * implied  # not a line: the scatter counts


def test_expectations_are_those_at_the_draws_weights():
    """The paired differences are far smaller than what the weights do."""
    result = hessext.sweep(4, hidden=3, **(SMALL | {"classes": 2}))
    rows = [row for row in result.rows if row.layer == "hidden"]
    measured, expected = (np.array([getattr(row, name) for row in rows]) for name in ("diagonal", "expected_diagonal"))
    assert (measured - expected).std() < 0.5 * measured.std()


def test_zero_quantities_are_said_to_be():
    table = hessext.sweep(3, hidden=3, **TINY).table()
    assert "output: mean ||H_ij||_F^2: 0 in every draw, as in theory" in table


# --------------------------------------------------------------------------------------------------- the command

RUN = ["ratios", "--samples", "20", "--features", "10", "--draws", "4", "--workers", "1"]


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main([*RUN, "--classes", "2,5,10", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "9 draws to go, about 1 s on one thread" in printed.err
    assert printed.out.splitlines()[0].startswith(
        "Case 2, linear model, cross-entropy: samples 20, features 10; 4 draws"
    )
    assert "paper as C -> inf -4" in printed.out
    assert printed.out.splitlines()[-2].startswith("largest |z|: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ratios.csv", "ratios.json", "ratios.png"]
    summary = json.loads((tmp_path / "ratios.json").read_text())
    assert len(summary["estimates"]) == 9
    assert summary["estimates"][0]["classes"] == 2
    assert [e["paper"] for e in summary["exponents"]] == [-2, -4, -2]
    rows = (tmp_path / "ratios.csv").read_bytes()
    assert main([*RUN, "--classes", "2,5,10", "--out", str(tmp_path)]) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (printed.out, "")
    assert (tmp_path / "ratios.csv").read_bytes() == rows


def test_command_over_gamma(tmp_path, capsys):
    arguments = ["ratios", "--case", "3", "--classes", "3", "--samples", "20", "--gamma", "0.5,1", "--hidden", "2"]
    assert main([*arguments, "--draws", "3", "--out", str(tmp_path)]) == 0
    assert "     gamma  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draws", "1"], "draws: expected at least 2"),
        (["--hidden", "3"], "hidden: expected None for a linear model"),
        (["--out", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_command_with_bad_arguments(arguments, message, tmp_path, capsys):
    assert main([*RUN, "--out", str(tmp_path), *arguments]) == 2
    assert f"hessext ratios: {message}" in capsys.readouterr().err.replace("[Errno 2] No such file or directory: '", "")
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, "--classes", "few"])
    assert stopped.value.code == 2


# --------------------------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("case", [1, 2, 3, 4])
def test_picture_shows_means_theory_and_limit(case):
    pytest.importorskip("matplotlib")
    result = hessext.sweep(case, hidden=3 if case > 2 else None, **TINY)
    figure = plot.ratios(result)
    figure.canvas.draw()
    shown = {ax.get_title(): ax for ax in figure.axes if ax.get_visible() and ax.get_title()}
    positive = [part for part in result.parts() if part[2][0].mean]
    assert len(shown) == len(positive) == {1: 1, 2: 3, 3: 4, 4: 6}[case]
    for ax, (_, _, estimates) in zip(shown.values(), positive, strict=True):
        theory, limit, means = ax.lines[:3]
        assert np.allclose(theory.get_ydata(), [e.theory for e in estimates])
        assert np.allclose(means.get_ydata(), [e.mean for e in estimates])
        slope = np.diff(np.log(limit.get_ydata())) / np.diff(np.log(limit.get_xdata()))
        assert slope == pytest.approx(round(slope.item()), abs=1e-9)


def test_limits_are_those_of_the_theory():
    """The finite-C theory approaches constant * C^rate."""
    for case, layer in ((2, "output"), (3, "hidden"), (3, "output"), (1, "output")):
        point = Point(10**6, 10**6, 10**6, 3)
        found, expected = (f(case, layer, point) for f in (_sweep_report.limit, _sweep_report._theory))
        for constant, rate, value in zip(found, _sweep_report.PAPER_RATES[case, layer], expected, strict=True):
            assert value == pytest.approx(constant * 10.0 ** (6 * (rate or 0)), rel=1e-3)
