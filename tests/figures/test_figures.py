"""Figures: what is seen in them, as numbers; their files; continuing after a kill; what is said of bad input."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hessext import datasets, figures, linear, one_hidden, theory
from hessext._random import lecun
from hessext.cli import main
from hessext.figures import FIGURES, NAMES, Drawing, Run

pytest.importorskip("matplotlib")


def draw(name, path, **options):
    return figures.run(name, out=path, progress=False, **options)


def found(name, path, **options):
    """What a figure finds; no picture is rendered, which takes longer than the numbers."""
    parameters = figures._parameters.completed(options, FIGURES[name].parameters(), name)
    return FIGURES[name].draw(Run(FIGURES[name], parameters, path, False, False))


def slope(rows, quantity):
    """Exponent of a column over C, by least squares."""
    return np.polyfit(np.log([row["classes"] for row in rows]), np.log([row[quantity] for row in rows]), 1)[0]


# ------------------------------------------------------------------------------------------------------- what is seen


def test_4_is_block_diagonal(tmp_path):
    drawing = found("4", tmp_path, classes=[2, 9, 30], features=15, draws=3)
    assert all(row["off_diagonal"] == 0 < row["diagonal"] for row in drawing.rows)
    image = drawing.arrays["output_C30"].reshape(30, 15, 30, 15)
    own = np.eye(30, dtype=bool)[:, None, :, None]
    assert (image[np.broadcast_to(own, image.shape)] > 0).all() and not image[np.broadcast_to(~own, image.shape)].any()
    for row in drawing.rows:  # exact at finite N = C and d
        assert abs(row["diagonal"] - row["diagonal_theory"]) < 5 * row["diagonal_error"]


def test_5_fades_at_the_predicted_rate(tmp_path):
    rows = found("5", tmp_path, classes=[4, 12, 36], draws=20).rows
    assert [row["classes"] for row in rows] == [4, 12, 36]
    for row in rows:
        expected = theory.linear_ce(None, row["classes"], N=row["classes"], d=64).ratio
        assert row["ratio_theory"] == pytest.approx(expected, rel=1e-12)
        assert abs(row["ratio"] - row["ratio_theory"]) < 5 * row["ratio_error"] < 0.25 * row["ratio_theory"]
    assert slope(rows, "ratio") == pytest.approx(slope(rows, "ratio_theory"), abs=0.05)
    assert -2.2 < slope(rows, "ratio") < -1.9  # the paper's -2


@pytest.mark.parametrize(("name", "rate"), [("6", -1.0), ("7", -0.9)])
def test_6_and_7_fade_at_the_predicted_rates(name, rate, tmp_path):
    drawing = found(name, tmp_path, classes=[8, 24, 72], draws=12)
    rows = {layer: [row for row in drawing.rows if row["layer"] == layer] for layer in ("hidden", "output")}
    assert slope(rows["hidden"], "ratio") == pytest.approx(rate, abs=0.25)
    if name == "6":
        assert not any(row["off_diagonal"] for row in rows["output"])
    else:
        assert slope(rows["output"], "ratio") == pytest.approx(-2, abs=0.2)
    for row in drawing.rows:
        for quantity in ("diagonal", "off_diagonal"):
            error = 5 * row[f"{quantity}_error"] + 0.05 * row[f"{quantity}_theory"]  # of the integral over inputs
            assert abs(row[quantity] - row[f"{quantity}_theory"]) <= error


def test_maps_show_the_first_draw(tmp_path):
    drawing = found("7", tmp_path, classes=[5], features=9, hidden=3, draws=2, seed=1)
    x, y = datasets.gaussian(5, 9, 5, balanced=True, seed=1 << 32)
    H = one_hidden(*lecun((3, 9), (5, 3), seed=1 << 32), x, y)
    for layer in H.layers:
        np.testing.assert_allclose(drawing.arrays[f"{layer}_C5"], H[layer].dense().abs(), rtol=1e-6)


def test_8_and_9_are_sweeps_beside_the_theory(tmp_path):
    small = {"classes": [2, 8, 32], "samples": 60, "features": 30, "workers": 1}
    for name, layers, extra in (("8", ["output"], {}), ("9", ["hidden", "output"], {"hidden": 3})):
        drawing = found(name, tmp_path, draws=10, **small, **extra)
        assert list(dict.fromkeys(row["layer"] for row in drawing.rows)) == layers
        assert all(abs(row["z"]) < 6 for row in drawing.rows)
    log = next((tmp_path / "steps").glob("figure9-draws-*.csv"))
    lines = log.read_bytes()
    more = found("9", tmp_path, draws=12, **small, **extra)  # continues the file
    assert log.read_bytes().startswith(lines) and more.rows[0]["draws"] == 12
    ratios = [row for row in more.rows if row["layer"] == "output" and row["quantity"] == "ratio"]
    assert -2.4 < slope(ratios, "mean") < -1.6


def test_1_is_the_hessian_of_all_layers(tmp_path):
    pytest.importorskip("sklearn")
    drawing = found("1", tmp_path, data="digits", samples=40, hidden=4)
    x, y = datasets.digits(samples=40)
    W, V = lecun((4, 64), (10, 4), seed=0)
    for loss in ("cross_entropy", "mse"):
        H = one_hidden(W, V, x, y, loss=loss)
        parts = [[H[a, b].dense().abs() for b in H.layers] for a in H.layers]
        whole = torch.cat([torch.cat(row, 1) for row in parts])
        np.testing.assert_allclose(drawing.arrays[f"{loss}_hessian"], whole, rtol=1e-5)
        np.testing.assert_allclose(drawing.arrays[f"{loss}_norms"], H.norms(), rtol=1e-6)
    ratios = {(row["loss"], row["layer"]): row["ratio"] for row in drawing.rows}
    assert ratios["mse", "output"] == 0 and max(ratios.values()) < 0.1  # block-diagonal
    assert "scikit-learn's digits, not CIFAR-100" in drawing.notes[0]


def test_spectra_follow_their_laws(tmp_path):
    drawing = found("spectra", tmp_path, classes=[2, 20], features=200, samples=400, hidden=4)
    assert len(drawing.rows) == 9  # two blocks of five models, but for H_12 = 0 of a linear model under MSE
    assert not drawing.arrays["linear-mse-C20-H_12"].any()
    for row in drawing.rows:
        assert row["distance"] < 0.06
        assert row["share_at_0"] == pytest.approx(row["share_at_0_theory"], abs=0.05)
        assert row["mean"] == pytest.approx(row["mean_theory"], rel=0.25)
        assert row["mean_square"] == pytest.approx(row["mean_square_theory"], rel=0.5)
    (hidden,) = (row for row in drawing.rows if (row["loss"], row["block"], row["model"]) == ("mse", "H_12", "hidden"))
    assert hidden["share_at_0_theory"] > 0.3  # most samples are not active in both neurons
    x, _ = datasets.gaussian(400, 200, 2, dtype=torch.float64)
    H = linear(*lecun((2, 200), seed=0, dtype=torch.float64), x)["output"]
    expected = torch.linalg.eigvalsh(2 * H.block(0, 0))
    np.testing.assert_allclose(drawing.arrays["linear-cross_entropy-C2-H_11"], expected, rtol=1e-9)


# -------------------------------------------------------------------------------------------------------------- files

SMALL = {"classes": [3, 6], "features": 8, "draws": 2}


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(figures._frame, "DPI", 20)


def test_files_and_caption(tmp_path):
    drawing = draw("5", tmp_path, quick=True, **SMALL, seed=7)
    assert [path.name for path in drawing.files] == [f"figure5.{kind}" for kind in ("png", "pdf", "csv", "npz", "md")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(p.name for p in drawing.files), "steps"])
    assert (tmp_path / "figure5.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure5.pdf").read_bytes().startswith(b"%PDF")
    with (tmp_path / "figure5.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["ratio"]) for row in read] == [row["ratio"] for row in drawing.rows]
    with np.load(tmp_path / "figure5.npz") as arrays:
        assert arrays["output_C6"].shape == (48, 48)
    caption = (tmp_path / "figure5.md").read_text()
    for text in (
        "# Figure 5: |H| of linear models",
        "(--quick; but for classes, features, draws, seed). classes 3,6, features 8, draws 2, seed 7, dtype",
        "- $C = 3$: 3 x 3 blocks of 8; $C = 6$: 6 x 6 blocks of 8: |H|; colours from ",
        "**The paper says.** Equations (5), (6)",
        "- output, C = 6: mean ||H_ij||_F^2 / mean ||H_ii||_F^2 = ",
        "`hessext figure 5 --quick --classes 3,6 --features 8 --draws 2 --seed 7`",
        f"torch {torch.__version__}, numpy {np.__version__}",
        f"{torch.get_num_threads()} threads",
    ):
        assert text in caption


def test_the_same_call_makes_the_same_files_without_computing_again(tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in draw("5", tmp_path, **SMALL).files}
    steps = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()}
    again = draw("5", tmp_path, **SMALL)
    assert {path.name: path.read_bytes() for path in again.files} == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").iterdir()} == steps
    found("5", tmp_path, **SMALL | {"classes": [3, 6, 9]})  # one more size is one more step
    assert len(list((tmp_path / "steps").iterdir())) == len(steps) + 1
    other = found("5", tmp_path, **SMALL, seed=1)  # another parameter: all of them
    assert len(list((tmp_path / "steps").iterdir())) == 2 * len(steps) + 1
    assert other.rows != again.rows


@pytest.mark.parametrize("content", [b"", b"not a zip file"])
def test_damaged_steps_are_computed_again(content, tmp_path):
    rows = found("5", tmp_path, **SMALL).rows
    for path in (tmp_path / "steps").iterdir():
        path.write_bytes(content)
    assert found("5", tmp_path, **SMALL).rows == rows
    for path in (tmp_path / "steps").iterdir():
        assert path.read_bytes() != content


def test_killed_run_continues(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    sizes = {"classes": [3, 6, 100], "features": 64, "draws": 4}  # the last takes longest
    options = ["--classes", "3,6,100", "--features", "64", "--draws", "4", "--out", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.Popen([sys.executable, "-m", "hessext", "figure", "5", *options], env=environment)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("steps/figure5-C[36]-*.npz"))) < 2:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (killed / "figure5.md").exists()
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("steps/figure5-*.npz")}
    continued, straight = draw("5", killed, **sizes), draw("5", whole, **sizes)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert continued.rows == straight.rows
    for name in ("figure5.csv", "figure5.npz", "figure5.png"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


# ------------------------------------------------------------------------------------------------------ all of them


def test_every_figure_says_what_it_is():
    assert set(NAMES) >= {str(k) for k in range(1, 10)} | {"spectra"} and list(FIGURES) == list(NAMES)
    for name, figure in FIGURES.items():
        assert figure.name == name and figure.title and figure.paper and figure.reading
        assert set(figure.quick) <= set(figure.parameters()) >= {"seed", "dtype"}
        assert figures._parameters.completed({}, figure.parameters(), name) == figure.parameters()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("0", {}, ValueError, r"name: expected one of 1, 2, .*; got '0'"),
        ("5", {"hidden": 3}, TypeError, r"hidden: expected a parameter of figure 5 \(classes, features, draws, .*=3"),
        ("5", {"features": [3, 4]}, ValueError, r"features: expected one value for this figure; got \[3, 4\]"),
        ("5", {"classes": []}, ValueError, "classes: expected at least one value; got none"),
        ("5", {"classes": [1]}, ValueError, "classes: expected at least 2; got 1"),
        ("5", {"draws": 2.5}, TypeError, "draws: expected an integer; got 2.5"),
        ("5", {"dtype": "half"}, ValueError, "dtype: expected float32 or float64; got 'half'"),
        ("5", {"dtype": torch.float32}, TypeError, "dtype: expected a str; got torch.float32"),
        ("5", {"out": __file__}, ValueError, "out: expected a folder; got .*, which is a file"),
        ("1", {}, FileNotFoundError, "data_folder: expected the folder that holds CIFAR-100 .*--data gaussian"),
        (
            "1",
            {"quick": True, "data_folder": "x"},
            ValueError,
            "data_folder, download: expected only with --data cifar100",
        ),
        ("1", {"data": "mnist"}, ValueError, "data: expected cifar100 or digits or gaussian; got 'mnist'"),
    ],
)
def test_bad_arguments_are_named(name, options, error, message, tmp_path):
    with pytest.raises(error, match=f"^{message}"):
        figures.run(name, **{"out": tmp_path, **options})


def test_command(tmp_path, capsys):
    options = ["--quick", "--classes", "3,6", "--features", "8", "--draws", "2", "--out", str(tmp_path)]
    assert main(["figure", "5", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("figure5: |H| of linear models") and "figure5.png, figure5.pdf" in printed
    assert main(["figure", "5", *options, "--hidden", "3"]) == 2
    assert "hessext figure: hidden: expected a parameter of figure 5" in capsys.readouterr().err
    assert main(["figure"]) == 2
    assert re.search(r"NAME: expected all or one of 1, .*; got none$", capsys.readouterr().err.strip())
    assert main(["figure", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{figure.name:<14} {figure.title}" in listed for figure in FIGURES.values())
    with pytest.raises(SystemExit):
        main(["figure", "none"])


def test_missing_packages_are_named_without_a_traceback(tmp_path, capsys, monkeypatch):
    def missing():
        raise ImportError("hessext.plot needs matplotlib: pip install matplotlib")

    monkeypatch.setattr(figures.plot, "check_matplotlib", missing)
    assert main(["figure", "5", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "hessext figure: hessext.plot needs matplotlib: pip install matplotlib\n"


def test_all_figures_are_tried_and_failures_reported(tmp_path, capsys, monkeypatch):
    def seen(run):
        from matplotlib.figure import Figure as Picture

        if run.figure.name == "1":
            raise FileNotFoundError("data_folder: expected a folder")
        return Drawing({"": Picture()}, [f"draws {run.parameters.draws}"] if run.figure.name == "5" else ["nothing"])

    for name, figure in FIGURES.items():
        monkeypatch.setitem(FIGURES, name, dataclasses.replace(figure, draw=seen))
    assert main(["figure", "all", "--draws", "3", "--out", str(tmp_path)]) == 1  # those that have draws take them
    printed = capsys.readouterr()
    assert "hessext figure 1: data_folder: expected a folder" in printed.err
    assert "draws 3" in printed.out and printed.out.rstrip().endswith(f"of {len(NAMES)} figures drawn; not 1")
    assert (tmp_path / "figure2.md").exists()
    assert main(["figure", "all", "--classes", "0", "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.err == "hessext figure: classes: expected at least 2; got 0\n" and not printed.out
