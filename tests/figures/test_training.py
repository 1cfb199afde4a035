"""Training for the figures: Adam on half a cosine, the same bits after a kill, the expected time."""

import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from hessext.figures import _frame, _training

pytest.importorskip("matplotlib")


def run(out, **options):
    """A Run without a figure: what a training needs of it."""
    return _frame.Run(SimpleNamespace(stem="test"), options, out, quick=False, progress=False)


def test_training_is_adam_on_half_a_cosine(tmp_path):
    task = _training.Task("cross_entropy", 5, 30, 6, 3, 20, 0.01, 0, "float64")
    found = _training.trained(run(tmp_path), task)
    (x, y), (W, V) = task.data(), task.weights()
    W.requires_grad_(), V.requires_grad_()
    adam = torch.optim.Adam([W, V], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 20)
    for step in range(21):
        loss = torch.nn.functional.cross_entropy(torch.relu(x @ W.T) @ V.T, y)
        assert found.losses[step] == pytest.approx(loss.item(), rel=1e-12)
        if step in found.weights:
            for kept, weight in zip(found.weights[step], (W, V), strict=True):
                torch.testing.assert_close(kept, weight.detach(), rtol=1e-10, atol=1e-12)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    assert {0, 5, 10, 20} <= set(found.weights)


KILLED = _training.Task("cross_entropy", 6, 200, 20, 4, 1000, 1e-3, 0, "float32")
SCRIPT = f"""
import pathlib, sys, types, torch
from hessext.figures import _frame, _training
_training._SAVED = 0.0
torch.set_num_threads(int(sys.argv[2]))
run = _frame.Run(types.SimpleNamespace(stem="test"), {{}}, pathlib.Path(sys.argv[1]), quick=False, progress=False)
_training.trained(run, _training.Task{tuple(KILLED)})
"""


def test_killed_training_continues_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), str(torch.get_num_threads())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (checkpoints := list(tmp_path.glob("cut/steps/training-*.pt"))):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < torch.load(checkpoints[0])["step"] < KILLED.steps
    cut, whole = (_training.trained(run(tmp_path / name), KILLED) for name in ("cut", "whole"))
    assert torch.equal(cut.losses, whole.losses)
    assert cut.weights.keys() == whole.weights.keys()
    for step, weights in cut.weights.items():
        assert all(map(torch.equal, weights, whole.weights[step]))
    written = checkpoints[0].stat().st_mtime_ns
    assert torch.equal(_training.trained(run(tmp_path / "cut"), KILLED).losses, whole.losses)
    assert checkpoints[0].stat().st_mtime_ns == written


def test_damaged_checkpoint_is_trained_again(tmp_path, capsys):
    task = _training.Task("mse", 3, 20, 4, 2, 5, 0.01, 0, "float32")
    first = _training.trained(run(tmp_path), task)
    (path,) = tmp_path.glob("steps/*.pt")
    path.write_bytes(path.read_bytes()[:100])
    this = _frame.Run(SimpleNamespace(stem="test"), {}, tmp_path, quick=False, progress=True)
    again = _training.trained(this, task)
    assert torch.equal(first.losses, again.losses)
    assert "damaged: trained again" in capsys.readouterr().err


def test_expected_time_comes_first(tmp_path, capsys, monkeypatch, set_threads):
    set_threads(1)  # so small, steps are quickest without others
    monkeypatch.setattr(_frame, "_LONG", 0.0)
    this = _frame.Run(SimpleNamespace(stem="test"), {}, tmp_path, quick=False, progress=True)
    _training.trained(this, _training.Task("mse", 3, 20, 4, 2, 160, 0.01, 0, "float32"))
    assert "test: steps of training, MSE: 61 of 161 to go, about 1 s" in capsys.readouterr().err


def test_expected_time_of_what_is_not_on_disk(tmp_path, capsys):
    """Three steps are there already, the fourth is slow."""
    this = _frame.Run(SimpleNamespace(stem="test"), {}, tmp_path, quick=False, progress=True)
    for step in this.timed(range(1000), "Hessians"):
        if step == 3:
            time.sleep(0.05)
        if step > 3:
            break
    assert re.fullmatch(r"test: Hessians: 996 of 1000 to go, about \d\d s\n", capsys.readouterr().err)


def test_moments():
    assert _training.snapshots(400) == [0, 100, 200, 400]
    assert _training.moments(1) == [0, 1]
    many = _training.moments(50000)
    assert many == sorted(set(many)) and {0, 1, 12500, 25000, 50000} <= set(many) and len(many) > 50
