"""What minippo does on a GPU, in every setting that takes another way there: on tests/fakecuda.py, against the same call on a CPU.

The numbers come from a CPU on both sides, so that they agree; what differs is what minippo does for CUDA alone: uploads, the
recorded decode step, what is kept between calls. fp32 agrees to rounding (some products go through oneDNN on one side), 16 bits
to 5 %; sampled tokens are the same. MINIPPO_SLOW=1 runs every path in each precision, else in one of them in turn.
"""

import os

import pytest
import torch

from conftest import make_policy, make_ragged
from fakecuda import FakeCuda, mapped, shadow_of
from minippo import policy as policy_module
from minippo.fast import KEPT_DECODERS, _decoders
from minippo.policy import align, create_reference_model, evaluate_responses, response_kl
from minippo.ppo import PPOConfig, PPOTrainer
from minippo.scoring.reward_model import RewardModel
from minippo.training.pretrain import rows_loss
from minippo.training.reward_training import preference_loss

QUERIES, RESPONSES, SCORES = make_ragged([3, 9, 1, 5]), make_ragged([6, 2, 7, 7], seed=1), [1.0, 0.0, 2.0, -1.0]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PATHS = {}                      # name: a function of device and dtype, its result a nest of numbers and tensors


def path(name: str, settings: tuple = ({},)):
    """Enter the function below into PATHS, once for each of its settings."""
    def enter(function):
        for kwargs in settings:
            text = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            PATHS[f"{name} {text}".strip()] = lambda device, dtype, kwargs=kwargs: function(make_policy(dtype=dtype).to(device), **kwargs)
    return enter


def parameters(model) -> list:
    return [p.detach().clone() for p in model.parameters()]


def gradients(model) -> list:
    return [p.grad for p in model.parameters()]


@path("generate", [dict(kwargs, max_new_tokens=limits) for limits in (20, [1, 20, 3, 18]) for kwargs in (
    {"do_sample": False}, {}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 7, "top_p": 0.7, "temperature": 0.6}, {"eos_token_id": 7},
    {"eos_token_id": 7, "do_sample": False})] + [{"max_new_tokens": 20, "eos_token_id": 7, "min_new_tokens": 9},
                                                {"max_new_tokens": 20, "eos_token_id": 7, "min_length": 12, "top_k": 9},
                                                {"max_new_tokens": [4, 20, 4, 18], "eos_token_id": 7, "min_length": 4}])
def _(model, **kwargs):
    generator = torch.Generator().manual_seed(3)
    return [model.generate(QUERIES, generator=generator, **kwargs) for _ in range(3)]


@path("generate at three shapes in turn, more than are kept")
def _(model):
    rounds = [model.generate(QUERIES, max_new_tokens=n, seed=n) for n in (8, 20, 36, 8, 20, 36)]
    assert len(_decoders.get(model.transformer, ())) in (0, KEPT_DECODERS)
    return rounds


@path("evaluate", [{"entropy_grad": entropy, "checkpointing": checkpointing, "chunk": chunk}
                   for entropy in (False, True) for checkpointing in (False, True) for chunk in (2**28, 200)])
def _(model, entropy_grad, checkpointing, chunk):
    model.transformer.gradient_checkpointing = checkpointing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_module, "CHUNK_LOGITS", chunk)
        out = evaluate_responses(model, align(QUERIES, RESPONSES, model.device), 0.7, entropy_grad)
        (out.logprobs.sum() + 0.3 * out.values.square().sum() + entropy_grad * 0.1 * out.entropy.sum()).backward()
    return out, gradients(model)


@path("response_kl")
def _(model):
    other = create_reference_model(make_policy(seed=4, dtype=model.transformer.dtype).to(model.device))
    return response_kl(model, other, align(QUERIES, RESPONSES, model.device))


@path("two steps", [{}, {"kl_penalty": "full"}, {"kl_penalty": "mse", "whiten_rewards": True, "entropy_coef": 0.01, "max_grad_norm": 0.5},
                    {"mini_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
                    {"early_stopping": True, "target_kl": 1e-4}, {"ratio_threshold": 1.001},
                    {"use_score_scaling": True, "use_score_norm": True, "score_clip": 1.0}])
def _(model, **config):
    trainer = PPOTrainer(PPOConfig(**{"learning_rate": 1e-3, "ppo_epochs": 2, "mini_batch_size": 2, **config}), model,
                         optimizer=torch.optim.SGD(model.parameters(), lr=1e-2))            # Adam makes steps of rounding errors
    results = []
    for _ in range(2):
        responses = trainer.generate(QUERIES, max_new_tokens=[5, 9, 3, 7], eos_token_id=7)
        results += responses, trainer.step(QUERIES, responses, SCORES)
    return results, parameters(model)


@path("fused Adam, rewards a token, all on the device")
def _(model):
    trainer = PPOTrainer(PPOConfig(learning_rate=1e-3, ppo_epochs=2, adam_eps=1e-2), model)
    queries, responses = ([x.to(model.device) for x in xs] for xs in (QUERIES, RESPONSES))
    first = trainer.step(queries, responses, torch.tensor(SCORES, device=model.device))
    return first, trainer.step(queries, responses, [torch.ones(len(x), device=model.device) for x in responses]), parameters(model)


@path("a reward model: Adam, normalize, evaluate")
def _(model):
    judge = RewardModel.from_gpt2(model.transformer, generator=torch.Generator().manual_seed(1))
    judge.normalize(QUERIES + RESPONSES)
    optimizer, losses = torch.optim.Adam(judge.parameters(), lr=1e-3, eps=1e-2, fused=True), []
    for _ in range(2):
        loss = preference_loss(judge(QUERIES + RESPONSES).view(-1, 2), torch.ones(4, device=judge.device))[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, judge.evaluate(QUERIES), parameters(judge)


@path("pretraining")
def _(model):
    gpt2, losses = model.transformer, []
    stream, starts = torch.cat(QUERIES + RESPONSES).to(model.device), torch.tensor([0, 5, 9, 20], device=model.device)
    optimizer = torch.optim.AdamW(gpt2.parameters(), lr=1e-3, eps=1e-2, fused=True)
    for _ in range(2):
        loss = rows_loss(gpt2, stream, starts, 8)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt2.parameters(), 1.0)
        optimizer.step()
    return losses, parameters(gpt2)


def compare(there, here, tolerance: float, where: str = "") -> None:
    """Two nests: whole numbers equal, the others within tolerance; seconds are left out."""
    if isinstance(here, dict):
        assert there.keys() == here.keys(), where
        for key in here.keys() - {key for key in here if key.startswith("time/")}:
            compare(there[key], here[key], tolerance, f"{where} {key}")
    elif isinstance(here, (list, tuple)):
        assert len(there) == len(here), where
        for i, (a, b) in enumerate(zip(there, here)):
            compare(a, b, tolerance, f"{where} {i}")
    elif isinstance(here, torch.Tensor) and not here.is_floating_point():
        assert torch.equal(there, here), where
    else:
        torch.testing.assert_close(there, here, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{where}: {text}")


EVERY = os.environ.get("MINIPPO_SLOW") == "1"
CASES = [(name, dtype) for i, name in enumerate(PATHS) for j, dtype in enumerate(DTYPES) if EVERY or i % 3 == j]


@pytest.mark.parametrize("name, dtype", CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_a_path_gives_what_it_gives_on_a_cpu(name, dtype):
    here = PATHS[name]("cpu", dtype)
    with FakeCuda() as gpu:
        there = PATHS[name]("cuda", dtype)
    assert gpu.count("kernel") > 20
    compare(mapped(shadow_of, there), here, 2e-3 if dtype == torch.float32 else 0.05)
