"""The command line: what it prints and its exit status."""

import subprocess
import sys

import pytest

import hessext
from hessext import _core
from hessext.cli import main


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert hessext.__version__ in printed
    assert _core.isa() in printed


def test_check_passes(capsys):
    sizes = ["--samples", "9", "--features", "4", "--hidden", "3", "--classes", "3"]
    assert main(["check", *sizes]) == 0
    *rows, verdict = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 4 + 8 * 4  # linear and network: losses x dtypes, the network also x activations x parts
    assert all(row.endswith(" ok") for row in rows)
    assert verdict.startswith("36 of 36 ")


@pytest.mark.parametrize("term", ["gauss_newton", "residual"])
def test_check_of_one_term(term, capsys):
    assert main(["check", "--model", "one_hidden", "--activation", "tanh", "--no-bias", "--term", term]) == 0
    assert "16 of 16 " in capsys.readouterr().out


def test_check_fails_out_of_tolerance(capsys):
    assert main(["check", "--model", "linear", "--dtype", "float32", "--rtol", "1e-12"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["check", "--classes", "0"], ["check", "--device", "nowhere"], ["check", "--dtype", "float16"]],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: hessext" in capsys.readouterr().err


def test_unknown_activation(capsys):
    assert main(["check", "--activation", "nothing"]) == 2
    assert "hessext check: activation: expected" in capsys.readouterr().err


def test_module_is_the_command():
    run = subprocess.run([sys.executable, "-m", "hessext", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"hessext {hessext.__version__}"
