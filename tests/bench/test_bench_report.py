"""What the bench suite makes of its measurements: tables, growth, comparison, documentation; and its command line."""

import json
import math
from pathlib import Path

import pytest
import torch

from bench import __main__ as program
from bench import cases, growth, machine, measure, methods, report, run

RESULTS = Path(program.__file__).parent / "results"
PAGE = program.DOCS / "performance.md"


@pytest.fixture(autouse=True)
def one_thread(set_threads, monkeypatch):
    set_threads(1)
    monkeypatch.setattr(machine, "peaks", lambda *_: machine.Peaks(1e11, 8e10, 2e10))


# ---------------------------------------------------------------------------------------------------------- reports


def synthetic(seconds, spread=0.01):
    """A report with these medians by fullname, e.g. {"growth-N250[plain]": 1.0}."""
    rows = []
    for name, median in seconds.items():
        case, method = name[:-1].split("[")
        data = [median * (1 + k * spread) for k in (-2, -1, 0, 1, 2)]
        about = cases.CASES[case]
        extra = {"title": about.title, "about": about.group, "varied": about.varied, "error": 1e-7, "note": ""}
        extra |= {"sampled": False, "threads": 2, "flops": 1e9, "bytes": 1e6}
        params = about.sizes._asdict() | {"part": about.part, "quantity": about.quantity, "loss": about.loss}
        rows.append({"group": case, "name": method, "fullname": name, "params": params, "extra_info": extra})
        rows[-1]["stats"] = run.stats(data)
    info = {"cpu": "a CPU", "cores": 2, "threads": 2, "hessext": "1", "isa": "v4", "torch": "2", "load_before": 0.0}
    peaks = {"2": {"flops": 1e11, "matmul": 8e10, "bytes": 1e10}}
    chosen = {"device": "cpu", "dtype": "float32", "threads": [2], "quick": False}
    return {"machine_info": info, "peaks": peaks, "settings": chosen, "missing": {}, "failed": [], "benchmarks": rows}


def test_tables_say_what_was_measured():
    found = synthetic({
        "dense-ce[hessext]": 0.1,
        "dense-ce[plain]": 0.65,
        "dense-ce[torch.func.hessian]": 80,
        "dense-ce[double backward]": 90,
        "product[hessext]": 0.02,
        "product[torch.func.hessian]": 0.019,
    })  # fmt: skip
    found["failed"] = [{"fullname": "dense-ce[curvlinops]", "reason": "why"}]
    found["missing"] = {"jax.hessian": "jax is not installed"}
    table = report.text(found)
    assert "dense-ce: whole Hessian, cross-entropy, N=5000 d=500 C=500 m=8, 1 GFLOP" in table
    assert "not timed: dense-ce[curvlinops]: why" in table and "skipped: jax.hessian" in table
    plain = next(line for line in table.splitlines() if line.startswith("plain"))
    assert plain.split()[1:3] == ["650", "ms"] and " 6.5 " in plain and "1.5%" in plain  # 10 ms of 650
    summary = " ".join(report.summary(found).split("\n"))
    assert "| whole Hessian, CE (N=5000 d=500 C=500 m=8) | 100 ms |  |  | 650 ms (6.5) | 80.0 s (800, " in summary
    assert "C=500 m=8: cross-entropy torch.func.hessian 800, double backward 900." in summary
    assert "hessext's time: `product` (torch.func.hessian 0.95)." in summary


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.1e-6, "4.10 us"), (0.0325, "32.5 ms"), (0.325, "325 ms"), (1, "1.00 s"), (408.2, "408 s"), (2233, "2,230 s")],
)
def test_seconds_are_said_in_three_digits(seconds, said):
    assert report.seconds_text(seconds) == said


def test_quartiles_and_rounds():
    found = run.stats([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found["q1"], found["median"], found["q3"]) == (2.0, 3.0, 4.0)
    assert found["rounds"] == 5 and found["data"] == [5.0, 1.0, 2.0, 3.0, 4.0]
    assert run.stats([2.0, 1.0])["q1"] == 1.0 and measure.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


def test_growth_exponents():
    letters = {"": 1.0, **{f"-N{n}": (n / 1000) ** 1.5 for n in (2000, 4000)}, "-m32": 16.0}
    found = synthetic({f"growth{k}[hessext]": seconds for k, seconds in letters.items()})
    curves = growth.curves(found)
    assert curves.keys() == {("N", "hessext"), ("m", "hessext")}
    assert growth.exponent(curves["N", "hessext"]) == pytest.approx(1.5)
    assert growth.lines(found) == ["growth of hessext: time ~ size^exponent: N 1.50, m 2.00"]
    assert "around N=1000 d=64 C=64 m=8: hessext N 1.50, m 2.00." in growth.sentence(found)


def test_growth_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = synthetic({"growth[hessext]": 1.0, "growth-C128[hessext]": 4.0, "growth[plain]": 2.0})
    assert growth.draw(found, tmp_path / "growth.png") and (tmp_path / "growth.png").stat().st_size > 5000
    assert not growth.draw(synthetic({"tiny[hessext]": 1.0}), tmp_path / "none.png")


OLD = {"tiny[hessext]": 1.0, "tiny[plain]": 2.0, "linear[plain]": 2.0, "linear[careful]": 1.5}


@pytest.mark.parametrize(
    ("times", "drift", "said", "regressed"),
    [
        (1.3, 1.0, "tiny[hessext]: 1.30 times as long (1.00 s, now 1.30 s)", True),
        (1.3, 1.3, None, False),  # the machine is slower
        (1.0, 0.7, "tiny[hessext]: 1.43 times as long (1.00 s, now 1.00 s)", True),  # it is quicker, and hessext not
        (1.03, 1.0, None, False),  # noise
        (0.5, 1.0, "tiny[hessext]: 2.00 times as fast (1.00 s, now 500 ms)", False),
    ],
)
def test_regressions_are_told_from_noise_and_drift(times, drift, said, regressed):
    new = {name: seconds * (times if "hessext" in name else drift) for name, seconds in OLD.items()}
    lines, found = report.compare(synthetic(OLD), synthetic(new))
    assert found == regressed and [line for line in lines if "times as" in line] == ([said] if said else [])


def test_what_changed_in_size_is_not_compared():
    old, new = synthetic(OLD), synthetic({name: 9 * seconds for name, seconds in OLD.items()})
    for row in new["benchmarks"]:
        row["params"]["N"] += 1
    new["machine_info"]["cpu"] = "another"
    lines, regressed = report.compare(old, new)
    assert lines[0] == "cpu differs: a CPU, now another" and lines[1].startswith("0 in common") and not regressed


# ------------------------------------------------------------------------------------------------------ the program


def test_program(tmp_path, capsys):
    stem = tmp_path / "run"
    arguments = ["--quick", "--case", "tiny", "--method", "hessext", "pl*", "--threads", "1", "2", "--no-memory"]
    assert program.main([*arguments, "--out", str(stem)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(stem.with_suffix(".json").read_text())
    assert [row["fullname"] for row in found["benchmarks"]] == ["tiny[hessext]", "tiny[plain]"]
    assert found["peaks"].keys() == {"1", "2"} and math.isfinite(found["benchmarks"][0]["stats"]["median"])
    assert stem.with_suffix(".txt").read_text() + "\n" == printed
    assert "| hessext |" in stem.with_suffix(".md").read_text() and not stem.with_suffix(".png").exists()

    for row in found["benchmarks"]:
        row["stats"] = run.stats([s / 9 for s in row["stats"]["data"]] if row["name"] == "hessext" else [1.0])
    old = tmp_path / "old.json"
    old.write_text(json.dumps(found))
    loaded = ["--load", str(stem.with_suffix(".json"))]
    assert program.main([*loaded, "--compare", str(old)]) == 1
    assert "tiny[hessext]: " in capsys.readouterr().out
    assert program.main([*loaded, "--compare", str(stem.with_suffix(".json"))]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "tinny"], "--case: expected one of dense-ce"),
        (["--method", "slow*"], "--method: expected one of hessext, "),
        (["--load", "none.json"], "none.json"),
        (["--compare", "none.json"], "none.json"),
        (["--load", "{}"], "expected a report of python -m bench"),
        (["--threads", "0"], "expected at least 1"),
        (["--docs"], "--docs: expected a report"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "torch sees no GPU")]),
    ],
)
def test_bad_arguments(arguments, message, capsys, tmp_path):
    other = tmp_path / "other.json"
    other.write_text("[1]")
    arguments = [argument.replace("{}", str(other)) for argument in arguments]
    try:
        status = program.main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and message in capsys.readouterr().err


def test_list_names_everything(capsys):
    assert program.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*cases.CASES, *methods.known()])


def test_the_page_is_written_between_the_markers(tmp_path):
    found, page = synthetic(OLD | {"growth[plain]": 1.0, "growth-m16[plain]": 2.0}), tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN.format('mine')}\nold\n{report.END}\nafter\n")
    written = report.write_docs(page, found, "mine")
    assert written.startswith("before\n<!-- bench: mine -->\n") and written.endswith("<!-- bench end -->\nafter\n")
    assert (
        "plain m 1.00." in written and "Run again: `python -m bench --threads 2`." in written and "old" not in written
    )
    page.write_text(written)
    assert report.write_docs(page, found, "mine") == written
    with pytest.raises(ValueError, match="expected the markers <!-- bench: other -->"):
        report.write_docs(page, found, "other")


def test_the_page_is_what_the_results_say():
    begin, end = report.BEGIN.split("{}")
    name, block = PAGE.read_text().split(begin)[1].split(report.END)[0].split(end)
    if not block.strip():
        pytest.skip("the page quotes no run")
    found = json.loads((RESULTS / f"{name}.json").read_text())
    assert report.write_docs(PAGE, found, name) == PAGE.read_text()
    assert (RESULTS / f"{name}.txt").read_text() == report.text(found)
