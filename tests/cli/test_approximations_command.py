"""`hessext approximations`: random models over a size, saved Hessians, and what is said of bad files."""

import csv

import numpy as np
import pytest
import torch

import hessext
from hessext.cli import main
from hessext.sweeps.draws import Point, Task, draw

SIZES = ["--samples", "30", "--features", "6"]
RUN = ["approximations", *SIZES, "--draws", "3"]
NAMES = hessext.linear(torch.ones(2, 1), torch.ones(3, 1))["output"].approximations().names


def table(case, point, number, layer, activation="relu"):
    H, _ = draw(Task(case, 0, "float32", Point(*point), number), activation)
    return H[layer].approximations()


def lines_of(printed, layer):
    """Cells of each line of a layer's compact table."""
    lines = printed.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"{layer} layer"))
    return {line[:24].strip(): line[24:].replace("±", "").split() for line in lines[start + 1 : start + 11]}


def test_random_models_over_the_classes(tmp_path, capsys):
    assert main([*RUN, "--classes", "5,2", "--hidden", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "One hidden ReLU layer, cross-entropy: samples 30, features 6, hidden 4; 3 draws, seed 0, float32\n"
    )
    with (tmp_path / "approximations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * len(NAMES)
    for layer in ("hidden", "output"):
        shown = lines_of(printed, layer)
        assert tuple(shown) == NAMES
        tables = {C: [table(4, (C, 30, 6, 4), number, layer) for number in range(3)] for C in (2, 5)}
        for name in NAMES:
            cells = []
            for C in (2, 5):  # columns in the order of their size
                shares = np.array([one[name].captured for one in tables[C]])
                cells += [f"{shares.mean():.4f}", f"{shares.std(ddof=1) / 3**0.5:.4f}"]
                key = {"layer": layer, "classes": str(C), "approximation": name}
                kept = [row for row in rows if key.items() <= row.items()]
                assert [float(row["captured"]) for row in kept] == shares.tolist()
                assert [float(row["relative_error"]) for row in kept] == [one[name].relative_error for one in tables[C]]
            assert shown[name] == cells


def test_one_draw_has_its_sampling_error_and_whole_tables(capsys):
    sizes = ["--draws", "1", "--classes", "3", "--hidden", "2,4", "--loss", "mse", "--activation", "tanh"]
    assert main([*RUN, *sizes, "--layer", "hidden", "--term", "gauss_newton", "--tables"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("One hidden tanh layer, MSE: classes 3, samples 30, features 6; one draw, ")
    assert "m = 2" in printed and "m = 4" in printed and "output layer" not in printed
    for m in (2, 4):
        H, _ = draw(Task(3, 0, "float32", Point(3, 30, 6, m), 0), "tanh")
        expected = H.gauss_newton()["hidden"].approximations()
        assert repr(expected) in printed
        k = (m == 4) * 2
        row = expected["K-FAC"]
        assert lines_of(printed, "hidden")["K-FAC"][k : k + 2] == [f"{row.captured:.4f}", f"{row.sampling_error:.4f}"]


def test_what_is_not_known_says_why(capsys):
    assert main([*RUN, "--classes", "3,9", "--largest", "8"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Linear model, cross-entropy: ")
    assert lines_of(printed, "output")["Shampoo"][-1] == "-"
    why = "needs the eigenvectors of a 9 x 9 matrix of rows; largest=8"
    assert printed.endswith(f"\n  C = 9: E-KFAC, Shampoo: {why}\n")
    assert main([*RUN, "--classes", "3", "--hidden", "2", "--term", "residual"]) == 0  # of a ReLU network: 0
    assert f"  C = 3: {', '.join(NAMES)}: H is 0\n" in capsys.readouterr().out


def saved(H, path):
    torch.save(H, path)
    return ["approximations", str(path)]


def test_saved_hessians(tmp_path, capsys):
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.GELU(), torch.nn.Linear(4, 3))
    for H, layers in (
        (hessext.hessian(model, x, y), ["0", "2"]),  # weights and biases together
        (hessext.feed_forward([torch.randn(4, 5), torch.randn(3, 4)], x, y), ["0", "1"]),
        (hessext.hessian(torch.nn.Linear(5, 3), x, y), [""]),
        (hessext.layer(model, "0", x, y), ["0"]),
    ):
        command = saved(H, tmp_path / "H.pt")
        assert main([*command, "--out", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("\n\n".join(repr(H[name].approximations()) for name in layers))
        with (tmp_path / "approximations.csv").open() as file:
            assert [row["layer"] for row in csv.DictReader(file)] == [n for n in layers for _ in NAMES]
        assert main([*command, "--layer", layers[-1], "--term", "gauss_newton"]) == 0
        assert capsys.readouterr().out == repr(H.gauss_newton()[layers[-1]].approximations()) + "\n\n"


class Gone:
    pass


def test_files_that_hold_no_hessian(tmp_path, capsys, monkeypatch):
    expected = "hessext approximations: saved: expected a file that torch.save(H, path) has written"
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello there\n")
    torch.save({"a": 1}, tmp_path / "dict")
    torch.save(Gone(), tmp_path / "gone")
    monkeypatch.delattr(f"{__name__}.Gone")
    for name, message in (
        ("none", f"; there is none at {tmp_path / 'none'}"),
        (".", f"; there is none at {tmp_path}"),
        ("empty", f"; {tmp_path / 'empty'} cannot be loaded: EOFError: "),
        ("text", f"; {tmp_path / 'text'} cannot be loaded: UnpicklingError: "),
        ("gone", f"; {tmp_path / 'gone'} cannot be loaded: AttributeError: Can't get attribute 'Gone'"),
        ("dict", f", with H a hessext.Hessian; {tmp_path / 'dict'} holds a dict"),
    ):
        assert main(["approximations", str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(expected + message) and not printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--activation", "tanh"], "activation: expected none for a linear model (--hidden makes a network); got tanh"),
        (["--classes", "1"], "classes: expected at least 2; got 1"),
        (["--classes", "2,3", "--samples", "8,9"], "samples: expected one size, as classes is swept; got [8, 9]"),
        (["--draws", "0"], "draws: expected at least 1; got 0"),
        (["--layer", "hidden"], "layer: expected one of 'output', "),
        (["--largest", "-1"], "largest: expected at least 0; got -1"),
        (["--hidden", "3", "--activation", "none"], "activation: expected "),
        (["--out", __file__], f"out: expected a folder; got {__file__}, which is a file or in one"),
        (["H.pt", "--seed", "1"], "samples: expected none with a saved Hessian, only with random models"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main([*RUN, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"hessext approximations: {message}")


def test_residual_of_a_saved_term(tmp_path, capsys):
    H = hessext.linear(torch.randn(3, 5), torch.randn(9, 5)).gauss_newton()
    assert main([*saved(H, tmp_path / "H.pt"), "--term", "residual"]) == 2
    assert "residual: expected the full Hessian; this is its gauss_newton term" in capsys.readouterr().err
