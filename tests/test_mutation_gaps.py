"""Numbers for the breaks of tests/mutations.py that no other test noticed; each docstring says which and why the others passed."""

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo.policy import GPT2WithValueHead, evaluate_responses
from minippo.ppo import PPOConfig, PPOTrainer


def policy_with_logits(*logits: float) -> GPT2WithValueHead:
    """A policy that gives these logits after every token, and values 0.

    The final layer norm forgets its input: the hidden state is its bias, (1, 0, 0, ...), so logit v is column 0 of row v of wte.
    """
    model = make_policy(vocab_size=len(logits), n_embd=8, n_layer=1, n_head=2, n_positions=8)
    with torch.no_grad():
        for parameter in (model.transformer.ln_f.weight, model.transformer.ln_f.bias, model.transformer.wte.weight, model.v_head.weight):
            parameter.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[:, 0] = torch.tensor(logits)
    return model


def test_reward_whitening_counts_real_tokens_and_keeps_the_mean():
    """Two responses of 2 tokens and 1, scores 3 and 0, no KL: the rewards are 0 3 | 0, their mean 1, their variance (1 + 4 + 1) / 2.

    Whitened with their mean kept they are 1 - 1/sqrt(3), 1 + 2/sqrt(3) | 1 - 1/sqrt(3). With values 0, gamma 1 and lam 1 the returns are
    their sums from the right, and 3 means of those: (.42265 + 2.15470) + 2.15470 + .42265 over 3 = 1.71823.
    masked_whiten itself is tested in test_ppo.py, but not what step() hands to it.
    """
    trainer = PPOTrainer(PPOConfig(whiten_rewards=True, lam=1.0), policy_with_logits(0.0, 0.0, 0.0))
    stats = trainer.step([torch.tensor([0])] * 2, [torch.tensor([1, 2]), torch.tensor([1])], [3.0, 0.0])
    assert stats["ppo/returns/mean"] == pytest.approx(1.71823, abs=1e-5)


@pytest.mark.parametrize("kind, kl", [("kl", 2.110436), ("full", 1.621592)])
def test_the_temperature_divides_the_logits_of_policy_and_reference(kind, kl):
    """Policy logits 0 2 3 and reference logits 0 1 0 at temperature .5 are 0 4 6 and 0 2 0; hence for token 2

        log p = 6 - log(1 + e^4 + e^6) = -.129109,   log q = 0 - log(2 + e^2) = -2.239545,

    their difference is 2.110436, and the exact KL, over all three tokens, 1.621592. With a reference scored at temperature 1, log q
    is -1.551445. Where policy and reference are equal, as in a first step, one temperature is as good as another.
    """
    reference = policy_with_logits(0.0, 1.0, 0.0)
    trainer = PPOTrainer(PPOConfig(temperature=0.5, kl_penalty=kind), policy_with_logits(0.0, 2.0, 3.0), reference)
    stats = trainer.step([torch.tensor([0])], [torch.tensor([2])], [0.0])
    assert stats["objective/kl"] == pytest.approx(2.110436, abs=1e-5)
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * kl, abs=1e-5)


def test_an_entropy_bonus_raises_the_entropy():
    """Constant scores and values 0 give advantages 0, and vf_coef is 0: only the entropy is left to move the weights.

    ppo_loss is tested with an entropy made by hand, which has its gradient in any case.
    """
    queries, responses = make_ragged([3, 5]), make_ragged([4, 4], seed=1)
    policy = make_policy()
    policy.v_head.weight.data.zero_()
    trainer = PPOTrainer(PPOConfig(entropy_coef=0.1, vf_coef=0.0, lam=1.0, learning_rate=1e-3), policy)
    before = evaluate_responses(policy, queries, responses).entropy.mean()
    trainer.step(queries, responses, [1.0, 1.0])
    assert evaluate_responses(policy, queries, responses).entropy.mean() > before + 0.05


def test_the_optimizers_settings_arrive():
    (group,) = PPOTrainer(PPOConfig(learning_rate=2e-4, adam_eps=1e-5), make_policy()).optimizer.param_groups
    assert (group["lr"], group["eps"]) == (2e-4, 1e-5)


def test_the_controller_counts_the_responses_that_were_given():
    """KL 0, horizon 100 and 2 responses: .2 * (1 - .2 * 2 / 100) = .1992, whatever batch_size a run would collect."""
    trainer = PPOTrainer(PPOConfig(batch_size=64, horizon=100.0), make_policy())
    trainer.step(make_ragged([3, 5]), make_ragged([4, 4], seed=1), [1.0, 0.0])
    assert trainer.kl_controller.value == pytest.approx(0.1992, abs=1e-9)
