"""What a sweep reports: statistics against the theory, exponents, the command, the picture."""

import json
import math

import numpy as np
import pytest

import hessext
from hessext import plot
from hessext.cli import main
from hessext.plot import _curves
from hessext.sweeps import report, statistics
from hessext.sweeps.draws import Point, Row
from hessext.sweeps.report import Sweep

SMALL = {"classes": [2, 5, 10], "samples": 60, "features": 40, "draws": 60, "progress": False, "workers": 1}
TINY = {"classes": [2, 3], "samples": 6, "features": 4, "draws": 3, "progress": False, "workers": 1}


def made(values, sizes, layer="output", case=2):
    """A result with given (diagonal, off-diagonal) of each draw of each point."""
    points = tuple(Point(C, 100, 50, 0) for C in sizes)
    rows = [
        Row(case, 0, "float32", *point, k, layer, on, off, off / on, None, None, "baseline", "2.4.0")
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
    rows = tuple(row._replace(diagonal=1.1 * row.diagonal) for row in result.rows)
    shifted = Sweep(2, "classes", result.points, result.draws, 0, "float32", rows)
    assert [abs(e.z) > 5 for e in shifted.estimates if e.quantity == "diagonal"] == [True, True, True]
    assert math.isnan(shifted.worst.z)  # of the ratio at C = 2, which has no spread
    rest = Sweep(2, "classes", result.points[1:], result.draws, 0, "float32", rows)
    assert f"largest |z|: {abs(rest.worst.z):.1f} (by chance alone a larger one in about 0% of runs)" in rest.table()


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


def test_draws_without_spread():
    """They agree with theory to rounding, z = 0, or have no z."""
    two, three = made([[(0.25, 0.25)] * 4, [(1.0, 0.5), (2.0, 0.7)] * 2], [2, 3]).estimates[:2]
    assert math.isnan(two.z) and three.z > 5
    result = hessext.sweep(3, classes=[2, 3], hidden=2, samples=1, features=1, draws=2, progress=False)
    z = np.array([e.z for e in result.estimates])
    assert np.isnan(z).any() and np.nanmax(np.abs(z)) < 1e5
    assert math.isnan(result.worst.z) and math.isnan(result.chance)
    assert "largest |z|: nan (of a mean that is nan, or whose" in result.table()
    assert result.summary()["chance_of_larger"] is None
    assert all(e.z == 0 for e in hessext.sweep(1, **TINY).estimates if e.quantity != "diagonal")


def test_chance_counts_means_that_vary():
    """Not the ratio, nor what is 0; at C = 2 both means, of which the ratio 1 is made."""
    from scipy.stats import t

    for case, means in ((1, 3), (2, 6)):
        result = hessext.sweep(case, **SMALL)
        one = 2 * t.sf(abs(result.worst.z), SMALL["draws"] - 1)
        assert result.chance == pytest.approx(1 - (1 - one) ** means)


def test_repr_is_one_line():
    result = hessext.sweep(2, **TINY)
    assert repr(result) == f"<{result.title}; largest |z| {abs(result.worst.z):.1f}; see .table()>"
    assert "3 draws" in repr(result) and "\n" not in repr(result)


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
    fits = np.array([statistics.slope(x, 1 - 2 * x + error * rng.standard_normal(4), error) for _ in range(4000)])
    implied = statistics.slope(x, x, error)[1]
    assert abs(fits[:, 0].mean() + 2) < 4 * implied / math.sqrt(4000)
    assert fits[:, 0].std() == pytest.approx(implied, rel=0.05)
    assert fits[:, 1].min() == pytest.approx(implied)
    assert fits[:, 1].mean() < 1.4 * implied
    assert statistics.slope(x, x**3, error)[1] > 3 * implied  # not a line: the scatter counts


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
    assert "3 of 12 draws done, about 1 s to go on one thread" in printed.err
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
        (["--hidden", "3"], "hidden: expected none for a linear model (cases 3 and 4 have it); got 3"),
        (["--out", __file__], f"out: expected a folder; got {__file__}, which is a file or in one"),
        (["--classes", "1000000000000"], "a draw (classes 1000000000000, samples 20, features 10) needs"),
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


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        (2, {"classes": 5}),
        (4, {"classes": 5, "hidden": 3}),
        (4, {"classes": [2, 5, 10], "hidden": 3}),
        (4, {"classes": 5, "hidden": [3, 8, 16]}),
        (3, {"classes": 5, "hidden": 3, "samples": range(20, 40)}),
        (2, {"classes": 5, "features": None, "gamma": [0.25, 1.0]}),
    ],
)
def test_picture_of_any_size(case, sizes):
    pytest.importorskip("matplotlib")
    result = hessext.sweep(case, **(TINY | {"draws": 5} | sizes))
    swept = [result.size(point) for point in result.points]
    figure = plot.ratios(result)
    figure.canvas.draw()
    axes = [ax for ax in figure.axes if ax.get_visible()]
    above, below = ([ax for ax in axes if bool(ax.get_title()) == values] for values in (True, False))
    assert len(above) == len(below)
    for ax in axes:
        assert list(ax.get_xticks()) == swept
        assert ax.get_xlim()[0] < swept[0] <= swept[-1] < ax.get_xlim()[1]
        for spine in ax.spines.values():
            assert ax.bbox.padded(10).contains(*spine.get_window_extent().min)
            assert ax.bbox.padded(10).contains(*spine.get_window_extent().max)
    for ax in above:
        assert (", theory " in ax.get_title()) == (len(swept) > 1)
        assert [line.get_marker() for line in ax.lines if line.get_label() == "theory"] == (
            ["s"] if len(swept) == 1 else ["None"]
        )
        numbers = [y for y, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True) if text.get_text()]
        assert sum(ax.get_ylim()[0] <= y <= ax.get_ylim()[1] for y in numbers) >= 2
    for ax in below:
        assert ax.get_xlabel() == _curves.SYMBOLS[result.swept]
        shown = [text.get_text() for text in ax.get_xticklabels()]
        every = [f"{size:g}" for size in swept]
        assert shown == every or (len(swept) == 20 and 5 < sum(map(bool, shown)) < 15)
    (legend,) = figure.legends  # says what the panels of z show
    assert len(legend.get_texts()) == 2 and legend.get_texts()[0].get_text() == "$|z| < 3$"


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ([2, 5, 10, 20, 50, 100, 200, 500, 1000], ["2", "", "10", "", "", "100", "", "", "1000"]),
        ([2, 5, 20, 100], ["2", "5", "20", "100"]),
        ([0.01, 0.02, 0.1, 0.9, 1.0], ["0.01", "", "0.1", "", "1"]),
    ],
)
def test_powers_of_ten_are_numbered_first(sizes, numbers):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    ax.set_xscale("log")
    _curves.label_sizes(ax, np.array(sizes), 2.2)
    assert list(ax.get_xticks()) == sizes and [text.get_text() for text in ax.get_xticklabels()] == numbers


def test_limits_are_those_of_the_theory():
    """The finite-C theory approaches constant * C^rate."""
    for case, layer in ((2, "output"), (3, "hidden"), (3, "output"), (1, "output")):
        point = Point(10**6, 10**6, 10**6, 3)
        found, expected = (f(case, layer, point) for f in (report.limit, report._theory))
        for constant, rate, value in zip(found, report.PAPER_RATES[case, layer], expected, strict=True):
            assert value == pytest.approx(constant * 10.0 ** (6 * (rate or 0)), rel=1e-3)
