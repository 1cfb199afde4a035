"""What README.md and docs/ show: every Python example runs and prints what is said; every command can be given."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import OrderedDict
from decimal import Decimal
from inspect import isfunction
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

import hessext
from hessext import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^ *(hessext .*)$", re.M)
WITHOUT_EXAMPLE = {
    "hessext.datasets.cifar100",  # downloads
    "hessext.plot.check_matplotlib",  # says what to install, or nothing
}


class FeedForward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class LanguageModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.lm_head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20)
        self.blocks = torch.nn.Sequential(FeedForward(), FeedForward())

    def forward(self, tokens):
        return self.lm_head(self.blocks(self.tokens(tokens)).tanh())


def given(page):
    """What a page takes for granted: the reader's own models and data."""
    if page.name != "README.md":
        return {}
    deep = [("body", torch.nn.Linear(5, 6)), ("act", torch.nn.Tanh()), ("fc", torch.nn.Linear(6, 3))]
    return {
        "network": torch.nn.Sequential(OrderedDict(deep)).eval(),
        "loader": [(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(2)],
        "language_model": LanguageModel().eval(),
        "batches": [{"input_ids": torch.randint(20, (2, 6))}],
    }


@pytest.fixture
def print_options():
    """Examples may set them."""
    yield
    torch.set_printoptions(profile="default")


def name_of(page):
    return str(page.relative_to(ROOT))


def fences(page):
    """(language, body, line) of each fenced block."""
    text = page.read_text()
    return [(m[1], m[2], text.count("\n", 0, m.start(2))) for m in FENCE.finditer(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name_of)
def test_examples_run(page, tmp_path, monkeypatch, capsys, set_threads, print_options):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)  # examples write files
    set_threads(1)  # so small, they are quickest without others
    blocks, namespace = fences(page), given(page) | {"__name__": "__main__"}
    for (language, code, line), (following, said, _) in zip(blocks, [*blocks[1:], ("", "", 0)], strict=True):
        if language != "python":
            continue
        exec(compile("\n" * line + code, page, "exec"), namespace)
        printed = capsys.readouterr().out
        if following == "text":
            assert printed == said, f"{name_of(page)}, after line {line}"


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def close(printed, said):
    """The same words and counts; other numbers to 1e-5 or two units of the last digit, as instruction sets round."""
    ours, theirs = ([Decimal(m.replace(",", "")) for m in NUMBER.findall(text)] for text in (printed, said))
    last = [n.as_tuple().exponent for n in theirs]  # power of ten of the last digit, 0 of a count
    bounds = [max(2 * Decimal(1).scaleb(e), abs(n) / 100_000) if e else 0 for n, e in zip(theirs, last, strict=True)]
    same = NUMBER.sub("#", printed) == NUMBER.sub("#", said)
    return same and all(abs(a - b) <= bound for a, b, bound in zip(ours, theirs, bounds, strict=True))


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")
@pytest.mark.parametrize("example", ["ranks_samples.py", "ranks_classes.py"])
def test_commands_of_several_processes_print_what_is_said(example):
    if "classes" in example and not hasattr(pytest.importorskip("torch.distributed.tensor"), "DTensor"):
        pytest.skip("needs torch 2.5")
    shown = pairwise(fences(ROOT / "docs" / "machines.md"))
    ((command, said),) = [(b, said) for (kind, b, _), (_, said, _) in shown if kind == "console" and example in b]
    program, *arguments = shlex.split(command)
    assert program == "torchrun"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["OMP_NUM_THREADS"] = "1"  # as torchrun sets it, with a warning
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
    run = subprocess.run(started, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert close(run.stdout, said), run.stdout


def test_formulas_can_be_drawn(tmp_path):
    """By the KaTeX of the site, which a browser runs: a formula it does not know would be red."""
    if not (node := shutil.which("node")):
        pytest.skip("needs node")
    texts = [re.sub("`[^`\\n]*`", "", FENCE.sub("", page.read_text())) for page in PAGES[1:]]
    found = [m[1] or m[2] for text in texts for m in re.finditer(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.S)]
    assert len(found) > 100
    (tmp_path / "formulas.json").write_text(json.dumps(found))
    code = "for (const f of require(process.argv[2])) require(process.argv[1]).renderToString(f, {strict: 'error'})"
    command = [node, "-e", code, str(ROOT / "docs/katex/katex.min.js"), str(tmp_path / "formulas.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_commands_are_valid():
    shell = [body for page in PAGES for language, body, _ in fences(page) if language == "sh"]
    indented = "\n".join(re.findall("^ {4}.*$", FENCE.sub("", PAGES[0].read_text()), re.M))
    found = COMMAND.findall("\n".join([*shell, indented]))
    assert len(found) > 10
    for line in found:
        command, *arguments = shlex.split(line, comments=True)
        assert cli._parser().parse_args(arguments).run, line  # exits where an argument is wrong


def public():
    """Full names of all public functions, and of methods of public classes."""
    modules = [hessext, *(m for name in hessext.__all__ if isinstance(m := getattr(hessext, name), ModuleType))]
    for module in modules:
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            thing, full = getattr(module, name), f"{module.__name__}.{name}"
            if isfunction(thing) and not name.startswith("_"):
                yield full
            elif thing in (hessext.Hessian, hessext.BlockMatrix):
                yield from (f"{full}.{k}" for k in vars(thing) if not k.startswith("_"))


def test_every_public_function_has_an_example():
    code = [body for page in PAGES for language, body, _ in fences(page) if language == "python"]
    used = {getattr(node, "attr", getattr(node, "id", None)) for text in code for node in ast.walk(ast.parse(text))}
    names = set(public())
    assert len(names) > 50
    assert {name for name in names if name.rpartition(".")[2] not in used} == WITHOUT_EXAMPLE


def test_every_public_name_is_in_the_reference():
    said = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)$", said, re.M))
    for name in hessext.__all__:
        assert any(entry == f"hessext.{name}" or entry.startswith(f"hessext.{name}.") for entry in listed), name
