"""The GPU of tests/fakecuda.py: it gives right numbers, refuses what CUDA refuses, counts the host's waits, and sees planted defects."""

import copy
import inspect
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import make_policy, make_ragged
from fakecuda import CaptureError, CudaTensor, FakeCuda
from minippo import fast, generation

QUERIES = make_ragged([3, 9, 1, 5], vocab_size=11)


@pytest.fixture
def gpu():
    with FakeCuda() as gpu:
        yield gpu


def ones(*shape, **kwargs):
    return torch.ones(*shape, device="cuda", **kwargs)


# --- tensors --------------------------------------------------------------------------------------------------------

def test_numbers_gradients_and_optimizers_are_those_of_a_cpu(gpu):
    """A layer, a loss, clipping and fused Adam, on both; and tensors that were made in every way say where they are."""
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2).to(device)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
        layer(torch.tensor([[1.0, 2.0, 3.0]], device=device)).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        results.append([x.tolist() for x in (*layer.parameters(), layer.weight.grad, norm)])
        assert all(x.device.type == device for x in (*layer.parameters(), layer.weight.grad, norm))
    torch.testing.assert_close(*results)
    for x in (ones(2), torch.tensor([1, 2], device="cuda"), torch.ones(2).to("cuda"), ones(2).new_zeros(3), ones(2)[:1],
              copy.deepcopy(layer).weight):
        assert isinstance(x, CudaTensor) and x.is_cuda and x.device == torch.device("cuda", 0)
    assert not isinstance(ones(2).cpu(), CudaTensor) and isinstance(layer.weight, nn.Parameter) and ones(2).to("cuda").tolist() == [1, 1]


def test_views_share_their_memory_and_changes_in_place_are_seen(gpu):
    x = torch.zeros(4, device="cuda")
    view, same = x[1:3], x.to("cuda")
    assert x.add_(1) is x and view.fill_(5) is view and same is x
    assert x.tolist() == [1, 5, 5, 1] and view.data_ptr() == x[1:].data_ptr() and x.clone().data_ptr() != x.data_ptr()


def test_it_leaves_torch_as_it_was():
    names = (torch.cuda.is_available, torch.tensor, torch.Tensor.to, F.scaled_dot_product_attention, torch.cuda.CUDAGraph)
    with pytest.raises(ZeroDivisionError), FakeCuda():
        assert torch.cuda.is_available() and torch.tensor is not names[1]
        1 / 0
    assert names == (torch.cuda.is_available, torch.tensor, torch.Tensor.to, F.scaled_dot_product_attention, torch.cuda.CUDAGraph)
    assert "to" not in vars(torch.Tensor) and not torch._C._only_lift_cpu_tensors()


@pytest.mark.parametrize("wrong", [
    lambda: ones(3) + torch.ones(3), lambda: torch.cat([ones(3), torch.ones(3)]), lambda: ones(2, 2) @ torch.ones(2, 2),
    lambda: F.embedding(torch.tensor([0]), ones(2, 2)), lambda: ones(3).index_add_(0, torch.tensor([0], device="cuda"), torch.ones(1)),
    lambda: ones(3).scatter_(0, torch.tensor([0]), 1.0), lambda: torch._foreach_add([ones(3)], [torch.ones(3)]),
    lambda: torch.rand(3, device="cuda", generator=torch.Generator()), lambda: torch.ones(3, device="cuda:1"),
    lambda: ones(2, 2) @ ones(2, 2, dtype=torch.bfloat16), lambda: ones(1).numpy(),
    lambda: F.scaled_dot_product_attention(*[ones(1, 1, 8, 16, dtype=torch.bfloat16)] * 3, attn_mask=ones(1, 1, 8, 8))])
def test_what_cuda_refuses(gpu, wrong):
    with pytest.raises((RuntimeError, TypeError)):
        wrong()


def test_numbers_of_the_host_and_indices_on_a_cpu_are_taken(gpu):
    x = ones(3)
    assert (x * 2 + torch.tensor(0.5)).tolist() == [2.5] * 3 and torch.where(x > 0, x, 0.0).tolist() == [1] * 3
    gpu.events.clear()
    assert x[torch.tensor([0, 2])].shape == (2,) and gpu.count("h2d") == 1                  # CUDA takes it, and the host waits


# --- what the host waits for ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("run, kind", [
    (lambda x: x.sum().item(), "sync"), (lambda x: bool(x.any()), "sync"), (lambda x: x[x > 0], "sync"),
    (lambda x: x.nonzero(), "sync"), (lambda x: torch.equal(x, x), "sync"), (lambda x: torch.cuda.synchronize(), "sync"),
    (lambda x: x.cpu(), "d2h"), (lambda x: x.tolist(), "d2h"),
    (lambda x: torch.zeros(3).copy_(x), "d2h"), (lambda x: torch.ones(3).to("cuda"), "h2d"), (lambda x: x.copy_(torch.ones(3)), "h2d"),
    (lambda x: torch.ones(3).to("cuda", non_blocking=True), "h2d-async"), (lambda x: torch.tensor(1.0, device="cuda"), "h2d")])
def test_each_wait_is_counted_with_its_line(gpu, run, kind):
    x = ones(3)
    gpu.events.clear()
    run(x)
    waits = [event for event in gpu.events if event.kind not in ("kernel", "view")]
    assert [event.kind for event in waits] == [kind] and waits[0].line.startswith("test_fakecuda.py:")
    assert "test_fakecuda.py" in gpu.report()


def test_kernels_are_counted_and_views_are_not(gpu):
    x = ones(4, 4)
    gpu.events.clear()
    (x.T[:2].detach() * 2).sum().to(torch.bfloat16).to("cuda")
    torch._foreach_add_([x, x.clone()], 1.0)
    assert [event.op for event in gpu.events if event.kind == "kernel"] == ["mul", "sum", "_to_copy", "clone", "_foreach_add_"]


# --- graphs ---------------------------------------------------------------------------------------------------------

def record(step):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def test_a_capture_changes_nothing_and_a_replay_sees_new_contents(gpu):
    """y += w * x, three times: the second after w changed in place; a number of Python is what it was at the capture."""
    x, w, y, n = ones(2), ones(2), torch.zeros(2, device="cuda"), [1]

    def step():
        y.add_(w * x * n[0])
    graph = record(step)
    assert y.tolist() == [0, 0]
    graph.replay()
    w.fill_(10)
    n[0] = 100
    graph.replay()
    assert y.tolist() == [11, 11] and gpu.count("replay") == 2


@pytest.mark.parametrize("step", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x + torch.ones(3).to("cuda"),
                                  lambda x: x + torch.ones(3).sum(), lambda x: torch.cuda.synchronize()])
def test_what_a_capture_refuses(gpu, step):
    x = ones(3)
    with pytest.raises(CaptureError, match="test_fakecuda.py"):
        record(lambda: step(x))
    assert record(lambda: x.add_(1)).replay() is None and x.tolist() == [2, 2, 2]                # and the next one is as any


# --- planted defects ------------------------------------------------------------------------------------------------

def sampled(device: str) -> list:
    """Tokens of three calls with a model whose weights change between them; EOS comes behind the 18th, looked for at the 16th."""
    model, generator, tokens = make_policy(11, scale=1.5, dtype=torch.bfloat16).to(device), torch.Generator().manual_seed(3), []
    for _ in range(3):
        responses = model.generate(QUERIES, max_new_tokens=36, min_new_tokens=18, eos_token_id=7, generator=generator)
        tokens += [response.tolist() for response in responses]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.2)
    return tokens


DEFECTS = [     # what is wrong, a piece of generation.py or fast.py and what stands there instead
    ("a host sync in the step", "        j, eos = self.step_index, self",
     "        assert self.step_index.item() >= 0\n        j, eos = self.step_index, self"),
    ("a number of Python in the graph", "self.step_index.add_(1)", "self.n = getattr(self, 'n', 0) + 1; self.step_index.fill_(self.n)"),
    ("a boolean index in the step", "self.token.copy_(token)", "self.token.copy_(token); self.token[self.token < 0] = 0"),
    ("a CPU tensor in the step", "self.token.copy_(token)", "self.token.copy_(token + torch.zeros(1, dtype=torch.long))"),
    ("uniforms drawn on the device", 'dtype=torch.float32, device="cpu")', "dtype=torch.float32, device=model.device)"),
    ("a step that is not set back", "        self.step_index.zero_()\n        self.output", "        self.output"),
    ("an output that is not set back", "        self.output.fill_(-1) ", "        # "),
    ("weights that are copied once", "    torch._foreach_copy_(list(kept", "    fits or torch._foreach_copy_(list(kept"),
    ("a graph of other addresses", "(*shape, addresses, hooked(snapshot))", "(*shape, hooked(snapshot))"),
]


@pytest.mark.parametrize("old, new", [pytest.param(old, new, id=name) for name, old, new in DEFECTS])
def test_a_planted_defect_is_seen(monkeypatch, old, new):
    """The tokens become others than the CPU's, or CUDA refuses. A snapshot made anew has other addresses: the last defect needs that."""
    expected = sampled("cpu")
    with FakeCuda():
        assert sampled("cuda") == expected
    module, = [module for module in (generation, fast) if old in inspect.getsource(module)]
    source = inspect.getsource(module)
    assert source.count(old) == 1
    source = source.replace(old, new)
    if "addresses" in old:
        source = source.replace("    if not fits:", "    if True:")
    broken = {**vars(module), "__name__": "minippo.broken"}
    monkeypatch.setitem(sys.modules, "minippo.broken", type(generation)("minippo.broken"))
    exec(compile(source, module.__file__, "exec"), broken)
    if module is generation:
        monkeypatch.setattr("minippo.policy.generate", broken["generate"])
    for name in ("compute_snapshot", "decoder_for") if module is fast else ():
        monkeypatch.setattr(generation, name, broken[name])
    with FakeCuda():
        try:
            tokens = sampled("cuda")
        except RuntimeError as error:                                   # CUDA would have refused it, or stopped
            tokens = error
    assert tokens != expected
