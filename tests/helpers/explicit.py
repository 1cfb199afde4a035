"""Approximations of a layer's matrix as explicit matrices: the definitions, obvious rather than fast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cases import Case, Inputs, make_inputs
from .deep import Deep, DeepInputs, make_deep


def inputs_of(case: Case | Deep, dtype: torch.dtype) -> Inputs | DeepInputs:
    """Tensors of a case of either kind."""
    return make_deep(case, dtype) if isinstance(case, Deep) else make_inputs(case, dtype)


def counted_of(inputs: Inputs | DeepInputs) -> Tensor:
    """Which samples the loss counts."""
    loss = inputs.loss
    if isinstance(loss, nn.CrossEntropyLoss) and not inputs.y.is_floating_point():
        return inputs.y != loss.ignore_index
    return torch.ones(len(inputs.y), dtype=torch.bool)


def assembled(Q: Tensor, phi: Tensor) -> Tensor:
    """sum_n Q_n (x) phi_n phi_n^T (K s, K s)."""
    K, s = Q.shape[1], phi.shape[1]
    return torch.einsum("nij,na,nb->iajb", Q, phi, phi).reshape(K * s, K * s)


def root(t: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(t)
    values = torch.where(values > 1e-14 * values.abs().max(), values, 0.0)  # roots of roundings are not small
    return (vectors * values.sqrt()) @ vectors.T


def kept_where(H: Tensor, mask: Tensor) -> Tensor:
    """Entries of H (K, s, K, s) where a mask that broadcasts is true."""
    return torch.where(mask, H, 0.0)


def matrices(H: Tensor, Q: Tensor, phi: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """M by name, of H (K s, K s) and of Q_n of its Gauss-Newton term; "Shampoo" without its scalar."""
    K, s = Q.shape[1], phi.shape[1]
    full = H.view(K, s, K, s)
    row, column = torch.eye(K, dtype=torch.bool)[:, None, :, None], torch.eye(s, dtype=torch.bool)[None, :, None, :]
    means = full.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).mean(1)
    F, t = phi.square().sum(1), Q.diagonal(dim1=1, dim2=2).sum(1)
    G, L = Q.sum(0), torch.einsum("n,nij->ij", F, Q)
    A, R = phi[counted].T @ phi[counted] / counted.sum(), torch.einsum("n,na,nb->ab", t, phi, phi)
    basis = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
    left, _, right = torch.linalg.svd(full.permute(0, 2, 1, 3).reshape(K * K, s * s), full_matrices=False)
    singular = torch.linalg.svdvals(full.permute(0, 2, 1, 3).reshape(K * K, s * s))
    return {
        "block-diagonal": kept_where(full, row),
        "input-column blocks": kept_where(full, column),
        "diagonal": kept_where(full, row & column),
        "Adam-mini": torch.kron(means.diag(), torch.eye(s, dtype=H.dtype)),
        "K-FAC": torch.kron(G, A),
        "E-KFAC": (basis * (basis.T @ H @ basis).diagonal()) @ basis.T,
        "Shampoo": torch.kron(root(L), root(R)),
        "Shampoo, squared factors": torch.kron(L, R) / L.trace(),
        "one-sided": torch.kron(L / s, torch.eye(s, dtype=H.dtype)),
        "nearest Kronecker": singular[0] * torch.kron(left[:, 0].view(K, K), right[0].view(s, s)),
    }


def errors(H: Tensor, M: Tensor) -> tuple[float, float, float]:
    """relative_error, scaled_error and cosine of M."""
    M = M.reshape(H.shape)
    scalar = torch.sum(H * M) / M.square().sum()
    cosine = torch.sum(H * M) / (H.norm() * M.norm())
    return (H - M).norm().item() / H.norm().item(), (H - scalar * M).norm().item() / H.norm().item(), cosine.item()
