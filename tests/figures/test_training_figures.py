"""Figures with a training or a comparison of data: findings as numbers, captions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hessext import datasets, figures, one_hidden
from hessext._random import lecun
from hessext.figures import _forces, _frame, _snapshots, _training

pytest.importorskip("matplotlib")

SIZES = {"classes": 40, "samples": 400, "features": 40, "hidden": 8, "steps": 400, "learning_rate": 5e-3}
LOSSES = ("mse", "cross_entropy")


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Pictures take longer than the numbers, most of it their layout."""
    whole = _frame._picture

    def coarse(picture, kind):
        picture.set_layout_engine("none")
        return whole(picture, kind) if kind == "png" else b"%PDF"

    monkeypatch.setattr(_frame, "DPI", 20)
    monkeypatch.setattr(_frame, "_picture", coarse)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder: the figures share their trainings."""
    return tmp_path_factory.mktemp("figures")


def draw(name, path, **options):
    return figures.run(name, out=path, progress=False, **options)


def network(loss, N, d, m, C, dtype=torch.float32):
    x, y = datasets.gaussian(N, d, C, dtype=dtype)
    return one_hidden(*lecun((m, d), (C, m), seed=0, dtype=dtype), x, y, loss=loss)


# ------------------------------------------------------------------------------------------------------- the forces


@pytest.mark.parametrize("loss", LOSSES)
def test_forces_are_those_of_the_dense_matrix(loss):
    m, d, C = 3, 5, 4
    H = network(loss, 9, d, m, C, torch.float64)
    found = _forces.forces(H)
    total = H.dense().square().sum()
    shares = {"cross": H, "residual": H.residual(), "gauss_newton": H.gauss_newton()}
    for name, part in shares.items():
        share = 2 * part.dense()[: m * d, m * d :].square().sum() / total
        assert getattr(found, name) == pytest.approx(share.item(), rel=1e-12)
    H_wv = H["hidden", "output"]
    predicted = sum(H_wv.block(i, j)[:, i].square().sum() for i in range(m) for j in range(C))
    assert found.columns == pytest.approx((predicted / H_wv.dense().square().sum()).item(), rel=1e-12)
    assert found.hidden == H["hidden"].ratio().ratio and found.output == H["output"].ratio().ratio


@pytest.mark.parametrize("loss", LOSSES)
def test_residual_lies_in_the_predicted_columns(loss):
    energy = _forces.column_energy(network(loss, 30, 6, 4, 5).residual()["hidden", "output"])
    assert energy.trace() == energy.sum() > 0


def test_stripes_at_initialization():
    """C = 500: under cross-entropy nearly all of H_wv is in its predicted columns, the rest as small as predicted."""
    N, d, m, C = 1000, 100, 8, 500
    ce, mse = (_forces.forces(network(loss, N, d, m, C)) for loss in ("cross_entropy", "mse"))
    assert ce.columns > 0.98 and mse.columns < 0.8
    assert ce.cross > 0.1 and mse.cross < 0.03 * ce.cross
    assert ce.gauss_newton < 0.03 * ce.residual
    assert mse.gauss_newton == pytest.approx(mse.residual, rel=0.1)
    for found in (ce, mse):
        assert found.hidden < 0.005 and found.output < 1e-4


def test_stripes_vanish_along_training(out):
    """C = 500 under cross-entropy: from nearly all of H_wv to less than half, falling once the loss does."""
    task = _training.Task("cross_entropy", 500, 1000, 50, 8, 300, 0.01, 0, "float32")
    this = _frame.Run(SimpleNamespace(stem="test"), {}, out, quick=False, progress=False)
    network = _training.trained(this, task)
    found = [_forces.forces(network.hessian(step)) for step in _training.snapshots(task.steps)]
    columns = np.array([one.columns for one in found])
    assert columns[0] > 0.9 and columns[-1] < 0.5
    assert (np.diff(columns) < 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_theory_at_initialization(loss):
    task = _training.Task(loss, 300, 2000, 200, 8, 1, 1e-3, 0, "float32")
    x, y = task.data()
    found, expected = _forces.forces(one_hidden(*task.weights(), x, y, loss=loss)), _forces.at_initialization(task)
    assert found.hidden == pytest.approx(expected.hidden, rel=0.1)
    assert found.output == pytest.approx(expected.output, rel=0.1)
    assert found.residual == pytest.approx(expected.residual, rel=0.3)
    assert expected.residual > (20 if loss == "cross_entropy" else 0.99) * expected.gauss_newton


def test_forces_along_training(out):
    drawing = draw("forces", out, **SIZES)
    rows = {loss: [row for row in drawing.rows if row["training"] == loss] for loss in LOSSES}
    for loss in LOSSES:
        assert [row["step"] for row in rows[loss]] == _training.moments(SIZES["steps"])
        assert max(row["hidden"] for row in rows[loss]) < 0.1 and max(row["output"] for row in rows[loss]) < 0.01
        first, last = rows[loss][0], rows[loss][-1]
        assert last["loss"] < 0.7 * first["loss"]
        assert last["residual"] < 0.2 * first["residual"] and last["cross"] < 0.5 * first["cross"]
    columns = np.array([row["columns"] for row in rows["cross_entropy"]])
    assert columns[0] > 0.85 and columns[-1] < 0.5
    falling = np.array([row["loss"] for row in rows["cross_entropy"]]) < 0.9 * rows["cross_entropy"][0]["loss"]
    residual = np.array([row["residual"] for row in rows["cross_entropy"]])[falling]
    assert len(residual) > 10 and (np.diff(residual) < 0.02 * residual[0]).all()
    assert max(row["cross"] for row in rows["mse"]) < 0.3 * max(row["cross"] for row in rows["cross_entropy"])
    assert not any(row["output"] for row in rows["mse"])


# ---------------------------------------------------------------------------------------------------- the snapshots


@pytest.mark.parametrize(("name", "loss"), [("2", "mse"), ("3", "cross_entropy")])
def test_snapshots(name, loss, out):
    drawing = draw(name, out, **SIZES)
    steps = [0, 100, 200, 400]
    assert [row["step"] for row in drawing.rows] == steps
    curves = draw("forces", out, **SIZES).rows
    for row in drawing.rows:
        (same,) = (other for other in curves if (other["training"], other["step"]) == (loss, row["step"]))
        assert {"training": loss, **row} == same
    task = _training.Task(loss, 40, 400, 40, 8, 400, 5e-3, 0, "float32")
    x, y = task.data()
    H = one_hidden(*task.weights(), x, y, loss=loss)
    whole = H.dense().abs().reshape(320 * 2, 640)
    assert drawing.arrays["hessian_0"].max() == whole.max()
    assert {drawing.arrays[f"hessian_{step}"].shape for step in steps} == {drawing.arrays["hessian_0"].shape}
    text = (out / f"figure{name}.md").read_text()
    for words in ("predicted columns", "step 400", "columns of the first 16 classes", "seed 0", "Adam", "largest of"):
        assert words in text
    assert len(drawing.seen) == 5 and all(
        (out / f"figure{name}.{kind}").stat().st_size for kind in ("png", "pdf", "csv")
    )


def test_stripes_are_those_of_the_matrix():
    H = network("cross_entropy", 30, 37, 3, 20)
    dense = H["hidden", "output"].dense().abs()
    image = _snapshots.stripes(H)
    cells = len(image) // 3
    assert image.shape == (3 * _snapshots.CELLS, 16 * 3)
    for i in range(3):
        rows = dense[37 * i : 37 * (i + 1), : 16 * 3].tensor_split(cells)
        expected = torch.stack([part.amax(0) for part in rows])
        torch.testing.assert_close(image[cells * i : cells * (i + 1)], expected, rtol=1e-4, atol=1e-7)


def test_losses(out):
    drawing = draw("13", out, **SIZES)
    for loss in LOSSES:
        assert len(drawing.arrays[loss]) == SIZES["steps"] + 1
        task = _training.Task(loss, 40, 400, 40, 8, 400, 5e-3, 0, "float32")
        (x, y), (W, V) = task.data(), task.weights()
        logits = torch.relu(x @ W.T) @ V.T
        if loss == "mse":
            start = (logits - torch.nn.functional.one_hot(y, 40)).square().sum(1).mean()
        else:
            start = torch.nn.functional.cross_entropy(logits, y)
        assert drawing.arrays[loss][0] == pytest.approx(start.item(), rel=1e-5)
    assert "Figure 2" not in drawing.seen[0] and drawing.seen[0].startswith("MSE: from ")


# --------------------------------------------------------------------------------------------------- figures 10 to 12


def test_collobert(tmp_path):
    """p (1 - p) falls, and with it diagonal and off-diagonal blocks alike: the ratio does not."""
    drawing = draw("10", tmp_path, samples=300, features=40, hidden=6, steps=600, learning_rate=0.01)
    rows = {loss: [row for row in drawing.rows if row["loss"] == loss] for loss in ("binary_cross_entropy", "mse")}
    first, last = rows["binary_cross_entropy"][0], rows["binary_cross_entropy"][-1]
    assert last["accuracy"] > 0.95 and last["curvature"] < 0.1 * first["curvature"]
    peak = max(row["off_diagonal"] for row in rows["binary_cross_entropy"])
    assert last["off_diagonal"] < 0.25 * peak
    for first, last in ((found[0], found[-1]) for found in rows.values()):
        assert last["ratio"] > 0.9 * first["ratio"] > 0.05
    assert all(row["curvature"] == pytest.approx(2) for row in rows["mse"])
    task = _training.Task("binary_cross_entropy", 1, 300, 40, 6, 600, 0.01, 0, "float32")
    (x, y), (W, V) = task.data(), task.weights()
    assert y.shape == (300, 1) and set(y.unique().tolist()) == {0.0, 1.0}
    z = x @ W.T
    p = torch.sigmoid(torch.relu(z) @ V.T)
    on = p * (1 - p) * (z > 0) * V  # (1): the sum over samples of p (1 - p) v_i v_j 1_i 1_j x x^T
    blocks = torch.einsum("ni,nj,na,nb->ijab", on, (z > 0) * V, x, x) / 300
    squares = blocks.square().sum((2, 3))
    off = (squares.sum() - squares.trace()) / 30
    assert rows["binary_cross_entropy"][0]["off_diagonal"] == pytest.approx(off.item(), rel=1e-4)
    assert rows["binary_cross_entropy"][0]["curvature"] == pytest.approx((p * (1 - p)).mean().item(), rel=1e-5)
    text = (tmp_path / "figure10.md").read_text()
    assert "p (1 - p) under cross-entropy and 2 under MSE" in text
    assert "before training" in text and "after training" in text


@pytest.mark.parametrize(
    ("name", "layers", "clusters"), [("11", ["hidden"], [40, 120]), ("12", ["hidden", "output"], [40])]
)
def test_clusters_do_not_matter_classes_do(name, layers, clusters, tmp_path):
    sizes = {"classes": [2, 40], "clusters": clusters, "samples": 300, "features": 40, "hidden": 6, "draws": 6}
    drawing = draw(name, tmp_path, **sizes)
    rate = {"hidden": 1, "output": 2}
    for layer in layers:
        ratio = {(row["clusters"], row["classes"]): row["ratio"] for row in drawing.rows if row["layer"] == layer}
        assert ratio.keys() == {(k, C) for k in (*clusters, "gaussian") for C in (2, 40)}
        for k in (*clusters, "gaussian"):
            assert ratio[k, 40] < 3 * ratio[k, 2] / 20 ** rate[layer]
            for classes in (2, 40):
                assert ratio[k, classes] == pytest.approx(ratio["gaussian", classes], rel=0.6)
    assert {row["layer"] for row in drawing.rows} == set(layers)
    for layer in layers:
        assert f"{layer}_C2_k40" in drawing.arrays
    assert (tmp_path / f"figure{name}-ratios.png").exists()
    assert "40 clusters: off/diag" in (tmp_path / f"figure{name}.md").read_text()


def test_fewer_clusters_than_classes(tmp_path):
    with pytest.raises(ValueError, match=r"^clusters: expected at least one per class, 9; got 5"):
        draw("11", tmp_path, classes=[9], clusters=[5], samples=20, features=4, hidden=2, draws=2)
