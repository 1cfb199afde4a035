"""The figure `approximations`: its shares beside those of the same Hessians, its sentences, continuing."""

import sys

import numpy as np
import pytest
import torch

from hessext import datasets, figures, one_hidden
from hessext.figures import FIGURES, Run
from hessext.figures import _approximations as approximations
from hessext.figures._training import trained
from hessext.sweeps import draws

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SMALL = {"classes": [2, 6], "samples": 40, "features": 5, "hidden": 3, "draws": 2, "steps": 40, "learning_rate": 0.02}


def run(path, **options):
    figure = FIGURES["approximations"]
    parameters = figures._parameters.completed(SMALL | options, figure.parameters(), figure.name)
    return Run(figure, parameters, path, False, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("approximations")


@pytest.fixture(scope="module")
def drawing(folder):
    return FIGURES["approximations"].draw(run(folder))


def part(drawing, **wanted):
    return [row for row in drawing.rows if wanted.items() <= row.items()]


def test_initialization_is_that_of_the_sweeps(drawing):
    for loss, case in (("mse", 3), ("cross_entropy", 4)):
        for C in (2, 6):
            tasks = [draws.Task(case, 0, "float32", draws.Point(C, 40, 5, 3), number) for number in range(2)]
            hessians = [draws.draw(task)[0] for task in tasks]
            for layer in ("hidden", "output"):
                tables = [H[layer].approximations() for H in hessians]
                rows = part(drawing, setting="initialization", loss=loss, classes=C, layer=layer)
                assert tuple(row["approximation"] for row in rows) == tables[0].names
                for row in rows:
                    a, b = (table[row["approximation"]].captured for table in tables)
                    assert row["captured"] == pytest.approx((a + b) / 2, rel=1e-12)
                    assert row["captured_error"] == pytest.approx(abs(a - b) / 2, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("setting", ["gaussian", "digits"])
def test_training_is_that_of_its_data(setting, loss, drawing, folder):
    network = trained(run(folder), approximations._task(run(folder), setting, loss))
    C, d = (6, 5) if setting == "gaussian" else (10, 64)
    x, y = datasets.gaussian(40, d, C) if setting == "gaussian" else datasets.digits(samples=40)
    assert torch.equal(network.x, x) and torch.equal(network.y, y)
    assert [len(t) for t in network.weights[0]] == [3, C] and network.weights[0][0].shape[1] == d
    rows = part(drawing, setting=setting, loss=loss)
    steps = sorted({row["step"] for row in rows})
    assert (steps[0], steps[-1]) == (0, 40) and len(steps) == 10
    losses = {row["step"]: row["training_loss"] for row in rows}
    assert losses[40] < losses[0]
    for step in (0, 40):
        H = one_hidden(*network.weights[step], x, y, loss=loss)
        for layer in H.layers:
            table = H[layer].approximations()
            for row in part(drawing, setting=setting, loss=loss, step=step, layer=layer):
                expected = table[row["approximation"]]
                for key in ("captured", "captured_error", "population"):
                    value = float("nan") if row[key] is None else row[key]
                    wanted = expected.sampling_error if key == "captured_error" else getattr(expected, key)
                    assert value == pytest.approx(wanted, rel=1e-12, nan_ok=True), key


def test_what_is_seen(drawing):
    assert len(drawing.seen) == len(drawing.tables) == 2 * 2 and set(drawing.pictures) == {"", "mse"}
    assert len(drawing.rows) == 10 * 2 * 2 * (2 + 2 * 10)
    (text,) = (text for text in drawing.seen if text.startswith("MSE, output layer: "))
    alike = "block-diagonal and 4 others (1.000)"  # 2 I (x) A, (9)
    assert f" at initialization by {alike} at C = 2, {alike} at C = 6; after training by {alike} on Gaussian" in text
    (text,) = (text for text in drawing.seen if text.startswith("cross-entropy, hidden layer: "))
    about = {"setting": "digits", "loss": "cross_entropy", "layer": "hidden"}
    best = max(part(drawing, **about, step=40), key=lambda row: row["captured"])
    assert text.endswith(f"{best['approximation']} ({best['captured']:.3f}) on digits.")
    header, *lines = drawing.tables["cross-entropy, hidden layer: share of ||H||_F^2 captured, first to last"]
    assert header == ["", "C = 2 to 6", "training, Gaussian", "training, digits"]
    for name, *shares in lines:
        first, *_, last = (row["captured"] for row in part(drawing, **about, approximation=name))
        assert shares[2] == f"{first:.3f} to {last:.3f}"
    assert [line[0] for line in lines] == list(approximations._KINDS)
    assert all(max(map(len, text.splitlines())) < 80 for text in drawing.text().split("\n\n")[:-1])
    assert len(drawing.notes) == 4 and "cross-entropy, digits: the loss falls from " in "\n".join(drawing.notes)


def test_pictures_show_every_share(drawing):
    for name, loss in (("", "cross_entropy"), ("mse", "mse")):
        axes = drawing.pictures[name].axes
        assert len(axes) == 6 and len({ax.get_ylim() for ax in axes}) == 1
        shown = np.concatenate([bars.lines[0].get_ydata() for ax in axes for bars in ax.containers])
        expected = [row["captured"] for row in drawing.rows if row["loss"] == loss]
        np.testing.assert_array_equal(np.sort(shown), np.sort(expected))
    assert len({kind[:2] for kind in approximations._KINDS.values()}) == 10
    assert len({marker for _, marker, _ in approximations._KINDS.values()}) == 10


def test_what_is_there_is_not_computed_again(drawing, folder, monkeypatch):
    calls = []
    shares = approximations._shares
    monkeypatch.setattr(approximations, "_shares", lambda *args: calls.append(args) or shares(*args))
    again = FIGURES["approximations"].draw(run(folder))
    assert again.rows == drawing.rows and not calls
    more = FIGURES["approximations"].draw(run(folder, classes=[2, 4, 6]))  # one more size, at initialization alone
    assert len(calls) == 2 and len(more.rows) == len(drawing.rows) + 10 * 2 * 2
    assert [row for row in more.rows if row["classes"] != 4] == list(drawing.rows)


def test_without_scikit_learn_nothing_is_computed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        FIGURES["approximations"].draw(run(tmp_path))
    assert not list(tmp_path.rglob("*.npz"))
