"""`hessext.layer`: one linear layer of any network, against float64 autograd of torch's loss in the layer's weight."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers.layers import LAST, assert_layer, texts, truth
from helpers.networks import Convolutional, Pooled, Transformer, images, tokens
from helpers.reference import TOLERANCE
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader, TensorDataset

import hessext

# --- transformers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [1 << 30, 1 << 14], ids=["kept", "recorded again"])
def test_every_local_layer_of_a_transformer(memory):
    model, batches = Transformer(), texts((2, 5), (1, 4))
    H = hessext.layer(model, [*LAST, "head"], batches, memory=memory)
    assert set(H.layers) == {f"{name}.weight" for name in (*LAST, "head")} | {"blocks.1.mlp.down.bias"}
    for name in (*LAST, "head"):
        assert_layer(H, name, truth(model, name, batches, nn.CrossEntropyLoss()))


@pytest.mark.parametrize("name", ["blocks.1.attention.k", "blocks.1.attention.v", "blocks.0.mlp.down"])
def test_layers_whose_places_are_mixed(name):
    with pytest.raises(ValueError, match=rf"^name: expected a layer after .* those of '{name}' are mixed") as e:
        hessext.layer(Transformer(), name, texts((2, 5)))
    proposed = str(e.value).rpartition(": ")[2].split(", ")
    assert set(proposed) == {f"'{n}'" for n in (*LAST, "head")}


def test_terms_add_up_and_are_checked():
    model, batches = Transformer(tied=False), texts((2, 5))
    names = LAST[1::3]
    H = hessext.layer(model, names, batches)
    for name in names:
        parts = [getattr(H, term)()[name].dense() for term in ("gauss_newton", "residual")]
        torch.testing.assert_close(sum(parts), H[name].dense(), rtol=0, atol=1e-15)
        assert all(part.norm() > 0 for part in parts)
    for some in (H, H.gauss_newton(), H.residual()):
        report = hessext.autograd.check(some)
        assert report
        assert report.complete
        assert report.max_rel < 1e-14
    sample = hessext.autograd.check(H, max_bytes=1000)
    assert sample
    assert not sample.complete


# --- other networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_linear_layers_behind_convolutions(loss):
    model, x, y = Convolutional(), images(9), torch.arange(9) % 4
    H = hessext.layer(model, ["fc1", "fc2", "fc3"], DataLoader(TensorDataset(x, y), 4), loss=loss)
    one_hot = F.one_hot(y, 4).double()
    value = nn.CrossEntropyLoss() if loss == "cross_entropy" else lambda f, _: (f - one_hot).square().sum() / 9
    for name in ("fc1", "fc2", "fc3"):
        assert_layer(H, name, truth(model, name, [(x, y)], value))
    assert hessext.autograd.check(hessext.layer(model, "fc2", x, y, loss=loss).to(torch.float32))


def test_one_logit():
    model, x, y = Convolutional(), images(7), torch.arange(7) % 2
    model.fc3 = nn.Linear(7, 1).double()
    H = hessext.layer(model, "fc1", x, y, loss="binary_cross_entropy")
    expected = truth(model, "fc1", [(x, y)], lambda f, y: F.binary_cross_entropy_with_logits(f[:, 0], y.double()))
    assert_layer(H, "fc1", expected)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_pooling(pool):
    """After the pooling samples are places; before it, positions are mixed, unless all but one are dropped."""
    model, x, y = Pooled(pool), tokens(3, 4), torch.tensor([0, 2, 1])
    expected = truth(model, "after", [(x, y)], nn.CrossEntropyLoss())
    assert_layer(hessext.layer(model, "after", x, y), "after", expected)
    if pool == "mean":
        with pytest.raises(ValueError, match="those of 'before' are mixed"):
            hessext.layer(model, "before", x, y)
        return
    expected = truth(model, "before", [(x, y)], nn.CrossEntropyLoss())
    assert_layer(hessext.layer(model, "before", x, y), "before", expected)


def test_places_made_features_are_mixed():
    """Where positions reach different inputs of one layer, no output tells them apart but the next one's curvature."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()
    with pytest.raises(ValueError, match=r"those of '0' are mixed .* these would do: '3'$"):
        hessext.layer(model, "0", torch.rand(2, 5, 3).double(), torch.tensor([0, 1]))


class Conv1D(nn.Module):
    """As transformers has it for GPT-2."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


def test_transposed_weights():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6)).double()
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for k in (0, 2):
        plain[k].load_state_dict({"weight": model[k].weight.T, "bias": model[k].bias})
    x, y = torch.rand(5, 4).double(), torch.arange(5) % 3
    expected = hessext.hessian(plain, x, y)
    for name in ("0", "2"):
        H = hessext.layer(model, name, x, y)
        assert H[name].grid[0] == len(plain[int(name)].weight)
        torch.testing.assert_close(H[name].dense(), expected[name].dense())
    torch.testing.assert_close(hessext.head(model, "2", x, y)["2"].dense(), expected["2"].dense())
    assert hessext.autograd.check(hessext.layer(model, "0", x, y))


def test_parametrized_weights():
    model, x, y = Convolutional(), images(5), torch.arange(5) % 4
    expected = truth(model, "fc1", [(x, y)], nn.CrossEntropyLoss())
    weight_norm(model.fc1)
    weight_norm(model.fc2)  # in the tail
    assert_layer(hessext.layer(model, "fc1.weight", x, y), "fc1", expected)
    assert hessext.autograd.check(hessext.layer(model, "fc1.weight", x, y))
    with pytest.raises(TypeError, match=r"^name: .* made of parametrizations.*'fc1.weight' asks for"):
        hessext.layer(model, "fc1", x, y)


def test_transformer_of_torch():
    """Its evaluation mode has a fused path that passes over the layers."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(encoder, nn.Linear(8, 5)).double().eval()
    x, y = torch.randn(2, 4, 8).double(), torch.arange(8).view(2, 4) % 5
    for name in ("0.linear1", "0.linear2"):
        H = hessext.layer(model, name, x, y)
        assert hessext.autograd.check(H).max_rel < 1e-14
    with pytest.raises(TypeError, match=r"expected a linear layer that the model calls; MultiheadAttention uses"):
        hessext.layer(model, "0.self_attn.out_proj", x, y)  # the attention uses its weight and never calls it


# --- how it is asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    model, batches = Transformer(dtype=dtype), texts((2, 5))
    double = copy.deepcopy(model).double()
    names = LAST[::4]
    H = hessext.layer(model, names, batches)
    assert H.dtype == torch.float32
    for name in names:
        expected = truth(double, name, batches, nn.CrossEntropyLoss())
        assert_layer(H, name, expected.float(), 5 * TOLERANCE[torch.float32])
    if dtype == torch.float16:
        assert hessext.autograd.check(H)


def state(model):
    tensors = {k: (v.clone(), v.data_ptr(), v.requires_grad, v.grad) for k, v in model.named_parameters()}
    tensors |= {k: (v.clone(), v.data_ptr()) for k, v in model.named_buffers()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return tensors, hooks, torch.get_rng_state()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = Convolutional().eval()
    model.dropout = nn.Dropout(0.0).train()  # training mode where nothing depends on it
    x, y = images(5), torch.arange(5) % 4
    before, hooks, random = state(model)
    if fails:
        with pytest.raises(ValueError, match="batch 1: y: expected labels in"):
            hessext.layer(model, "fc1", [(x, y), (x, y + 4)])
    else:
        hessext.layer(model, ["fc1", "fc2"], x, y, memory=5000)["fc1"].dense()
    after, hooks_after, random_after = state(model)
    assert hooks == hooks_after
    assert torch.equal(random, random_after)
    assert before.keys() == after.keys()
    for key, (value, *rest) in before.items():
        assert torch.equal(value, after[key][0])
        assert rest == list(after[key][1:])


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_modes_around_do_not_matter(around):
    model, batches = Transformer(dtype=torch.float32), texts((2, 4))
    expected = hessext.layer(model, "blocks.1.mlp.up", batches).dense()
    with around():
        assert torch.equal(hessext.layer(model, "blocks.1.mlp.up", batches).dense(), expected)


def test_pickle_and_other_dtypes():
    model, batches = Transformer(), texts((2, 4), (1, 3))
    H = hessext.layer(model, LAST[:2], batches)
    again = pickle.loads(pickle.dumps(H))
    for name in LAST[:2]:
        assert torch.equal(again[name].dense(), H[name].dense())
    single = hessext.layer(Transformer(dtype=torch.float32), LAST[0], batches)
    assert hessext.autograd.check(single.to(torch.float64)).max_rel < 1e-14  # run again, not lifted
    local = hessext.layer(model, LAST[0], batches, forward=lambda model, batch: (model(batch[0]), batch[1]))
    with pytest.raises(TypeError, match=r"^forward: expected a function that can be pickled"):
        pickle.dumps(local)


def test_logits_are_not_kept():
    """There may be many more of them than of all else that a tail is made of."""
    logits = []

    def forward(model, batch):
        logits.append(weakref.ref(found := model(batch[0])))
        return found, batch[1]

    H = hessext.layer(Transformer(), LAST[:2], texts((2, 5), (1, 4)), forward=forward)
    gc.collect()
    assert len(logits) >= 2
    assert all(one() is None for one in logits)
    assert H[LAST[0]].trace().isfinite()


def test_several_layers_are_not_one_matrix():
    H = hessext.layer(Transformer(), LAST[:2], texts((2, 4)))
    down, up = LAST[:2]
    with pytest.raises(KeyError, match=f"parts between '{down}' and '{up}' are not formed"):
        H[down, up]
    with pytest.raises(KeyError, match=r"expected one of 'blocks\.1\.mlp\.down'"):
        H["blocks.0.mlp.down"]
    for what in (H.dense, H.norms, H.to_scipy, lambda: H @ torch.ones(H.shape[1])):
        with pytest.raises(ValueError, match=r"expected one layer, as the parts between several are not formed"):
            what()
    assert len(H.diagonal()) == H.shape[0]
    torch.testing.assert_close(H.trace(), sum(H[name].trace() for name in LAST[:2]))


def test_products():
    """With a vector and a matrix, of a part and of the whole, in every term."""
    model, x, y = Convolutional(), images(5), torch.arange(5) % 4
    H = hessext.layer(model, "fc2", [(x[:2], y[:2]), (x[2:], y[2:])])
    v = torch.randn(H.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for some in (H, H.gauss_newton(), H.residual()):
        torch.testing.assert_close(some @ v, some.dense() @ v)
        torch.testing.assert_close(some["fc2"] @ v[:, 0], some["fc2"].dense() @ v[:, 0])
