"""Bars of long calls: off by default, one for each call, as far as its work is."""

import contextlib
import io
import pickle
import sys
import time
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from tqdm import tqdm

import hessext
from hessext import _progress, theory
from hessext._progress import call, shares, steps
from hessext.plot import heat_map


class Bar:
    """In place of the bar: what it is told."""

    made: ClassVar[list] = []

    def __init__(self, name):
        self.name, self.places, self.counts, self.closed = name, [0.0], [], False
        self.start, self.size = 0.0, 1.0
        Bar.made.append(self)

    def at(self, place):
        self.places.append(max(place, self.places[-1]))

    def count(self, text):
        self.counts.append(text)

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    monkeypatch.setattr(_progress, "_Call", Bar)
    Bar.made = []
    return Bar


def moved(bar):
    """The different places of a bar."""
    return [float(f"{place:.6g}") for place in dict.fromkeys(bar.places)]


# ------------------------------------------------------------------------------------------------------ the shares


def test_steps_follow_the_work_and_those_within_divide_a_step():
    with hessext.progress(), call("outer"):
        for n in steps([1, 3], float):
            for _ in steps(range(n)):
                with call("inner"):  # is part of the outer one
                    list(steps(range(1)))
    (bar,) = Bar.made
    assert bar.name == "outer" and bar.closed
    assert moved(bar) == [0, 0.25, 0.5, 0.75, 1]


def test_stages():
    with hessext.progress(), call("outer"), shares(4) as begin:
        begin(1)
        list(steps(range(2)))
        begin(3)
        list(steps(iter("abc"), total=3))
    assert moved(Bar.made[0]) == [0, 0.125, 0.25, 0.5, 0.75, 1]


def test_a_bar_never_goes_back():
    with hessext.progress(), call("outer"):
        for _ in steps(range(2)):
            list(steps(range(4)))
            list(steps(range(2)))  # of the same share
        list(steps(range(2), total=1))  # more than was said
    assert Bar.made[0].places == sorted(Bar.made[0].places) and Bar.made[0].places[-1] == 1


def test_what_has_no_length_is_counted():
    with hessext.progress(), call("outer"):
        list(steps(iter("abc"), unit="letters"))
    assert Bar.made[0].counts == ["1 letters", "2 letters", "3 letters", ""] and moved(Bar.made[0]) == [0]


def test_items_are_not_kept():
    """The item before is gone when the next one is made."""

    class Item:
        here = 0

        def __init__(self):
            assert not Item.here
            Item.here += 1

        def __del__(self):
            Item.here -= 1

    def items():
        for _ in range(3):
            item = Item()
            yield item
            del item

    with hessext.progress(), call("outer"):
        for item in steps(items(), total=3):
            del item
        for item in steps(items()):
            del item


# ------------------------------------------------------------------------------------------------------ on and off


def linear(N=30, C=5, d=4):
    torch.manual_seed(0)
    return hessext.linear(torch.randn(C, d), torch.randn(N, d), torch.randint(C, (N,)))


def test_off_by_default_and_again_afterwards():
    H = linear()
    H["output"].ratio()
    with hessext.progress():
        with hessext.progress(False):
            H["output"].ratio()
        assert not Bar.made
        H["output"].ratio()
    H["output"].ratio()
    assert [bar.name for bar in Bar.made] == ["ratio"]


def test_steps_are_the_items_themselves_where_nothing_is_shown():
    items = [1, 2]
    assert steps(items) is items
    with hessext.progress():
        assert steps(items) is items  # no call is at work
        with hessext.progress(False), call("outer"):
            assert steps(items) is items


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted(error):
    @_progress.as_call
    def outer():
        for _ in steps(range(3)):
            for _ in steps(range(3)):
                raise error

    with hessext.progress():
        with pytest.raises(error):
            outer()
        list(steps(range(3)))
        linear()["output"].norms()
    assert all(bar.closed for bar in Bar.made) and [bar.name for bar in Bar.made] == ["outer", "linear", "norms"]


def test_first_rank_alone(monkeypatch):
    for rank, names in ((1, []), (0, ["ratio"])):
        H = linear()
        with monkeypatch.context() as patch:
            patch.setattr(_progress.dist, "is_initialized", lambda: True)
            patch.setattr(_progress.dist, "get_rank", lambda rank=rank: rank)
            with hessext.progress():
                H["output"].ratio()
        assert [bar.name for bar in Bar.made] == names


def test_sweeps_show_on_the_first_rank_alone(monkeypatch, capsys):
    monkeypatch.setattr(_progress.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(_progress.dist, "get_rank", lambda: 1)
    hessext.sweep(2, classes=[2, 3], samples=6, features=4, draws=3, workers=1)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------- the calls


def chain(gelu=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU() if gelu else nn.ReLU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))


def data(N=40):
    torch.manual_seed(1)
    return torch.randn(N, 6), torch.randint(3, (N,))


def pieces(monkeypatch):
    """Make pieces of loops small, as those of large data are in number."""
    from hessext.autograd import _truth
    from hessext.matrix import assemble, closed_curvature, gram, norms, other_classes, softmax_gram

    monkeypatch.setattr(_truth, "CHUNK_BYTES", 1 << 17)
    for module, name in ((norms, "_PAIRS"), (norms, "_WORK"), (other_classes, "_TILE")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(gram, "_SQUARES", 1 << 12)
    monkeypatch.setattr(softmax_gram, "_WORK", 1 << 10)
    monkeypatch.setattr(assemble, "_ENTRIES", 1)
    monkeypatch.setattr(closed_curvature, "ENTRIES", 1 << 10)


CALLS = {
    "ratio": lambda H: H["4"].ratio(),
    "norms": lambda H: H.norms(),
    "row_norms": lambda H: H["4"].row_norms(),
    "dense": lambda H: H.dense(),
    "diagonal": lambda H: H["4"].diagonal(),
    "approximations": lambda H: H["4"].approximations(),
    "shares": lambda H: H.shares(),
    "solve_block_diagonal": lambda H: H.solve_block_diagonal(torch.ones(H.shape[0]), 1.0),
    "eigh_blocks": lambda H: H.eigh_blocks(),
    "heat_map": heat_map,
    "check": hessext.autograd.check,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(monkeypatch, name):
    pieces(monkeypatch)
    H = hessext.hessian(chain(), *data())
    with hessext.progress():
        CALLS[name](H)
    (bar,) = Bar.made
    assert bar.name == name and bar.closed
    assert len(moved(bar)) > 3 and bar.places[-1] == pytest.approx(1)


def test_what_the_residual_adds_far_away_is_half_of_a_dense_part(monkeypatch):
    from hessext.matrix import far_residual

    monkeypatch.setattr(far_residual, "_PIECE", 1 << 8)
    H = hessext.hessian(chain(), *data())
    with hessext.progress():
        H["0", "4"].dense()
    (bar,) = Bar.made
    assert 0.5 in moved(bar) and len([place for place in moved(bar) if 0.5 < place < 1]) > 2


@pytest.mark.parametrize("name", ["trace", "diagonal"])
def test_layers_are_steps_of_what_is_one_for_each(monkeypatch, name):
    from hessext.matrix import assemble

    working, places = getattr(assemble, name), []

    def spy(part):
        places.append(Bar.made[-1].places[-1])
        return working(part)

    monkeypatch.setattr(assemble, name, spy)
    with hessext.progress():
        getattr(hessext.hessian(chain(), *data()), name)()
    assert len(places) == 6 and places == sorted(set(places)) and places[-1] < 1


@pytest.mark.parametrize("name", ["diagonal", "trace", "solve_block_diagonal", "eigh_blocks"])
def test_several_layers_are_one_call(name):
    H = hessext.layer(chain(), ["0", "2"], *data())
    Bar.made = []
    arguments = (torch.ones(H.shape[0]), 1.0) if name.startswith("solve") else ()
    with hessext.progress():
        getattr(H, name)(*arguments)
    (bar,) = Bar.made
    assert bar.name == name and bar.closed and 0.5 in moved(bar) and bar.places[-1] == 1


@pytest.mark.parametrize(
    "make", [lambda H: H["4"].ratio(), lambda H: H["0"].ratio(), lambda H: H["4"].approximations()]
)
def test_results_do_not_depend_on_it(monkeypatch, make):
    pieces(monkeypatch)
    H = hessext.hessian(chain(), *data())
    before = make(H)
    with hessext.progress():
        assert str(make(H)) == str(before)


def test_layer_reads_batches_and_goes_through_its_tail():
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    with hessext.progress():
        H = hessext.layer(chain(), ["0", "2"], loader)
        H["0"].ratio()
    reading, ratio = Bar.made
    assert reading.name == "layer" and moved(reading) == [0, 0.25, 0.5, 0.75, 1]
    assert ratio.name == "ratio" and len(moved(ratio)) > 4 and ratio.places[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["hidden_ce", "output_ce", "cross_ce"])
def test_theory(name):
    with hessext.progress():
        getattr(theory, name)(*(() if name == "output_ce" else (0.5,)), 3, 4, draws=4, points=16)
    (bar,) = Bar.made
    assert bar.name == name and {0.25, 0.5, 0.75, 1} <= set(moved(bar))


# --------------------------------------------------------------------------------------------------------- batches


COUNTED = ["1 batches", "2 batches", "3 batches", "4 batches", ""]


class Stream(IterableDataset):
    """Of no known length."""

    def __iter__(self):
        return iter(zip(*data(), strict=True))


def test_a_loader_without_a_length_is_counted():
    with hessext.progress():
        H = hessext.hessian(chain(), DataLoader(Stream(), batch_size=10))
        H.dense()
    assert Bar.made[-1].name == "dense" and Bar.made[-1].counts == COUNTED


def test_tqdm_around_batches_shows_every_pass(capsys):
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    H = hessext.hessian(chain(), tqdm(loader, "images"))
    expected = hessext.hessian(chain(), x, y)
    torch.testing.assert_close(H.dense(), expected.dense())
    torch.testing.assert_close(H.norms(), expected.norms())
    H.norms()  # of what is kept
    dense, kept = Bar.made
    assert dense.name == kept.name == "images" and dense.counts == kept.counts == COUNTED
    assert len(moved(dense)) > 10 and dense.places[-1] == pytest.approx(1)  # parts of the one piece that is formed
    assert pickle.loads(pickle.dumps(H)).shape == H.shape  # which a bar is not


@pytest.mark.parametrize("ask", [lambda x: hessext.hessian(chain(), x), lambda x: hessext.layer(chain(), "0", x)])
@pytest.mark.parametrize("disable", [True, False])
def test_a_tqdm_around_nothing(ask, disable):
    with pytest.raises(TypeError, match=r"^x: expected batches, or tqdm around them, .*; got a tqdm around nothing$"):
        ask(tqdm(total=3, disable=disable, file=io.StringIO()))


class Own(tqdm):
    """A bar that goes through what it makes itself."""

    def __iter__(self):
        x, y = data()
        for batch in zip(x.split(10), y.split(10), strict=True):
            yield batch
            self.update(1)


@pytest.mark.parametrize("around", [{"total": 3}, {"iterable": [None]}], ids=str)
def test_a_tqdm_with_an_iter_of_its_own(around):
    expected, own = hessext.hessian(chain(), *data()), Own(**around, file=io.StringIO())
    torch.testing.assert_close(hessext.hessian(chain(), own).dense(), expected.dense())
    torch.testing.assert_close(hessext.layer(chain(), "0", own).dense(), hessext.layer(chain(), "0", *data()).dense())


# ------------------------------------------------------------------------------------------------- the bar itself


def shown_by(monkeypatch, delay):
    monkeypatch.undo()
    monkeypatch.setattr(_progress, "_DELAY", delay)
    found = io.StringIO()
    with contextlib.redirect_stderr(found), hessext.progress(), call("name"):
        for _ in steps(range(4)):
            time.sleep(0.12)
    return found.getvalue()


@pytest.mark.parametrize("disable", [True, None])  # None: where stderr is no terminal
def test_a_disabled_tqdm_around_batches_shows_nothing(disable):
    loader = DataLoader(TensorDataset(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), batch_size=2)
    H = hessext.linear(torch.randn(3, 3), tqdm(loader, disable=disable))
    assert H["output"].diagonal().shape == (9,) and not Bar.made


def test_what_is_shown(monkeypatch):
    text = shown_by(monkeypatch, 0)
    assert "name:  25%|" in text and "name:  75%|" in text and "<00:00" in text and text.endswith("\r")
    assert not shown_by(monkeypatch, 60)


def test_what_was_counted_is_not_shown_of_what_comes_after(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_progress, "_DELAY", 0)
    found = io.StringIO()
    with contextlib.redirect_stderr(found), hessext.progress(), call("name"):
        for _ in steps(iter("ab"), unit="letters"):
            time.sleep(0.12)
        for _ in steps(range(2)):
            time.sleep(0.12)
    counting, _, later = found.getvalue().partition(" 50%|")
    assert "2 letters" in counting and later and "letters" not in later


def test_command_line_shows_in_terminals_alone(monkeypatch, capsys):
    from hessext import cli

    arguments = ["approximations", "--classes", "3", "--samples", "8", "--features", "3", "--draws", "2"]
    assert cli.main(arguments) == 0 and not Bar.made
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(arguments) == 0
    assert [bar.name for bar in Bar.made] == ["draws"] and 0.5 in moved(Bar.made[0])
