"""The figure `fanout`: ranks beside curvatures from autograd, correlations, what is seen, continuing."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from hessext import datasets, feed_forward, figures, theory
from hessext._random import lecun
from hessext.figures import FIGURES, Run
from hessext.figures import _fanout_networks as networks
from hessext.figures import _fanout_statistics as statistics

pytest.importorskip("matplotlib")

SMALL = {
    "layers": [2, 4],
    "hidden": [4, 12],
    "classes": [2, 20],
    "networks": 6,
    "samples": 16,
    "features": 6,
    "draws": 3,
    "steps": 30,
    "learning_rate": 1e-2,
}


def run(path, **options):
    figure = FIGURES["fanout"]
    parameters = figures._parameters.completed(SMALL | options, figure.parameters(), "fanout")
    return Run(figure, parameters, path, False, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fanout")


@pytest.fixture(scope="module")
def drawing(folder):
    return FIGURES["fanout"].draw(run(folder))


def curvatures(weights, x, y, loss, layer):
    """S_n (N, K, K) at the outputs of a layer, from autograd, without the divisor of the mean."""

    def one(z, label):
        for W in weights[layer + 1 :]:
            z = W @ z.relu()
        if loss == "cross_entropy":
            return cross_entropy(z[None], label[None])
        return (z - one_hot(label, len(z))).square().sum()

    for W in weights[:layer]:
        x = (x @ W.T).relu()
    places = zip(x @ weights[layer].T, y, strict=True)
    return torch.stack([torch.autograd.functional.hessian(lambda z, t=t: one(z, t), z) for z, t in places])


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("widths", [(5, 7), (4, 6, 3), (6, 3, 5, 4)])
def test_ranks_are_those_of_autograd(widths, loss):
    x, y = datasets.gaussian(8, 5, widths[-1], dtype=torch.float64)
    weights = lecun(*zip(widths, (5, *widths), strict=False), seed=1, dtype=torch.float64)
    found, a = networks.measured(weights, x, y, loss), x
    H = feed_forward(weights, x, y, loss=loss)
    for layer, (on, off, rank, pair_rank) in enumerate(found.tolist()):
        S = curvatures(weights, x, y, loss, layer + 1)
        traces, grams = torch.einsum("nii->n", S), torch.einsum("nij,mij->nm", S, S)
        overlaps = (a @ a.T) ** 2
        assert (on, off) == H[str(layer)].ratio()[:2]
        assert rank == pytest.approx(float(traces.mean() ** 2 / (S**2).sum((1, 2)).mean()), rel=1e-10)
        pairs = float((torch.outer(traces, traces) * overlaps).sum() / (grams * overlaps).sum())
        assert pair_rank == pytest.approx(pairs, rel=1e-10)
        a = (a @ weights[layer].T).relu()


def test_correlations():
    rng = np.random.default_rng(0)
    rank, own = np.exp(rng.standard_normal((2, 60)))
    ratios = {"power": rank**-2, "own": rank**-1 * own**0.5, "noise": np.exp(rng.standard_normal(60))}
    found = {}
    for name, ratio in ratios.items():
        columns = {"network": np.arange(60) // 2, "rank": rank, "own": own, "ratio": ratio, "same": np.full(60, 7)}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        found[name] = statistics.correlation(rows, "rank"), statistics.correlation(rows, "own", "rank")
        expected = np.corrcoef(np.log(rank), np.log(ratio))[0, 1]
        assert found[name][0].value == pytest.approx(expected, rel=1e-9)
        assert np.isnan(statistics.correlation(rows, "same").value)
    assert found["power"][0].value == pytest.approx(-1) and found["power"][0].error < 1e-9
    assert found["own"][1].value == pytest.approx(1)
    assert abs(found["noise"][0].value) < 4 * found["noise"][0].error < 1


def test_networks_vary_independently(folder):
    this = run(folder, networks=400)
    shapes = list(networks.shapes(this))
    drawn = [shape.widths for shape in shapes if shape.kind == "random"]
    assert len(drawn) == 400 and {len(widths) for widths in drawn} == {2, 4}
    pairs = np.log([widths[-2:] for widths in drawn])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.2 and set(np.exp(pairs).round().ravel()) == {2, 4, 12, 20}
    assert [shape.widths for shape in shapes if shape.kind == "uniform"] == [(12, 20), (12, 12, 12, 20)]
    assert [shape.widths for shape in shapes if shape.kind == "bottleneck"] == [
        (4, 12, 12, 20),
        (12, 4, 12, 20),
        (12, 12, 4, 20),
    ]
    assert drawn[:6] == [shape.widths for shape in networks.shapes(run(folder))][:6]  # more extend the list


def test_rows(drawing, folder):
    this = run(folder)
    shapes = list(networks.shapes(this))
    hidden = [len(shape.widths) - 1 for shape in shapes]
    steps = networks.training_steps(30)
    assert steps == [0, 3, 9, 30]
    assert len(drawing.rows) == 2 * (sum(hidden) + len(steps) * sum(hidden[:6]))
    for row in drawing.rows:
        widths = shapes[row["network"]].widths
        assert (row["own"], row["next"], row["classes"]) == (*widths[row["layer"] - 1 :][:2], widths[-1])
        assert ("theory" in row) == (row["data"] == "gaussian" and row["loss"] == "mse")
        if row["loss"] == "mse" and row["layer"] == row["layers"] - 1:
            assert row["rank"] == row["classes"]
    first = next(row for row in drawing.rows if "theory" in row)
    widths = shapes[first["network"]].widths
    expected = theory.deep_mse(None, widths, N=16, d=6)[0]
    assert (first["theory"], first["theory_error"]) == (expected.value.ratio, expected.error.ratio)
    draws = []
    for draw in range(3):
        weights = shapes[first["network"]].weights(this, draw)
        x, y = datasets.gaussian(16, 6, widths[-1], seed=draw)
        draws.append(feed_forward(weights, x, y, loss="mse")["0"].ratio()[:2])
    assert first["diagonal"] == pytest.approx(np.mean(draws, 0)[0], rel=1e-6)
    assert first["ratio"] == pytest.approx(np.divide(*np.mean(draws, 0)[::-1]), rel=1e-6)


def test_training_learns(drawing):
    for loss in ("mse", "cross_entropy"):
        rows = [row for row in drawing.rows if row["loss"] == loss and row["data"] == "clustered" and row["layer"] == 1]
        losses = {step: np.mean([row["training_loss"] for row in rows if row["step"] == step]) for step in (0, 9, 30)}
        assert losses[30] < losses[9] < losses[0]
        accuracy = [np.mean([row["accuracy"] for row in rows if row["step"] == step]) for step in (0, 30)]
        assert accuracy[0] < accuracy[1]


def test_what_is_seen(drawing):
    """At initialization the rank decides, and neither the layer's own width nor the next one's."""
    for loss in ("mse", "cross_entropy"):
        comparison = statistics.compared(drawing.rows, loss)
        values = {name: found.value for name, found in comparison.found.items()}
        assert values["rank"] < -0.7
        assert max(abs(values["own"]), abs(values["next"])) < abs(values["rank"])
    text = "\n".join(drawing.seen)
    assert "MSE, at initialization, " in text and "cross-entropy, after 30 steps, " in text
    assert "measured over theory.deep_mse is" in text and text.splitlines()[-1].startswith("Beside the conjecture: ")
    assert set(drawing.pictures) == {"", "shapes", "training"}


def test_more_networks_continue(drawing, folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (folder / "steps").iterdir()}
    calls = []
    monkeypatch.setattr(figures._fanout, "trained", lambda *args: calls.append(args) or networks.trained(*args))
    again = FIGURES["fanout"].draw(run(folder))
    assert again.rows == drawing.rows and not calls
    FIGURES["fanout"].draw(run(folder, networks=7))
    assert len(calls) in (0, 2)  # the seventh network may have the shape of another
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^hidden: expected layers of at least 2 units"):
        FIGURES["fanout"].draw(run(tmp_path, hidden=[1], networks=2, layers=[2]))
