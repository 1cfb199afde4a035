"""Pictures show what they claim: the largest entry of every pixel, borders at the blocks, the stated limits."""

import re

import numpy as np
import pytest
import torch
from helpers.cases import Case, make_inputs

from hessext import BlockMatrix, linear, one_hidden, plot
from hessext.plot import _pool
from hessext.plot._page import page

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CASE = Case(31, 17, 5, 4, bias="ho")


def image(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def lines(figure, axis):
    """Positions of the borders across an axis, 0 for x."""
    return sorted({float(line.get_data()[axis][0]) for line in figure.axes[0].lines if _across(line, axis)})


def _across(line, axis):
    a, b = line.get_data()[axis]
    return a == b


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1000, 7), (2001, 1000), (1003, 4999)])
def test_no_entry_is_lost_to_pooling(shape):
    for r, c in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 3)):
        matrix = torch.full(shape, 1e-3)
        matrix[r, c] = -1.0
        shown = image(plot.heat_map(matrix))
        assert max(shown.shape) <= 1000
        assert (shown == 1).sum() == 1
        assert shown[r * shown.shape[0] // shape[0], c * shown.shape[1] // shape[1]] == 1


@pytest.mark.parametrize("row", [100, 333, 777])
def test_no_row_is_lost_on_a_picture_of_fewer_dots(row):
    matrix = torch.full((1000, 1000), 1e-3)
    matrix[row] = 1.0
    figure = plot.heat_map(matrix)
    figure.set_dpi(20)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    dots = np.asarray(canvas.buffer_rgba()).astype(int)[::-1, :, :3]  # from below, as matplotlib counts
    (left, bottom), (right, top) = figure.axes[0].get_window_extent().get_points().round().astype(int)
    column = dots[bottom + 2 : top - 2, (left + right) // 2]
    assert 50 < len(column) < 120
    assert np.ptp(column, 0).max() > 10


def test_hessian_is_laid_out_layer_by_layer():
    H = make_inputs(CASE, torch.float64).hessian()
    figure = plot.heat_map(H, limits=(1e-12, 10.0))
    hidden, cross, output = (H[k].dense() for k in ("hidden", ("hidden", "output"), "output"))
    expected = torch.cat([torch.cat([hidden, cross], 1), torch.cat([cross.T, output], 1)]).abs()
    assert np.array_equal(image(figure), expected.numpy())
    assert lines(figure, 0) == lines(figure, 1) == [18, 36, 54, 72, 77, 82, 87, 92]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["hidden", "output"]


def test_pixels_do_not_cross_blocks():
    H = make_inputs(CASE, torch.float64).hessian()
    figure = plot.heat_map(H["hidden"], max_pixels=20, limits=(1e-12, 10.0))  # 72 entries in fours, blocks of 18
    blocks = torch.nn.functional.pad(H["hidden"].dense().abs().reshape(4, 18, 4, 18), (0, 2, 0, 0, 0, 2))
    assert np.array_equal(image(figure), blocks.reshape(4, 5, 4, 4, 5, 4).amax((2, 5)).reshape(20, 20))
    assert lines(figure, 0) == [5, 10, 15]
    ax = figure.axes[0]
    assert ax.images[0].get_label() == ax.get_xlabel() == "|H|; a pixel is the largest of 4 x 4"


@pytest.mark.parametrize("blocks", [32, 33])
def test_borders_that_lie_too_close_are_not_drawn(blocks):
    H = linear(torch.ones(blocks, 2), torch.ones(1, 2), loss="mse")
    assert len(lines(plot.heat_map(H["output"]), 0)) == (31 if blocks == 32 else 0)


def test_small_blocks_beside_large_ones_are_not_veiled():
    g = torch.Generator().manual_seed(0)
    W, V, x = (torch.randn(shape, generator=g) for shape in ((4, 90), (10, 4), (6, 90)))
    figure = plot.heat_map(one_hidden(W, V, x, torch.arange(6), loss="cross_entropy"))
    assert lines(figure, 0) == lines(figure, 1) == [90, 180, 270, 360]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["hidden", "output"]


def test_maps_share_a_scale_and_a_bar():
    figure = Figure(layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, values in zip(axes, ([[1.0, 0.2]], [[1e-9, 3.0]], [[0.0, 50.0]]), strict=True):
        plot.heat_map(torch.tensor(values), ax=ax)
    assert len(figure.axes) == 6
    plot.share_scale(axes[:2])
    assert len(figure.axes) == 5
    first, second, alone = (ax.images[0] for ax in axes)
    assert first.norm is second.norm and first.colorbar is second.colorbar and alone.colorbar is not first.colorbar
    assert (first.norm.vmin, first.norm.vmax) == pytest.approx((3e-4, 3.0)) and first.colorbar.extend == "min"
    plot.share_scale(axes, limits=(1e-2, 10.0))
    assert len(figure.axes) == 4
    assert (alone.norm.vmin, alone.norm.vmax) == (1e-2, 10.0) and second.colorbar.extend == "both"
    both = Figure(layout="constrained").subplots(2, 2)
    for ax in both.flat:
        plot.heat_map(torch.tensor([[1.0, 0.2]]), ax=ax)
    plot.share_scale(both)
    assert len({ax.images[0].norm for ax in both.flat}) == 1
    assert [len({ax.images[0].colorbar for ax in row}) for row in both] == [1, 1] and len(both[0, 0].figure.axes) == 6
    with pytest.raises(ValueError, match=r"^axes: expected some on which heat_map"):
        plot.share_scale(Figure().subplots())
    with pytest.raises(TypeError, match=r"^axes: expected matplotlib's Axes; got int"):
        plot.share_scale([3])
    with pytest.raises(ValueError, match=r"^limits: expected"):
        plot.share_scale(both, limits=(1.0, 1.0))
    assert len(both[0, 0].figure.axes) == 6


def test_a_page_has_at_most_four_panels_beside_each_other():
    figure, axes = page(2, 7, 1.0)
    assert axes.shape == (2, 7) and len(figure.axes) == 14
    places = [[ax.get_subplotspec() for ax in row] for row in axes]
    assert [spec.colspan.start for spec in places[0]] == [0, 1, 2, 3, 0, 1, 2]
    assert [[spec.rowspan.start for spec in row] for row in places] == [[0] * 4 + [2] * 3, [1] * 4 + [3] * 3]


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_pooling(pooling):
    H = make_inputs(CASE, torch.float64).hessian()
    whole = torch.nn.functional.pad(H["hidden"].dense().abs().reshape(4, 18, 4, 18), (0, 2, 0, 0, 0, 2))
    cells = whole.reshape(4, 5, 4, 4, 5, 4)
    entries = torch.tensor([4.0, 4, 4, 4, 2])  # of a cell's side: blocks of 18 in fours
    expected = cells.amax((2, 5)) if pooling == "max" else cells.sum((2, 5)) / torch.outer(entries, entries)[:, None]
    pooled = plot.pool(H["hidden"], max_pixels=20, pooling=pooling)
    np.testing.assert_allclose(pooled, expected.reshape(20, 20), rtol=1e-12)
    figure = plot.heat_map(H["hidden"], pooled=pooled, pooling=pooling, max_pixels=20, limits=(1e-12, 10.0))
    assert np.array_equal(image(figure), pooled)
    label = figure.axes[0].images[0].get_label()
    assert label == f"|H|; a pixel is the {'largest' if pooling == 'max' else 'mean'} of 4 x 4"


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("budget", [0, 3 * 18 * 18 * 8])
def test_large_layers_are_pooled_in_rows_of_blocks(pooling, budget, monkeypatch):
    H = make_inputs(CASE, torch.float64).hessian()
    cross = H["output", "hidden"]
    expected = [plot.pool(part, max_pixels=20, pooling=pooling) for part in (H, H["hidden"], cross)]
    monkeypatch.setattr(_pool, "_FORMED", budget)
    formed = []
    for name in ("dense", "blocks"):
        whole = getattr(BlockMatrix, name)
        monkeypatch.setattr(
            BlockMatrix, name, lambda part, *pairs, whole=whole: formed.append(whole(part, *pairs)) or formed[-1]
        )
    for part, image in zip((H, H["hidden"], cross), expected, strict=True):
        np.testing.assert_allclose(plot.pool(part, max_pixels=20, pooling=pooling), image, rtol=1e-12)
    assert all(entries.nbytes <= budget or len(entries) == 1 for entries in formed)


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("budget", [0, 9 * 64, 65 * 64])
def test_cells_larger_than_blocks_are_put_together(pooling, budget, monkeypatch):
    """29 blocks of 3: cells of 4, 9 or 29 entries begin and end inside blocks."""
    g = torch.Generator().manual_seed(0)
    W, x = (torch.randn(n, 3, dtype=torch.float64, generator=g) for n in (29, 40))
    B = linear(W, x, torch.arange(40) % 29, loss="cross_entropy")["output"]
    whole = {pixels: plot.pool(B.dense(), max_pixels=pixels, pooling=pooling) for pixels in (3, 10, 25)}
    monkeypatch.setattr(_pool, "_FORMED", budget)
    for pixels, image in whole.items():
        np.testing.assert_allclose(plot.pool(B, max_pixels=pixels, pooling=pooling), image, rtol=1e-12)


def test_block_norm_map():
    H = make_inputs(CASE, torch.float32).hessian()
    norms = image(plot.block_norm_map(H, limits=(1e-9, 10.0)))
    assert np.allclose(norms, H.norms(), rtol=1e-6)
    assert image(plot.block_norm_map(H["hidden", "output"])).shape == (4, 5)


def test_block_norms_are_not_computed_again():
    H = make_inputs(CASE, torch.float32).hessian()
    given = torch.arange(1.0, 82).reshape(9, 9)
    assert np.array_equal(image(plot.block_norm_map(H, norms=given)), given)
    assert np.array_equal(image(plot.block_norm_map(H["hidden"], norms=given[:4, :4].numpy())), given[:4, :4])
    with pytest.raises(ValueError, match=r"^norms: expected shape \(9, 9\); got \(4, 4\)"):
        plot.block_norm_map(H, norms=given[:4, :4])
    with pytest.raises(TypeError, match=r"^H: expected a hessext.Hessian or a BlockMatrix; got Tensor"):
        plot.block_norm_map(given)


def test_limits_and_zeros():
    shown = plot.heat_map(torch.zeros(3, 3)).axes[0].images[0]
    assert shown.get_array().mask.all() and shown.norm.vmin > 0  # a logarithmic scale has no zero
    figure = plot.heat_map(torch.tensor([[1.0, 0.0], [1e-9, 0.1]]))
    shown = figure.axes[0].images[0]
    assert np.array_equal(shown.get_array().mask, [[False, True], [False, False]])
    colours = shown.to_rgba(shown.get_array())
    assert np.array_equal(colours[1, 0], shown.cmap(0.0)) and np.array_equal(colours[0, 0], shown.cmap(1.0))
    assert np.allclose(colours[0, 1, :3], 0.8) and shown.get_label() == "|H|; grey: exactly 0"


@pytest.mark.parametrize(
    ("values", "given", "limits", "arrows"),
    [
        ([2.0, 3.0, 0.0], None, (0.3, 3.0), "neither"),
        ([0.1, 3.0, 0.0], None, (0.1, 3.0), "neither"),
        ([2e-9, 3.0, 0.0], None, (3e-4, 3.0), "min"),
        ([2.0, 3.0, 0.0], (1.0, 2.5), (1.0, 2.5), "max"),
        ([2.0, 3.0, 0.0], (2.1, 2.5), (2.1, 2.5), "both"),
        ([3.0, 3.0, 3.0], None, (0.3, 3.0), "neither"),
    ],
)
def test_colours_are_those_of_the_data(values, given, limits, arrows):
    figure = plot.heat_map(torch.tensor([values]), limits=given)
    shown = figure.axes[0].images[0]
    assert (shown.norm.vmin, shown.norm.vmax) == pytest.approx(limits)
    assert shown.colorbar.extend == arrows
    assert figure.axes[1].get_title() == "$|H|$"


def test_draws_into_given_axes():
    figure = Figure()
    ax = figure.subplots()
    assert plot.heat_map(torch.ones(2, 2), ax=ax, title="ones") is figure
    assert ax.get_title() == "ones"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"H": torch.ones(3)}, "H"),
        ({"H": torch.ones(0, 3)}, "H"),
        ({"limits": (0.0, 1.0)}, "limits"),
        ({"limits": (1.0, 1.0)}, "limits"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"pooling": "median"}, "pooling"),
        ({"pooled": np.ones((2, 3))}, "pooled"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        plot.heat_map(**{"H": torch.ones(2, 2), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limits": 3}, "limits: expected two numbers, 0 < low < high; got 3"),
        ({"limits": (1, 2, 3)}, "limits: expected two numbers"),
        ({"ax": 3}, "ax: expected matplotlib's Axes; got int"),
        ({"pooled": "x"}, "pooled: expected numbers"),
        (
            {"H": torch.ones(2, 2, dtype=torch.complex64)},
            "H: expected a dense tensor of real numbers; got torch.complex64",
        ),
        ({"H": torch.ones(2, 2, device="meta")}, "H: expected a dense tensor of real numbers"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        plot.heat_map(**{"H": torch.ones(2, 2), **arguments})


def test_a_result_that_is_no_sweep():
    with pytest.raises(TypeError, match=r"^result: expected what hessext\.sweep returns; got NoneType"):
        plot.ratios(None)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_entries_of_any_real_dtype(dtype):
    matrix = torch.tensor([[-128, 1], [0, 3]]).to(dtype)
    assert np.array_equal(plot.pool(matrix), matrix.double().abs().numpy())


def test_a_matrix_of_the_smallest_numbers_is_drawn():
    plot.heat_map(torch.full((2, 2), 5e-324, dtype=torch.float64)).draw_without_rendering()
