"""What notebooks show of a Hessian, and what torch.load takes of it by default."""

import base64
import re
import zlib

import pytest
import torch
from torch import nn

import hessext
from hessext.matrix import notebook


def data(N=30, d=6):
    torch.manual_seed(0)
    return torch.randn(N, d), torch.randint(3, (N,))


def model(name="<b>"):
    torch.manual_seed(1)
    layers = nn.Sequential()
    layers.add_module(name, nn.Linear(6, 4))
    layers.add_module("act", nn.Tanh())
    layers.add_module("out", nn.Linear(4, 3, bias=False))
    return layers


def pixels(page):
    """The picture (height, width)."""
    raw = base64.b64decode(re.search('base64,([^"]+)', page)[1])
    width, height = (int.from_bytes(raw[k : k + 4], "big") for k in (16, 20))
    start = raw.index(b"IDAT") + 4
    size = int.from_bytes(raw[start - 8 : start - 4], "big")
    lines = torch.tensor(list(zlib.decompress(raw[start : start + size]))).view(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_table_and_picture():
    H = hessext.hessian(model(), *data())
    page = H._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;.weight" in page  # a name is no markup
    assert "<td>4 × 4</td><td>6 × 6</td><td>24 × 24</td>" in page
    norms = H.norms()
    expected = ((norms / norms.max()).log10() / -4).clamp(0, 1) * 255
    assert (pixels(page) - expected).abs().max() <= 0.51
    part = H["out.weight"]
    assert pixels(part._repr_html_()).shape == (3, 3) and "out.weight × out.weight" in part._repr_html_()


def test_a_large_grid_is_pooled(monkeypatch):
    monkeypatch.setattr(notebook, "_PIXELS", 2)
    x, y = data()
    page = hessext.linear(torch.randn(5, 6), x, y)._repr_html_()
    assert pixels(page).shape == (2, 2) and pixels(page).min() == 0  # the largest is black


def test_what_is_not_cheap_has_no_picture(monkeypatch):
    x, y = data()
    read = []

    class Loader:
        def __iter__(self):
            read.append(1)
            yield x, y

    H = hessext.hessian(model(), Loader())
    count = len(read)
    one, two = (hessext.layer(model("in"), names, x, y) for names in ("in", ["in", "out"]))
    monkeypatch.setattr(notebook, "_WORK", 1)
    for page in (H._repr_html_(), hessext.linear(torch.randn(5, 6), x, y)._repr_html_(), one._repr_html_()):
        assert "<img" not in page and "block_norm_map" in page
    assert len(read) == count
    assert "out.weight" in two._repr_html_()


def test_nothing_fails_unasked():
    x, y = data()
    H = hessext.linear(torch.randn(3, 6), x, y)
    x += 1
    assert "No norms: " in H._repr_html_() and "changed in place" in H._repr_html_()
    zero = hessext.linear(torch.randn(3, 6), torch.zeros(4, 6))
    assert "the largest is 0." in zero._repr_html_()


def test_many_layers_are_cut(monkeypatch):
    monkeypatch.setattr(notebook, "_ROWS", 2)
    page = hessext.hessian(model("in"), *data())._repr_html_()
    assert "and 1 more" in page and "<td>out.weight</td>" not in page


X, Y = data()
HESSIANS = {
    "linear": lambda: hessext.linear(torch.randn(3, 6), X, Y, loss=nn.CrossEntropyLoss(weight=torch.rand(3))),
    "mse": lambda: hessext.linear(torch.randn(3, 6), X, loss="mse"),
    "labels": lambda: hessext.linear(torch.randn(3, 6), X, torch.rand(30, 3), loss="binary_cross_entropy"),
    "network": lambda: hessext.one_hidden(torch.randn(4, 6), torch.randn(3, 4), X, Y, activation=nn.LeakyReLU(0.3)),
    "module": lambda: hessext.hessian(model("in"), X, Y).gauss_newton(),
    "head": lambda: hessext.head(model("in"), "out", X, Y),
}


@pytest.mark.parametrize("name", HESSIANS)
def test_load(name, tmp_path):
    """Results by default; what the core reads only where the file is trusted."""
    H = HESSIANS[name]()
    B = H[H.layers[0]]
    results = B.ratio(), B.row_norms(), B.approximations()
    torch.save(results, tmp_path / "results.pt")
    assert str(torch.load(tmp_path / "results.pt", weights_only=True)) == str(results)
    torch.save([H, B], tmp_path / "saved.pt")
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "saved.pt", weights_only=True)
    again, part = torch.load(tmp_path / "saved.pt", weights_only=False)
    assert torch.equal(again.dense(), H.dense()) and repr(again) == repr(H)
    assert torch.equal(part.norms(), B.norms())


def test_load_refuses_what_has_a_model_in_it(tmp_path):
    torch.save(hessext.layer(model("in"), "in", *data()), tmp_path / "saved.pt")
    with pytest.raises(Exception, match="weights_only"):
        torch.load(tmp_path / "saved.pt", weights_only=True)
    assert torch.load(tmp_path / "saved.pt", weights_only=False)["in"].grid == (4, 4)
