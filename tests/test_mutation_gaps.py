"""Numbers for the breaks of tests/mutations.py that no other test noticed."""

import pytest
import torch

from conftest import make_policy, make_ragged
from minippo import ppo
from minippo.generation import sample
from minippo.gpt2 import GPT2, GPT2Config
from minippo.policy import GPT2WithValueHead, align, evaluate_responses
from minippo.ppo import PPOConfig, PPOTrainer

QUERIES, RESPONSES = make_ragged([3, 5]), make_ragged([4, 4], seed=1)


def policy_with_logits(*logits: float) -> GPT2WithValueHead:
    """A policy that gives these logits after every token, and values 0.

    The final layer norm forgets its input: the hidden state is its bias, (1, 0, 0, ...), so logit v is column 0 of row v of wte.
    """
    model = make_policy(vocab_size=len(logits), n_embd=8, n_layer=1, n_head=2, n_positions=8)
    with torch.no_grad():
        gpt2 = model.transformer
        for parameter in (gpt2.ln_f.weight, gpt2.ln_f.bias, gpt2.wte.weight, model.v_head.weight):
            parameter.zero_()
        gpt2.ln_f.bias[0] = 1.0
        gpt2.wte.weight[:, 0] = torch.tensor(logits)
    return model


def test_reward_whitening_counts_real_tokens_and_keeps_the_mean():
    """Two responses of 2 tokens and 1, scores 3 and 0, no KL: rewards 0 3 | 0 with mean 1 and variance (1 + 4 + 1) / 2 = 3.

    Whitened with their mean kept they are 1 - 1/sqrt(3), 1 + 2/sqrt(3) | 1 - 1/sqrt(3). With values 0, gamma 1 and lam 1 the
    returns are their sums from the right, on average ((.42265 + 2.15470) + 2.15470 + .42265) / 3 = 1.71823.
    masked_whiten itself is tested in test_ppo.py, but not what step() hands to it.
    """
    trainer = PPOTrainer(PPOConfig(whiten_rewards=True, lam=1.0), policy_with_logits(0.0, 0.0, 0.0))
    stats = trainer.step([torch.tensor([0])] * 2, [torch.tensor([1, 2]), torch.tensor([1])], [3.0, 0.0])
    assert stats["ppo/returns/mean"] == pytest.approx(1.71823, abs=1e-5)


@pytest.mark.parametrize("kind, kl", [("kl", 2.110436), ("full", 1.621592)])
def test_the_temperature_divides_the_logits_of_policy_and_reference(kind, kl):
    """Policy logits 0 2 3 and reference logits 0 1 0 at temperature .5 are 0 4 6 and 0 2 0; hence for token 2

        log p = 6 - log(1 + e^4 + e^6) = -.129109,   log q = 0 - log(2 + e^2) = -2.239545,

    their difference is 2.110436, and the exact KL, over all three tokens, 1.621592. With a reference scored at temperature 1,
    log q is -1.551445. Where policy and reference are equal, as in a first step, one temperature is as good as another.
    The KL penalty, -.2 times the KL, also comes off the score of 1.5 in score_total.
    """
    reference = policy_with_logits(0.0, 1.0, 0.0)
    trainer = PPOTrainer(PPOConfig(temperature=0.5, kl_penalty=kind), policy_with_logits(0.0, 2.0, 3.0), reference)
    stats = trainer.step([torch.tensor([0])], [torch.tensor([2])], [1.5])
    assert stats["objective/kl"] == pytest.approx(2.110436, abs=1e-5)
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * kl, abs=1e-5)
    assert stats["objective/score_total"] == pytest.approx(1.5 - 0.2 * kl, abs=1e-5)


def test_an_entropy_bonus_raises_the_entropy():
    """Constant scores and values 0 give advantages 0, and vf_coef is 0: only the entropy is left to move the weights.

    ppo_loss is tested with an entropy made by hand, which has its gradient in any case.
    """
    policy = make_policy()
    policy.v_head.weight.data.zero_()
    trainer = PPOTrainer(PPOConfig(entropy_coef=0.1, vf_coef=0.0, lam=1.0, learning_rate=1e-3), policy)
    aligned = align(QUERIES, RESPONSES, policy.device)
    before = evaluate_responses(policy, aligned).entropy.mean()
    trainer.step(QUERIES, RESPONSES, [1.0, 1.0])
    assert evaluate_responses(policy, aligned).entropy.mean() > before + 0.05


def test_the_optimizers_settings_arrive():
    (group,) = PPOTrainer(PPOConfig(learning_rate=2e-4, adam_eps=1e-5), make_policy()).optimizer.param_groups
    assert (group["lr"], group["eps"]) == (2e-4, 1e-5)


def test_the_controller_counts_the_responses_that_were_given():
    """KL 0, horizon 100 and 2 responses: .2 * (1 - .2 * 2 / 100) = .1992, whatever batch_size a run would collect."""
    trainer = PPOTrainer(PPOConfig(batch_size=64, horizon=100.0), make_policy())
    trainer.step(QUERIES, RESPONSES, [1.0, 0.0])
    assert trainer.kl_controller.value == pytest.approx(0.1992, abs=1e-9)


# --- the update -----------------------------------------------------------------------------------

def test_the_first_ratio_is_one_at_any_temperature():
    """It is tested at temperature 1 elsewhere, and there a temperature that the update forgets does not show."""
    trainer = PPOTrainer(PPOConfig(temperature=0.7, ppo_epochs=1), make_policy())
    assert (trainer.step(QUERIES, RESPONSES, [1.0, 0.0])["ppo/policy/ratio"] == 1).all()


def test_every_epoch_of_every_step_has_an_order_of_its_own_and_all_rows():
    trainer = PPOTrainer(PPOConfig(ppo_epochs=3, mini_batch_size=3), make_policy())
    batch = ppo.Batch([torch.zeros(1)] * 10, [torch.zeros(1)] * 10, 1.0)
    epochs = [trainer.minibatches(batch, trainer.generator) for _ in range(6)]
    orders = [tuple(row for minibatch in epoch for row in minibatch) for epoch in epochs]
    assert len(set(orders)) == 6 and all(sorted(order) == list(range(10)) for order in orders)


def move_rollout(monkeypatch, *shifts: float) -> None:
    """Let the rollout claim, for each row, log-probabilities that are lower by this: its ratios are then exp(shift)."""
    rollout, shift = PPOTrainer.forward_pass, torch.tensor(shifts)[:, None]

    def moved(self, batch, minibatches):
        rollout(self, batch, minibatches)
        batch.logprobs, batch.ref_logprobs = batch.logprobs - shift, batch.ref_logprobs - shift
    monkeypatch.setattr(PPOTrainer, "forward_pass", moved)


@pytest.mark.parametrize("share, updates", [(1.25, 4), (1.75, 0)])
def test_early_stopping_begins_at_one_and_a_half_times_the_target(monkeypatch, share, updates):
    """Shifted by .2 each, the approximate KL is .2^2 / 2 = .02, here 1.25 and 1.75 times the target."""
    trainer = PPOTrainer(PPOConfig(early_stopping=True, target_kl=0.02 / share, learning_rate=0.0), make_policy())
    move_rollout(monkeypatch, 0.2, 0.2)
    assert trainer.step(QUERIES, RESPONSES, [1.0, 0.0])["ppo/updates"] == updates


def test_the_means_of_an_update_leave_out_skipped_minibatches(monkeypatch):
    """Two minibatches of one row: ratio 1, and e^5 = 148, which is above 10 and skipped. All that was learnt from had ratio 1."""
    trainer = PPOTrainer(PPOConfig(mini_batch_size=1, ppo_epochs=1), make_policy())
    move_rollout(monkeypatch, 0.0, 5.0)
    stats = trainer.step(QUERIES, RESPONSES, [1.0, 0.0])
    assert (stats["ppo/updates"], stats["ppo/skipped"], stats["ppo/policy/ratio_mean"]) == (1, 1, 1)


# --- scores ---------------------------------------------------------------------------------------

def test_scores_are_clipped_after_they_are_scaled():
    """1 and 3 by their deviation of sqrt(2) are .707107 and 2.121320; clipped to +-1 their mean is .853553."""
    trainer = PPOTrainer(PPOConfig(use_score_scaling=True, score_clip=1.0), make_policy())
    assert trainer.step(QUERIES, RESPONSES, [1.0, 3.0])["ppo/mean_scores"] == pytest.approx(.853553, abs=1e-6)


def test_the_penalty_for_a_missing_eos_falls_on_the_last_real_token():
    """Rewards 1 | 0 0 by token; the first response lacks EOS and loses 2. With values 0 and lam 1 the returns are -1 | 0 0.

    Their mean is -1/3. On padding the penalty would still be in the sum of the scores, but teach nothing.
    """
    trainer = PPOTrainer(PPOConfig(missing_eos_penalty=2.0, lam=1.0), policy_with_logits(0.0, 0.0, 0.0))
    trainer.eos_token_id = 2
    responses = [torch.tensor([1]), torch.tensor([1, 2])]
    stats = trainer.step([torch.tensor([0])] * 2, responses, [torch.tensor([1.0]), torch.zeros(2)])
    assert stats["ppo/returns/mean"] == pytest.approx(-1 / 3, abs=1e-6)


# --- sampling and model ---------------------------------------------------------------------------

def test_probabilities_that_add_up_to_less_than_one_do_not_reach_the_last_token():
    """Rounded, they may add up to 1 - 2e-7, less than the largest uniform number, 1 - 2^-24. The last token here has none."""
    uniform, found = torch.tensor([[1 - 2.0**-24]]), 0
    for seed in range(300):
        logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        logits[0, 7] = -torch.inf
        found += int(logits.softmax(-1).cumsum(-1)[0, -1] < uniform)
        assert sample(logits, uniform).item() < 7
    assert found > 0


def test_the_epsilon_of_the_config_reaches_every_layer_norm():
    model = GPT2(GPT2Config(5, 4, 8, 2, 2, layer_norm_epsilon=0.25))
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {0.25}
