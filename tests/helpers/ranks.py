"""How a Hessian of several ranks is compared with that of one process, and the cases that ranks run together.

Every rank makes the whole problem, takes its own samples of it, and compares with what it computes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
BOTH = 2, 4
CASES: dict[str, tuple[tuple[int, ...], Callable[[], None]]] = {}


def case(name: str, *arguments, sizes: tuple[int, ...] = BOTH) -> Callable:
    """Register a function with arguments as a case."""

    def register(function: Callable) -> Callable:
        CASES[name] = sizes, partial(function, *arguments)
        return function

    return register


def own(*tensors: Tensor, empty: bool = False) -> tuple[Tensor | None, ...]:
    """This rank's samples: shares in the ratio 3 : 1 : 2 : 1; with `empty`, the last rank has none."""
    rank, size = dist.get_rank(), dist.get_world_size()
    shares = [3, 1, 2, 1][:size]
    if empty:
        shares[-1] = 0
    N, ends = len(tensors[0]), [0]
    for share in shares:
        ends.append(ends[-1] + share)
    first, last = (N * end // ends[-1] for end in (ends[rank], ends[rank + 1]))
    return tuple(None if first == last else t[first:last] for t in tensors)


def close(found, expected, dtype: torch.dtype, what: str = "") -> None:
    """Equal within the tolerance, relative to the largest number."""
    found, expected = (torch.as_tensor(t, dtype=torch.float64) for t in (found, expected))
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    assert torch.equal(found.isnan(), expected.isnan()), (what, found, expected)
    error, size = ((t.nan_to_num(0.0)).abs().max().item() for t in (found - expected, expected))
    assert error <= TOLERANCE[dtype] * size, (what, error / size if size else error, found, expected)


def same_on_all_ranks(t: Tensor) -> None:
    """The same bits."""
    found = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(found, t.contiguous())
    assert all(torch.equal(t, other) for other in found)


def compare_part(B, E, dtype: torch.dtype, terms: str = "all") -> None:
    """Every result of a part, B of all ranks, E of one process."""
    rows, cols = E.grid
    v = torch.linspace(-1, 1, E.shape[1], dtype=dtype)
    pairs = [(0, cols - 1), (rows - 1, 0), (rows - 1, cols - 1)]
    sums = {
        "dense": lambda M: M.dense(),
        "block": lambda M: M.block(rows - 1, 0),
        "blocks": lambda M: M.blocks(pairs),
        "product": lambda M: M @ v,
        "products": lambda M: M @ torch.stack([v, v * v], 1),
        "norms": lambda M: M.norms(),
        "some norms": lambda M: M.norms(pairs),
        "norm": lambda M: M.norm(),
    }
    if E.symmetric:
        u = torch.linspace(1, 2, E.shape[0], dtype=dtype)
        sums |= {
            "ratio": lambda M: torch.tensor(M.ratio()),
            "row norms": lambda M: torch.stack(M.row_norms()[:3]),
            "diagonal": lambda M: M.diagonal(),
            "trace": lambda M: M.trace(),
            "diagonal blocks": lambda M: M.diagonal_blocks(),
            "inner diagonal": lambda M: M.inner(u),
        }
    for name, result in sums.items():
        close(result(B), result(E), dtype, name)
    same_on_all_ranks(B.norms())


def compare_structure(B, E, dtype: torch.dtype) -> None:
    """What is computed from sums over pairs of samples."""
    K, s = E.grid[0], E.block_shape[0]
    G, A = (torch.arange(1.0, n * n + 1, dtype=dtype).sin().view(n, n) for n in (K, s))
    G, A = G + G.T, A + A.T
    for name, result in {
        "factors": lambda M: M.inner((G, A)),
        "itself": lambda M: M.inner(M),
        "solve": lambda M: M.solve_block_diagonal(torch.ones(K * s, dtype=dtype), 0.5),
        "eigenvalues": lambda M: M.eigh_blocks().eigenvalues,
    }.items():
        close(result(B), result(E), dtype, name)
    if not E.norm():
        return
    groups = [0] * (K // 2) + [1] * (K - K // 2)
    tables = [M.approximations(groups=groups, factors={"given": (G, A)}) for M in (B, E)]
    for row, expected in zip(*tables, strict=True):
        assert row.name == expected.name
        floor = row.note.startswith("below") or expected.note.startswith("below")
        for field, power in {"relative_error": 2, "scaled_error": 2, "cosine": 1}.items():
            if not (floor and power == 2):
                a, b = (getattr(one, field) ** power for one in (row, expected))
                assert a == pytest.approx(b, rel=TOLERANCE[dtype], abs=10 * TOLERANCE[dtype], nan_ok=True), (
                    row,
                    expected,
                )
        for field in ("population", "sampling_error"):
            found = getattr(row, field), getattr(expected, field)
            if field == "population" and expected.cosine > 1 - 1e-12:
                continue  # 1, or by a rounding above it, which is none
            assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6, nan_ok=True), (field, row, expected)
    if K * s <= 20:  # as many products
        spectra = [M.preconditioned_spectrum("diagonal", relative_damping=1.0) for M in (B, E)]
        assert spectra[0].largest == pytest.approx(spectra[1].largest, rel=1e-5)
    nearest, expected = (M.nearest_kronecker(2) for M in (B, E))
    for a, b in zip(nearest.errors, expected.errors, strict=True):
        assert abs(a * a - b * b) <= 10 * TOLERANCE[dtype]
    # vectors keep half of the digits of what they make largest
    close(*(torch.kron(M.G, M.A) for M in (nearest, expected)), torch.float32)


def compare(H, E, dtype: torch.dtype) -> None:
    """All terms and parts of a Hessian."""
    v = torch.linspace(-1, 1, E.shape[0], dtype=dtype)
    for term in ("full", "gauss_newton", "residual"):
        M, expected = (T if term == "full" else getattr(T, term)() for T in (H, E))
        close(M.dense(), expected.dense(), dtype, term)
        close(M @ v, expected @ v, dtype, term)
        close(M.diagonal(), expected.diagonal(), dtype, term)
        close(M.trace(), expected.trace(), dtype, term)
    close(H.norms(), E.norms(), dtype, "norms")
    close(list(H.shares().values()), list(E.shares().values()), dtype, "shares")
    names = [name for name in E.layers if "bias" not in name]
    for r, row in enumerate(names):
        for col in names[r:]:
            compare_part(H[row, col], E[row, col], dtype)
    for name in names:
        compare_structure(H[name], E[name], dtype)


def raises(kind: type[Exception], pattern: str, function: Callable, *arguments, **options) -> None:
    """An error of this type whose text has the pattern."""
    with pytest.raises(kind, match=pattern):
        function(*arguments, **options)
