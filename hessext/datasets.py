"""Seeded data sets: x (N, d) float32 or float64 and labels y (N,) int64, as hessext.linear and one_hidden take them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _checks, _files
from ._checks import count
from ._memory import require
from ._random import generator

if TYPE_CHECKING:
    from types import ModuleType

Data = tuple[Tensor, Tensor]
_LABEL = torch.iinfo(torch.int64).max


def gaussian(
    samples: int,
    features: int,
    classes: int,
    *,
    balanced: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """x ~ N(0, I), and uniform labels independent of x.

    With `balanced` the labels are 0, 1, .., C - 1, 0, 1, .. in turn. Numbers are drawn in float32 for either dtype.
    Raises ValueError, TypeError, MemoryError.
    """
    N, d, C = count("samples", samples), count("features", features), count("classes", classes, 1, _LABEL)
    g = _seeded("gaussian", seed, dtype)
    require(N * d * (4 + dtype.itemsize) + 16 * N, f"{N} samples of {d} features")
    x = torch.randn(N, d, generator=g).to(dtype)
    return x, torch.arange(N) % C if balanced else torch.randint(C, (N,), generator=g)


def clustered(
    samples: int,
    features: int,
    classes: int,
    clusters: int,
    *,
    radius: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """k-clustered data on the unit sphere, as in Li, Soltanolkotabi and Oymak (arXiv 1903.11680).

    Centres c_1 .. c_k are uniform on the sphere, and cluster l belongs to class l mod C. Sample n belongs to cluster
    n mod k and is at most `radius` from its centre: x = c cos t + u sin t, where u is a uniform direction orthogonal to
    c, and the distance 2 sin(t / 2) is uniform in [0, radius].

    Raises:
        ValueError: clusters < classes, fewer than 2 features, radius not in [0, 2]. TypeError, MemoryError.
    """
    N, d, C = count("samples", samples), count("features", features, 2), count("classes", classes, 1, _LABEL)
    k = count("clusters", clusters)
    if k < C:
        raise ValueError(f"clusters: expected at least one per class, {C}; got {k}")
    radius = _checks.number("radius", radius)
    if not 0 <= radius <= 2:
        raise ValueError(f"radius: expected a distance between points of the unit sphere, 0 to 2; got {radius}")
    g = _seeded("clustered", seed, dtype)
    require(8 * d * (4 * N + 2 * k), f"{N} samples of {d} features in {k} clusters")
    centres = torch.nn.functional.normalize(torch.randn(k, d, generator=g, dtype=torch.float64))
    cluster = torch.arange(N) % k
    c = centres[cluster]
    u = torch.randn(N, d, generator=g, dtype=torch.float64)
    u = torch.nn.functional.normalize(u - (u * c).sum(1, keepdim=True) * c)
    angle = 2 * torch.asin(torch.rand(N, 1, generator=g, dtype=torch.float64) * radius / 2)
    return (c * angle.cos() + u * angle.sin()).to(dtype), cluster % C


def digits(*, samples: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32) -> Data:
    """scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels in 10 classes, x (1797, 64).

    Every pixel is centred, and all pixels are divided by their common standard deviation, over all images. samples: a
    random choice of so many, without repetition. Raises ValueError, TypeError; ImportError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install 'hessext[figures]'") from error
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images)
    x = x - x.mean(0)
    kept = _chosen(samples, len(x), seed, dtype)
    return (x / x.std())[kept].to(dtype), torch.from_numpy(labels).long()[kept]


def cifar100(
    folder: str | os.PathLike,
    *,
    download: bool = False,
    samples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """CIFAR-100's training images: 50000 images in 100 classes, x (50000, 3072), one channel after the other.

    Every channel has mean 0 and standard deviation 1 over all images. folder: torchvision's root, which holds
    cifar-100-python. samples: a random choice of so many, without repetition. Raises ValueError, TypeError,
    FileNotFoundError; ImportError without torchvision; OSError where files are damaged.
    """
    folder = _files.path_of("folder", folder)
    datasets = _torchvision()
    if not download and not (folder / "cifar-100-python").is_dir():
        raise FileNotFoundError(
            "folder: expected one that holds CIFAR-100 (cifar-100-python), or download=True (--download), with which "
            f"torchvision puts 169 MB there; got {folder}"
        )
    try:
        images = datasets.CIFAR100(str(folder), train=True, download=download)
    except RuntimeError as error:
        raise OSError(f"folder: CIFAR-100 in {folder} is incomplete or damaged: {error}") from error
    kept = _chosen(samples, len(images.data), seed, dtype)
    pixels = torch.from_numpy(images.data).movedim(3, 1)  # (n, 3, 32, 32)
    x = pixels[kept].double()
    for channel in range(3):
        frequency = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
        value = torch.arange(256.0, dtype=torch.float64)
        mean = frequency @ value / frequency.sum()
        variance = frequency @ (value - mean) ** 2 / frequency.sum()
        x[:, channel] = (x[:, channel] - mean) / variance.sqrt()
    return x.flatten(1).to(dtype), torch.tensor(images.targets)[kept]


def _torchvision() -> ModuleType:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError("cifar100 needs torchvision: pip install 'hessext[cifar]'") from error
    except RuntimeError as error:  # its operators were compiled for another torch
        raise ImportError(f"cifar100 needs a torchvision that fits torch {torch.__version__}: {error}") from error
    return datasets


def _seeded(stream: str, seed: int, dtype: torch.dtype) -> torch.Generator:
    _checks.dtype(dtype)
    return generator(stream, seed)


def _chosen(samples: int | None, total: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Indices of `samples` random ones of all, without repetition; of all for None."""
    g = _seeded("chosen", seed, dtype)
    if samples is None:
        return torch.arange(total)
    if count("samples", samples) > total:
        raise ValueError(f"samples: expected at most {total}, all there are; got {samples}")
    return torch.randperm(total, generator=g)[:samples]
