"""What all figures share: parameters as data, steps whose results survive an interruption, and the files written."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from hessext import __version__, _core, _files
from hessext._progress import duration, shown
from hessext._text import aligned

from ._parameters import COMMON, text_of

if TYPE_CHECKING:
    import matplotlib.figure

DPI = 160  # of PNG files
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # of lines; from the palette of Okabe and Ito
LOSSES = {"mse": "MSE", "cross_entropy": "cross-entropy", "binary_cross_entropy": "cross-entropy"}
_LONG = 10.0  # seconds: a longer remaining time is announced


@dataclass(frozen=True)
class Figure:
    """A figure as data, and the function that draws it.

    title: what it shows. paper: what the paper says about it. reading: what we chose where the paper is silent.
    defaults: parameters at the paper's sizes. quick: those that --quick changes.
    """

    name: str
    title: str
    paper: str
    draw: Callable[[Run], Drawing]
    defaults: Mapping[str, Any]
    quick: Mapping[str, Any]
    reading: str = ""

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return f"figure{self.name}" if self.name.isdigit() else self.name

    def parameters(self, quick: bool = False) -> dict[str, Any]:
        """All parameters and their values. A figure's own default goes before a common one."""
        return {**self.defaults, **COMMON, **self.defaults, **(self.quick if quick else {})}


@dataclass(frozen=True)
class Drawing:
    """The results of a figure: pictures, the numbers behind them, and findings as sentences.

    pictures: by the suffix of their files' names; "" is the figure itself. rows: a table, written as CSV. arrays:
    written as npz. seen: the findings, with numbers. tables: lines of texts, by title. notes: on the setup, in addition
    to the parameters. files: the files written.
    """

    pictures: Mapping[str, matplotlib.figure.Figure]
    seen: Sequence[str]
    rows: Sequence[Mapping[str, Any]] = ()
    arrays: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    files: tuple[Path, ...] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    def text(self) -> str:
        """What is found, to be read on a screen: the tables, then what is seen in them."""
        tables = ("\n".join([title, *aligned(lines)]) for title, lines in self.tables.items())
        return "\n\n".join([*tables, "\n".join(self.seen)])


class Run:
    """One run of a figure: its parameters, its folder, and steps that are computed once.

    A step's file is named by a hash of all parameters and of the version of hessext. Keywords replace parameters that
    the step does not depend on (workers=None), or of which it has only one value (classes=10). After a change of the
    code, delete the folder `steps`.
    """

    def __init__(self, figure: Figure, parameters: Mapping[str, Any], out: Path, quick: bool, progress: bool) -> None:
        self.figure, self.out, self.quick, self.shown = figure, out, quick, shown(progress)
        self.parameters = SimpleNamespace(**parameters)

    @property
    def dtype(self) -> torch.dtype:
        """The parameter dtype, as torch's."""
        return getattr(torch, self.parameters.dtype)

    @cached_property
    def _steps(self) -> Path:
        return _files.folder("out", self.out / "steps")

    def path(self, step: str, suffix: str, **replaced: Any) -> Path:
        """The path of a step's file, such as a checkpoint or a log."""
        return self.shared(f"{self.figure.stem}-{step}", suffix, {**vars(self.parameters), **replaced})

    def shared(self, step: str, suffix: str, settings: Mapping[str, Any]) -> Path:
        """The path of a file that several figures share, named by the step and by these settings alone."""
        text = json.dumps([__version__, settings], sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return self._steps / f"{step}-{digest}{suffix}"

    def cached(self, step: str, compute: Callable[[], Mapping[str, Any]], **replaced: Any) -> dict[str, np.ndarray]:
        """Return the arrays of a step by name, from its file, or else computed and written to it in one piece."""
        path = self.path(step, ".npz", **replaced)
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except FileNotFoundError:
            pass
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError):
            self.say(f"{path} is damaged: computed again")
        arrays = {name: np.asarray(value) for name, value in compute().items()}
        _files.replace(path, _npz(arrays))
        return arrays

    def progress(self, steps: Iterable | None = None, text: str = "", **options: Any) -> tqdm:
        """Return a progress bar over the steps, or over total=. It is shown in terminals only."""
        disable = None if self.shown else True
        return tqdm(
            steps, f"{self.figure.stem}: {text}" if text else self.figure.stem, disable=disable, leave=False, **options
        )

    def timed(self, steps: Sequence, text: str, *, sample: int = 1, **options: Any) -> Iterator:
        """Yield the steps, with a progress bar.

        Each `sample` of them give an estimate of the remaining time, and the first long estimate is announced. Several
        are made, as steps that are on disk take no time.
        """
        said, start = False, time.monotonic()
        for number, step in enumerate(self.progress(steps, text, **options), 1):
            yield step
            if not said and number % sample == 0:
                now, rest = time.monotonic(), len(steps) - number
                seconds, start = (now - start) / sample * rest, now
                if seconds > _LONG:
                    self.say(f"{text}: {rest} of {len(steps)} to go, about {duration(seconds)}")
                    said = True

    def say(self, text: str) -> None:
        """Write a line to stderr, if progress is shown."""
        if self.shown:
            tqdm.write(f"{self.figure.stem}: {text}", file=sys.stderr)

    def save(self, drawing: Drawing) -> Drawing:
        """Write pictures (PNG and PDF), numbers (CSV, npz) and last the caption. Return the drawing with its files."""
        stem, contents = self.figure.stem, {}
        for name, picture in drawing.pictures.items():
            base = f"{stem}-{name}" if name else stem
            contents |= {f"{base}.png": _picture(picture, "png"), f"{base}.pdf": _picture(picture, "pdf")}
        if drawing.rows:
            contents[f"{stem}.csv"] = _files.csv_of(drawing.rows)
        if drawing.arrays:
            contents[f"{stem}.npz"] = _npz(drawing.arrays)
        contents[f"{stem}.md"] = _caption(self, drawing, list(contents)).encode()
        for name, content in contents.items():
            _files.replace(self.out / name, content)
        return replace(drawing, files=tuple(self.out / name for name in contents))


# ------------------------------------------------------------------------------------------------------------ files


def _picture(picture: matplotlib.figure.Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    dated = {"CreationDate": None} if kind == "pdf" else {}  # so that equal numbers give equal files
    picture.savefig(buffer, format=kind, dpi=DPI, bbox_inches="tight", metadata=dated)
    return buffer.getvalue()


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(value) for name, value in arrays.items()})
    return buffer.getvalue()


def _caption(run: Run, drawing: Drawing, files: Sequence[str]) -> str:
    """The caption in Markdown: pictures, setup, scales, the paper's statement, findings, files, command, versions."""
    figure = run.figure
    changed = {k: v for k, v in vars(run.parameters).items() if v != figure.parameters(run.quick)[k]}
    size = "--quick" if run.quick else "the paper's sizes, where it states them"
    size += f"; but for {', '.join(changed)}" if changed else ""
    setup = ", ".join(f"{name} {text_of(value)}" for name, value in vars(run.parameters).items() if value is not None)
    scales = [text for name, picture in drawing.pictures.items() for text in _scales(name, picture)]
    words = ["hessext", "figure", figure.name, *["--quick"] * run.quick]
    for name, value in changed.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [text_of(value)])]
    versions = (
        f"hessext {__version__}, torch {torch.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}; "
        f"instruction set {_core.isa()}, {torch.get_num_threads()} threads"
    )
    parts = [
        f"# {f'Figure {figure.name}' if figure.name.isdigit() else figure.name.capitalize()}: {figure.title}",
        *(f"![{figure.title}]({name})" for name in files if name.endswith(".png")),
        f"**Setup** ({size}). {setup}. " + " ".join([figure.reading, *drawing.notes]),
        *(["**Scales.**\n\n" + "\n".join(f"- {text}" for text in scales)] if scales else []),
        f"**The paper says.** {figure.paper}",
        *("```text\n" + "\n".join([title, *aligned(lines)]) + "\n```" for title, lines in drawing.tables.items()),
        "**Seen here.**\n\n" + "\n".join(f"- {text}" for text in drawing.seen),
        f"**Files.** {', '.join(files)}. Made by `{shlex.join(words)}`.",
        f"**Versions.** {versions}.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _scales(name: str, picture: matplotlib.figure.Figure) -> list[str]:
    """Quantity, pooling and colour limits of the maps, each with the titles of the maps that have them."""
    titles: dict[str, list[str]] = {}
    for ax in picture.axes:
        for image in ax.images:
            text = f"{image.get_label()}; colours from {image.norm.vmin:.1e} to {image.norm.vmax:.1e}"
            titles.setdefault(text, []).append(ax.get_title().replace("\n", " "))
    return [f"{name} {'; '.join(shown)}: {text}".strip() for text, shown in titles.items()]
