"""Results and everything between live on the inputs' device; what is special on a GPU."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from helpers.cases import DTYPES, HIDDEN, LINEAR, Case, make_inputs
from helpers.reference import assert_accurate

import hessext
from hessext import _core
from hessext.matrix import other_classes

CASE = Case(197, 33, 17, 5, bias="ho")
SPECIAL = [Case(30, 3, 200), Case(40, 30, 4, 5), Case(9, 40, 5, 6, loss="mse"), Case(40, 5, 6, 5, activation="tanh")]


def everything(H):
    """Call all that a Hessian can do."""
    v = torch.ones(H.shape[1], dtype=H.dtype, device=H.device)
    yield from (H.dense(), H @ v, H.norms(), H.gauss_newton().dense(), H.residual().dense())
    for row in H.layers:
        for col in H.layers:
            B = H[row, col]
            yield from (B.dense(), B.norms(), B.norms([(0, 0)]), B.blocks([(0, 0)]), B.block(0, 0), B @ v[: B.shape[1]])
            if row == col:
                B.ratio()
                yield from (*B.row_norms(), B.diagonal(), B.trace(), B.diagonal_blocks())


@pytest.mark.parametrize("case", LINEAR[::3] + HIDDEN[::3] + SPECIAL, ids=lambda c: c.name)
def test_the_default_device_does_not_matter(case):
    """Whatever is made inside is made on the inputs' device: the default one here has no memory to mix with."""
    inputs = make_inputs(case, torch.float64)
    with torch.device("meta"):
        H = inputs.hessian()
        for result in everything(H):
            assert result.device.type == "cpu"
        assert hessext.autograd.check(H).passed


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match=r"weight: expected a CPU or CUDA tensor; got meta"):
        hessext.linear(torch.ones(2, 3, device="meta"), torch.ones(4, 3))


def test_a_build_without_cuda_says_so(monkeypatch):
    if _core.cuda:
        monkeypatch.setattr("hessext._checks._core.cuda", False)

    class OnGpu(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda", 0)

    with pytest.raises(
        ValueError, match="weight: expected a CPU tensor, as this build has no CUDA kernels; got cuda:0"
    ):
        hessext.linear(torch.ones(2, 3).as_subclass(OnGpu), torch.ones(4, 3))


@contextmanager
def waits_are_errors():
    """torch's switch for it, which warns the first time that it is a prototype."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_switch_for_waits_is_always_put_back(monkeypatch):
    modes = []

    def set_mode(mode):
        modes.append(mode)
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with waits_are_errors():
        assert modes == ["error"]
    assert modes == ["error", "default"]


def test_nothing_new_is_kept_while_a_graph_is_captured(monkeypatch):
    """What is made then holds no values until the graph has run."""
    H, capturing = make_inputs(CASE, torch.float64).hessian(), [True]
    monkeypatch.setattr("hessext._checks.captured", lambda t: capturing[0])
    expected = H.dense()
    samples = H._data
    assert not any(samples.cache._found.values())
    capturing[0] = False
    assert torch.equal(H.dense(), expected)
    kept = samples.output
    capturing[0] = True
    assert samples.output is kept  # made before: it has its values
    monkeypatch.setattr("hessext._tensors._stream", lambda t: 7)  # a capture has a stream of its own
    assert samples.output is kept


def test_streams_do_not_share_what_is_kept(monkeypatch):
    """Another one's work may still be under way, and its memory is its own."""
    samples, stream = make_inputs(CASE, torch.float64).hessian()._data, [0]
    monkeypatch.setattr("hessext._tensors._stream", lambda t: stream[0])
    first, slope = samples.output, samples.slope(0)
    stream[0] = 1
    second = samples.output
    assert second is not first and torch.equal(second.probs, first.probs) and samples.slope(0) is not slope
    assert samples.output is second
    stream[0] = 0
    assert samples.output is first


def test_the_choice_of_a_form_does_not_look_at_a_gpus_values(monkeypatch):
    class OnGpu(torch.Tensor):
        is_cuda = True
        device = torch.device("cuda", 0)

    for activation, share in (("relu", 0.5), ("leaky_relu", 1.0), ("tanh", 1.0)):
        samples = make_inputs(Case(40, 6, 3, 5, activation=activation), torch.float64).hessian()._data
        monkeypatch.setattr(type(samples), "slope", lambda *_: pytest.fail("a wait"))
        samples.x = samples.x.as_subclass(OnGpu)
        assert samples.active.__wrapped__(samples, 0) == share


# ------------------------------------------------------------------------------------------------- on a GPU

needs_gpu = pytest.mark.skipif(not (torch.cuda.is_available() and _core.cuda), reason="no GPU, or no CUDA kernels")


def on(device, case=CASE, dtype=torch.float32):
    return make_inputs(case, dtype).to(dtype, device).hessian()


@pytest.mark.gpu
@needs_gpu
def test_everything_lives_on_the_gpu():
    for result in everything(on("cuda")):
        assert result.is_cuda


@pytest.mark.gpu
@needs_gpu
def test_the_current_stream_is_used():
    """The stream is held up before the call: on any other one the result would be there before it is overwritten."""
    H = on("cuda")
    expected = H.dense()
    out = torch.empty_like(expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        out.fill_(torch.nan)
        H.dense(out)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@needs_gpu
def test_nothing_waits_for_the_gpu():
    H = on("cuda")
    v = torch.ones(H.shape[1], device="cuda")
    pairs = torch.tensor([[0, 0], [1, 2]], device="cuda")
    list(everything(H))
    out = torch.empty(H.shape, device="cuda")
    with waits_are_errors():
        H.dense(out)
        H["hidden"].dense()
        H["hidden"]._blocks(pairs)  # without the check of the pairs, which reads their bounds
        H["hidden"].norms()
        H["output"].diagonal_blocks()
        H["output"].diagonal()
        H["hidden"].trace()
        H._apply(v)  # without the check of v


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_replays():
    inputs = make_inputs(CASE, torch.float32).to(torch.float32, "cuda")
    H = inputs.hessian()
    v = torch.ones(H.shape[1], device="cuda")
    expected, product = H.dense(), H @ v
    out = torch.empty_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        H.dense(out)
        result = H @ v
        again = inputs.hessian().dense()
    out.fill_(torch.nan)
    graph.replay()
    assert torch.equal(out, expected) and torch.equal(result, product) and torch.equal(again, expected)


@pytest.mark.gpu
@needs_gpu
def test_a_first_call_inside_a_capture_leaves_nothing_behind():
    H, expected = on("cuda"), on("cpu").dense()
    out = torch.empty(H.shape, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        H.dense(out)
    assert_accurate(H.dense().cpu(), expected.double())
    graph.replay()
    assert_accurate(out.cpu(), expected.double())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_tiles_than_a_gpu_holds_at_once(dtype):
    case = Case(3000, 200, 150, 6, bias="ho")
    expected = make_inputs(case, dtype).lift().hessian()
    H = on("cuda", case, dtype)
    assert_accurate(H.dense().cpu(), expected.dense())
    assert_accurate(H["output"].norms().cpu(), expected["output"].norms())
    case = Case(1500, 100, 5000)
    ratio = on("cuda", case, dtype)["output"].ratio()[:2]
    truth = make_inputs(case, dtype).lift().hessian()["output"].ratio()[:2]
    assert_accurate(torch.tensor(ratio, dtype=dtype), torch.tensor(truth, dtype=torch.float64))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_gpu_than_the_current_one():
    H = on("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(H.dense().cpu(), on("cuda:0").dense().cpu())
    with pytest.raises(ValueError, match="x: expected device cuda:1; got cuda:0"):
        hessext.linear(torch.ones(2, 3, device="cuda:1"), torch.ones(4, 3, device="cuda:0"))


@pytest.mark.gpu
@needs_gpu
def test_memory_and_devices_are_checked():
    W, x = torch.ones(1000, 1000, device="cuda"), torch.ones(2, 1000, device="cuda")
    with pytest.raises(MemoryError, match=r"needs 4,000,000,000,000 bytes .* are free on cuda:0"):
        hessext.linear(W, x).dense()
    with pytest.raises(ValueError, match="x: expected device cuda:0; got cpu"):
        hessext.linear(W, x.cpu())


@pytest.mark.gpu
@needs_gpu
def test_gram_form_on_the_gpu(monkeypatch):
    B = on("cuda", Case(65, 5, 300))["output"]
    expected = on("cpu", Case(65, 5, 300))["output"].ratio()
    monkeypatch.setattr(other_classes, "spare", lambda *_: False)
    assert B.ratio().ratio == pytest.approx(expected.ratio, rel=1e-5)
