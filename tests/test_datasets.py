"""Data sets: what they hold, that seeds hold, and what is said where one is missing."""

import builtins
import sys
import types

import numpy as np
import pytest
import torch

import hessext
from hessext import datasets

CALLS = [
    lambda **options: datasets.gaussian(30, 7, 4, **options),
    lambda **options: datasets.clustered(30, 7, 4, 8, **options),
    lambda **options: datasets.digits(samples=30, **options),
]


@pytest.mark.parametrize("call", CALLS, ids=["gaussian", "clustered", "digits"])
def test_seeds_and_dtypes(call):
    if call is CALLS[2]:
        pytest.importorskip("sklearn")
    x, y = call(seed=3)
    again, labels = call(seed=3)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and len(x) == len(y) == 30
    assert torch.equal(x, again) and torch.equal(y, labels)
    assert not torch.equal(x, call(seed=4)[0])
    double, _ = call(seed=3, dtype=torch.float64)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), x)
    with pytest.raises(ValueError, match=r"^dtype: expected torch.float32 or torch.float64; got torch.float16"):
        call(dtype=torch.float16)
    with pytest.raises(TypeError, match=r"^seed: expected an integer; got 'one'"):
        call(seed="one")


def test_gaussian():
    x, y = datasets.gaussian(20000, 5, 3, seed=1)
    assert x.mean(0).abs().max() < 0.03 and (torch.cov(x.T) - torch.eye(5)).abs().max() < 0.05
    assert (torch.bincount(y) / len(y) - 1 / 3).abs().max() < 0.02
    assert torch.equal(datasets.gaussian(7, 2, 3, balanced=True)[1], torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def test_data_are_not_the_numbers_that_weights_are_made_of():
    x, _ = datasets.gaussian(10, 6, 3, seed=5)
    torch.manual_seed(5)
    for weights in (torch.randn(10, 6), *hessext._random.lecun((10, 6), seed=5)):
        cosines = torch.nn.functional.cosine_similarity(x.flatten(), weights.flatten(), 0)
        assert cosines.abs() < 0.5


def test_clusters_lie_on_the_sphere_around_their_centres():
    k, C, radius = 12, 4, 0.3
    x, y = datasets.clustered(600, 20, C, k, radius=radius, dtype=torch.float64)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(600, dtype=torch.float64))
    centres, _ = datasets.clustered(k, 20, C, k, radius=0.0, dtype=torch.float64)
    distance = torch.cdist(x, centres)
    nearest = distance.argmin(1)
    assert torch.equal(nearest, torch.arange(600) % k) and torch.equal(y, nearest % C)
    reached = distance.amin(1)
    assert reached.max() <= radius + 1e-12 and reached.max() > 0.98 * radius
    assert reached.mean() == pytest.approx(radius / 2, rel=0.1)  # uniform


@pytest.mark.parametrize("radius", ["x", None, True, [1]])
def test_a_radius_that_is_no_number(radius):
    with pytest.raises(TypeError, match=r"^radius: expected a number; got"):
        datasets.clustered(9, 3, 2, 3, radius=radius)


def test_data_that_do_not_fit():
    for call in (lambda: datasets.gaussian(2**40, 2**30, 2), lambda: datasets.clustered(3, 2, 2, 2**62)):
        with pytest.raises(MemoryError, match=r"features.* needs"):
            call()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((9, 3, 4, 3), {}, "clusters: expected at least one per class, 4; got 3"),
        ((9, 1, 2, 3), {}, "features: expected at least 2; got 1"),
        (
            (9, 3, 2, 3),
            {"radius": 2.5},
            "radius: expected a distance between points of the unit sphere, 0 to 2; got 2.5",
        ),
        ((0, 3, 2, 3), {}, "samples: expected at least 1; got 0"),
    ],
)
def test_bad_clusters(arguments, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        datasets.clustered(*arguments, **options)


def test_digits():
    pytest.importorskip("sklearn")
    x, y = datasets.digits(dtype=torch.float64)
    assert x.shape == (1797, 64) and y.unique().tolist() == list(range(10))
    assert x.mean(0).abs().max() < 1e-12 and x.std() == pytest.approx(1)
    part, labels = datasets.digits(samples=50, dtype=torch.float64)
    where = torch.cdist(part, x).argmin(1)
    assert len(where.unique()) == 50 and torch.equal(x[where], part) and torch.equal(y[where], labels)
    with pytest.raises(ValueError, match=r"^samples: expected at most 1797, all there are; got 1798"):
        datasets.digits(samples=1798)


# ---------------------------------------------------------------------------------------------------------- CIFAR-100


@pytest.fixture
def torchvision(monkeypatch):
    """What of torchvision is used, with 40 images of its shape in place of the download."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)

    class CIFAR100:
        def __init__(self, root, train, download):
            assert isinstance(root, str) and train
            self.download, self.data, self.targets = download, images, list(range(40))

    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR100=CIFAR100)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return images


def test_cifar100(torchvision, tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    x, y = datasets.cifar100(tmp_path, dtype=torch.float64)
    assert x.shape == (40, 3072) and y.tolist() == list(range(40))
    channels = x.view(40, 3, 1024).transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-12 and (channels.square().mean(1) - 1).abs().max() < 1e-12
    for channel in range(3):  # channel by channel, rows of pixels: torch's order
        pixels = torch.from_numpy(torchvision[:, :, :, channel].reshape(40, -1).astype(float))
        assert (
            torch.corrcoef(torch.stack([x.view(40, 3, 1024)[:, channel].flatten(), pixels.flatten()]))[0, 1] > 1 - 1e-9
        )
    part, labels = datasets.cifar100(tmp_path, samples=8, dtype=torch.float64)
    assert len(set(labels.tolist())) == 8 and torch.equal(part, x[labels])  # the scale is that of all images


def test_missing_or_damaged_cifar100(torchvision, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"^folder: expected one that holds .* download=True \(--download\)"):
        datasets.cifar100(tmp_path)
    datasets.cifar100(tmp_path, download=True)

    def damaged(*_, **options):
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr(sys.modules["torchvision"].datasets, "CIFAR100", damaged)
    with pytest.raises(OSError, match=r"^folder: CIFAR-100 in .* is incomplete or damaged: Dataset not found"):
        datasets.cifar100(tmp_path, download=True)


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        ("sklearn", datasets.digits, r"digits needs scikit-learn: pip install 'hessext\[figures\]'"),
        ("torchvision", lambda: datasets.cifar100("."), r"cifar100 needs torchvision: pip install 'hessext\[cifar\]'"),
    ],
)
def test_missing_packages(package, call, message, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=message):
        call()
