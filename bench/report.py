"""A report as text: tables for the terminal, Markdown and documentation, and the comparison with an older report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import fill

from . import growth, measure
from .cases import Sizes
from .machine import Peaks
from .run import Report

OURS, REUSED = "hessext", "hessext out="
TORCH = ("careful", "plain")
AUTODIFF = ("torch.func.hessian", "double backward", "curvlinops", "jax.hessian")
AHEAD = 1.1  # hessext is not ahead of a method that takes less than this times its seconds
SLOWER = 1.05  # least factor of a regression, which must also lie beyond the quartiles
BEGIN, END = "<!-- bench: {} -->", "<!-- bench end -->"


def seconds_text(seconds: float) -> str:
    """The time with three digits, in s, ms or us."""
    if seconds >= 999.5:
        return f"{float(f'{seconds:.3g}'):,.0f} s"
    scale, name = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "us")
    return f"{seconds / scale:#.3g}".rstrip(".") + f" {name}"


def factor_text(factor: float) -> str:
    """The factor with two digits, or three above 100, without an exponent."""
    return f"{factor:.2g}" if factor < 99.5 else f"{float(f'{factor:.3g}'):,.0f}"


def by_case(report: Report) -> dict[str, dict[str, dict]]:
    """Benchmarks by case and method."""
    found: dict[str, dict[str, dict]] = {}
    for row in report["benchmarks"]:
        found.setdefault(row["group"], {})[row["name"]] = row
    return found


def sizes_text(row: dict) -> str:
    """The sizes N, d, C and m."""
    return str(Sizes(*(row["params"][letter] for letter in Sizes._fields)))


def roofline(report: Report, row: dict) -> float:
    """The least seconds of the flops and bytes on this machine, over the median."""
    extra = row["extra_info"]
    peaks = Peaks(**report["peaks"][str(extra["threads"])])
    return peaks.floor(extra["flops"], extra["bytes"]) / row["stats"]["median"]


def times(row: dict, ours: dict) -> float:
    """How many times as long as ours a method takes: the median of the ratios within a round."""
    return measure.ratio(row["stats"]["data"], ours["stats"]["data"])


# ------------------------------------------------------------------------------------------------------------- tables


def aligned(cells: list[list[str]]) -> str:
    """The cells in columns of text, the first and the last one aligned left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        padded[0], padded[-1] = line[0].ljust(widths[0]), line[-1]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown_table(cells: list[list[str]]) -> str:
    """The cells as a table in Markdown."""
    head, *rows = cells
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *rows])


def case_cells(report: Report, rows: dict[str, dict]) -> list[list[str]]:
    """One line per method of a case."""
    cells = [["method", "median", "quartiles", "x hessext", "GFLOP/s", "of roofline", "error", "MiB beyond", "note"]]
    for name, row in rows.items():
        stats, extra = row["stats"], row["extra_info"]
        few = f"{stats['rounds']} round{'s' * (stats['rounds'] > 1)}" if stats["rounds"] < 3 else ""
        memory = extra.get("memory")
        allowed = f" of {extra['memory_allowed'] / 2**20:.0f}" if memory is not None and name == OURS else ""
        cells.append([
            name,
            seconds_text(stats["median"]),
            f"{seconds_text(stats['q1'])} - {seconds_text(stats['q3'])}",
            factor_text(times(row, rows[OURS])) if OURS in rows else "",
            f"{extra['flops'] / stats['median'] / 1e9:.3g}",
            f"{roofline(report, row):.1%}",
            f"{extra['error']:.1e}",
            "" if memory is None else f"{memory / 2**20:.0f}{allowed}",
            ", ".join(filter(None, (extra["note"], few))),
        ])  # fmt: skip
    return cells


def heading(report: Report) -> list[str]:
    """The machine and its peaks, in a few lines."""
    info, settings = report["machine_info"], report["settings"]
    first = report["peaks"][str(settings["threads"][0])]
    where = f"{info['gpu']}, " if "gpu" in info else ""
    busy = f", load {info['load_before']:.1f} before" if info["load_before"] > 0.5 else ""
    return [
        f"{where}{info['cpu']}, {info['cores']} cores, {info['threads']} threads, {settings['dtype']}, "
        f"hessext {info['hessext']} ({info['isa']}), torch {info['torch']}{busy}",
        f"Peaks in this run: {first['flops'] / 1e9:.0f} GFLOP/s (torch.matmul {first['matmul'] / 1e9:.0f}), "
        f"{first['bytes'] / 1e9:.0f} GB/s copied",
    ]


LEGEND = (
    "GFLOP/s: of the flops that the result must cost (both symmetries, active samples only). of roofline: the time\n"
    "that these flops, or inputs read and result written once, take at the peaks, over the median. x hessext: median\n"
    "ratio within a round. error: relative, against float64. MiB beyond: peak memory beyond the result, of what the\n"
    "documentation promises."
)


def _titles(report: Report) -> Iterator[tuple[str, dict[str, dict]]]:
    for name, rows in by_case(report).items():
        row = next(iter(rows.values()))
        params, extra = row["params"], row["extra_info"]
        loss = params["loss"].replace("_", "-")
        yield f"{name}: {extra['title']}, {loss}, {sizes_text(row)}, {extra['flops'] / 1e9:.3g} GFLOP", rows


def _notes(report: Report) -> list[str]:
    failed = [f"not timed: {f['fullname']}: {f['reason']}" for f in report["failed"]]
    return failed + [f"skipped: {name}: {why}" for name, why in report["missing"].items()]


def text(report: Report) -> str:
    """The whole report for a terminal."""
    tables = [f"{title}\n{aligned(case_cells(report, rows))}" for title, rows in _titles(report)]
    last = "\n".join([*growth.lines(report), *_notes(report)])
    return "\n\n".join(filter(None, ["\n".join(heading(report)), LEGEND, *tables, last])) + "\n"


def markdown(report: Report, picture: str | None = None) -> str:
    """The whole report in Markdown."""
    parts = ["\n".join(f"{line}.  " for line in heading(report)), LEGEND, summary(report)]
    parts += [f"![Time against N, d, C, m]({picture})"] if picture else []
    parts += [f"**{title}**\n\n{markdown_table(case_cells(report, rows))}" for title, rows in _titles(report)]
    parts += ["\n".join(f"- {note}" for note in _notes(report))]
    return "\n\n".join(filter(None, parts)) + "\n"


# ------------------------------------------------------------------------------------------------- documentation


def _other(rows: dict[str, dict], names: Iterable[str], named: bool = False) -> str:
    """The time of the quickest of these methods, and its ratio to hessext's."""
    there = [rows[name] for name in names if name in rows]
    if not there or OURS not in rows:
        return ""
    best = min(there, key=lambda row: row["stats"]["median"])
    about = "~" if best["extra_info"]["sampled"] else ""
    name = f", {best['name']}" if named else ""
    return f"{about}{seconds_text(best['stats']['median'])} ({factor_text(times(best, rows[OURS]))}{name})"


def summary(report: Report) -> str:
    """The table of all cases but the growth curves, then sentences on autodiff, on other methods, and on growth."""
    cells = [["case", "hessext", "`out=`", "careful", "plain", "quickest autodiff", "of roofline"]]
    short = {"cross_entropy": "CE", "mse": "MSE"}
    for rows in by_case(report).values():
        row = rows.get(OURS)
        if row is None or row["extra_info"]["about"] == "growth":
            continue
        best = min((rows[name] for name in (OURS, REUSED) if name in rows), key=lambda r: r["stats"]["median"])
        cells.append([
            f"{row['extra_info']['title']}, {short[row['params']['loss']]} ({sizes_text(row)})",
            seconds_text(row["stats"]["median"]),
            seconds_text(rows[REUSED]["stats"]["median"]) if REUSED in rows else "",
            *(_other(rows, [name]) for name in TORCH),
            _other(rows, AUTODIFF, named=True),
            f"{roofline(report, best):.0%}",
        ])  # fmt: skip
    sentences = (_against_autodiff(report), _not_ahead(report), growth.sentence(report))
    return "\n\n".join([markdown_table(cells), *(fill(s, 120, break_on_hyphens=False) for s in sentences if s)])


def _against_autodiff(report: Report) -> str:
    found, sizes = [], ""
    for name, rows in by_case(report).items():
        if name.startswith("dense-") and OURS in rows:
            sizes = sizes_text(rows[OURS])
            ratios = [f"{peer} {factor_text(times(rows[peer], rows[OURS]))}" for peer in AUTODIFF if peer in rows]
            if ratios:
                found.append(f"{rows[OURS]['params']['loss'].replace('_', '-')} {', '.join(ratios)}")
    if not found:
        return ""
    return f"Times hessext's time for the whole Hessian at {sizes}: {'; '.join(found)}."


def _not_ahead(report: Report) -> str:
    found = []
    for name, rows in by_case(report).items():
        for other, row in rows.items():
            if OURS in rows and not other.startswith(OURS) and (factor := times(row, rows[OURS])) < AHEAD:
                found.append(f"`{name}` ({other} {factor:.2g})")
    start = "Where another method takes less than 1.1 times hessext's time: "
    return f"{start}{', '.join(found) or 'in no case'}."


def docs_block(report: Report, name: str) -> str:
    """The text between the markers of docs/performance.md, for the report in bench/results/`name`.json."""
    parts = [
        BEGIN.format(name),
        ".\n".join(heading(report)) + ".",
        summary(report),
        "![Time of the whole Hessian against N, d, C and m](growth.png)" if growth.curves(report) else "",
        f"Every line of every case is in `bench/results/{name}.md`. Run again: `{command(report)}`.",
        END,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def command(report: Report) -> str:
    """The command that makes this report."""
    settings = report["settings"]
    options = [] if settings["device"] == "cpu" else [f"--device {settings['device']}"]
    options += [] if settings["dtype"] == "float32" else [f"--dtype {settings['dtype']}"]
    options += [f"--threads {' '.join(map(str, settings['threads']))}"]
    options += ["--quick"] if settings["quick"] else []
    return " ".join(["python -m bench", *options])


def write_docs(page: Path, report: Report, name: str) -> str:
    """The page's text with the block of this report. Raises ValueError if the page has no markers for it."""
    before, begin, rest = page.read_text().partition(BEGIN.format(name))
    _, end, after = rest.partition(END + "\n")
    if not begin or not end:
        raise ValueError(f"{page.name}: expected the markers {BEGIN.format(name)} and {END}; found none")
    return before + docs_block(report, name) + after


# --------------------------------------------------------------------------------------------------------- comparison


def compare(old: Report, new: Report) -> tuple[list[str], bool]:
    """Lines on what changed beyond noise, and whether hessext became slower.

    Changes are divided by the median change of the methods that are not hessext, which corrects for the machine. A
    change is beyond noise if the quartiles of both runs are apart, and if it exceeds 5%.
    """
    before = {row["fullname"]: row for row in old["benchmarks"]}
    common = [(before[row["fullname"]], row) for row in new["benchmarks"] if row["fullname"] in before]
    common = [(a, b) for a, b in common if a["params"] == b["params"]]
    others = [b["stats"]["median"] / a["stats"]["median"] for a, b in common if not a["name"].startswith(OURS)]
    drift = statistics.median(others) if len(others) > 2 else 1.0
    lines, regressed = [], False
    for key in ("cpu", "gpu", "cores", "threads", "torch"):
        a, b = (report["machine_info"].get(key) for report in (old, new))
        lines += [f"{key} differs: {a}, now {b}"] if a != b else []
    lines.append(f"{len(common)} in common; the methods that are not hessext take {drift:.3f} times what they took")
    for a, b in common:
        a, name, b = a["stats"], b["fullname"], b["stats"]
        change = b["median"] / a["median"] / drift
        slower, faster = (
            b["q1"] / drift > a["q3"] and change > SLOWER,
            b["q3"] / drift < a["q1"] and change < 1 / SLOWER,
        )
        if slower or faster:
            what = f"{change:.2f} times as long" if slower else f"{1 / change:.2f} times as fast"
            lines.append(f"{name}: {what} ({seconds_text(a['median'])}, now {seconds_text(b['median'])})")
            regressed |= slower and f"[{OURS}" in name
    return lines, regressed
