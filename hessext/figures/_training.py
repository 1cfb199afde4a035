"""Full-batch training of a one-hidden-layer ReLU network. An interrupted training continues to the same bits."""

from __future__ import annotations

import io
import math
import pickle
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hessext import Hessian, _files, datasets, one_hidden
from hessext._random import lecun
from hessext.model.loss_arguments import resolve

from ._frame import LOSSES, Run

MOMENTS = 60  # steps, in geometric progression, before which weights are kept in addition to the snapshots
# The sizes of Section 3.1, and the number of steps of the paper's public code.
PAPER = {"classes": 500, "samples": 5000, "features": 500, "hidden": 8, "steps": 50000, "learning_rate": 1e-4}
QUICK = {"classes": 100, "samples": 1000, "features": 100, "steps": 4000, "learning_rate": 1e-3}
READING = (
    "x ~ N(0, I), labels uniform; ReLU without biases, W ~ N(0, 1/d), V ~ N(0, 1/m). Adam on all samples at once, "
    "the learning rate on half a cosine down to 0; MSE is the mean over samples of ||f - y||^2."
)
_SAVED = 10.0  # seconds of training that an interruption may cost
_SAMPLE = 100  # steps from which the remaining time is estimated

Weights = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """All that a training on Gaussian data or on digits depends on."""

    loss: str
    classes: int
    samples: int
    features: int
    hidden: int
    steps: int
    learning_rate: float
    seed: int
    dtype: str
    source: str = "gaussian"  # or "digits", of which `samples` are taken

    @classmethod
    def of(cls, run: Run, loss: str, **fixed: int | str) -> Task:
        """The task of a figure's parameters, with fixed values for those that it does not have."""
        p = {**vars(run.parameters), "loss": loss, **fixed}
        return cls(*(p[name] for name in cls._fields if name in p))

    def data(self) -> tuple[Tensor, Tensor]:
        """x (N, d) and labels y (N,). For a single output y (N, 1) has 0 and 1, or under MSE -1 and 1."""
        if self.source == "digits":
            return datasets.digits(samples=self.samples, **self._options())
        x, y = datasets.gaussian(self.samples, self.features, max(2, self.classes), **self._options())
        if self.classes > 1:
            return x, y
        y = y[:, None].to(x.dtype)
        return x, 2 * y - 1 if self.loss == "mse" else y

    def _options(self) -> dict[str, Any]:
        return {"seed": self.seed, "dtype": getattr(torch, self.dtype)}

    def weights(self) -> Weights:
        """W (m, d) ~ N(0, 1/d) and V (C, m) ~ N(0, 1/m)."""
        return tuple(lecun((self.hidden, self.features), (self.classes, self.hidden), **self._options()))


class Trained(NamedTuple):
    """A network along its training: the loss before every step and after the last, the weights before some steps."""

    task: Task
    x: Tensor
    y: Tensor
    losses: Tensor
    weights: dict[int, Weights]

    def hessian(self, step: int) -> Hessian:
        """The Hessian before a step whose weights are kept."""
        return one_hidden(*self.weights[step], self.x, self.y, loss=self.task.loss)


def snapshots(steps: int) -> list[int]:
    """0, 25, 50 and 100 % of the steps."""
    return sorted({0, steps // 4, steps // 2, steps})


def moments(steps: int) -> list[int]:
    """Steps before which weights are kept: the snapshots, and a geometric progression."""
    return sorted({*snapshots(steps), *np.geomspace(1, max(1, steps), MOMENTS).round().astype(int).tolist()})


def trained(run: Run, task: Task) -> Trained:
    """Train the task's network, or read the training from its file among the run's steps, as far as it goes."""
    x, y = task.data()
    path = run.shared(f"training-{task.loss}", ".pt", task._asdict())
    return Trained(task, x, y, *_train(run, task, x, y, path))


def _train(run: Run, task: Task, x: Tensor, y: Tensor, path: Path) -> tuple[Tensor, dict[int, Weights]]:
    """Train by full-batch Adam, with the learning rate lr (1 + cos(pi k / steps)) / 2 in step k.

    The state is written to `path` every few seconds, each time in one piece. An interrupted training continues from
    it, with the same number of threads on the same machine to the same bits.
    """
    loss, steps, criterion = task.loss, task.steps, resolve(task.loss)
    W, V = task.weights()
    leaves = [W, V.T.contiguous()]  # V^T: a^T grad takes an eighth of the time of grad^T a
    state = _load(path, run) or {"step": 0, "losses": torch.zeros(steps + 1, dtype=torch.float64), "weights": {}}
    if "leaves" in state:
        leaves = state["leaves"]
    W, Vt = (leaf.requires_grad_() for leaf in leaves)
    adam = torch.optim.Adam([W, Vt], lr=task.learning_rate)
    if "adam" in state:
        adam.load_state_dict(state["adam"])

    kept, todo, saved = set(moments(steps)), range(state["step"], steps + 1), time.monotonic()
    bar = {"initial": todo.start, "total": steps + 1}
    for step in run.timed(todo, f"steps of training, {LOSSES[loss]}", sample=_SAMPLE, **bar):
        if step in kept:
            state["weights"][step] = W.detach().clone(), Vt.detach().T.clone(memory_format=torch.contiguous_format)
        error = criterion.value(torch.relu(x @ W.T) @ Vt, y)
        state["losses"][step] = error.detach()
        if step < steps:
            adam.param_groups[0]["lr"] = task.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            adam.zero_grad()
            error.backward()
            adam.step()
        if step == steps or time.monotonic() - saved > _SAVED:
            state |= {"step": step + 1, "leaves": [W.detach(), Vt.detach()], "adam": adam.state_dict()}
            buffer = io.BytesIO()
            torch.save(state, buffer)
            _files.replace(path, buffer.getvalue())
            saved = time.monotonic()
    return state["losses"], state["weights"]


def _load(path: Path, run: Run) -> dict[str, Any] | None:
    try:
        return torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        run.say(f"{path} is damaged: trained again")
        return None
