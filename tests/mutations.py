"""Break the code on purpose, in ways that people break PPO, and see that the default suite notices each one.

    python tests/mutations.py                  all of them: about ten minutes on one core
    python tests/mutations.py --only 12        one of them, with the output of pytest
    python tests/mutations.py --only clip      those whose description holds the word

Each break replaces one piece of text in a temporary copy of minippo/ and tests/. The tests named for the file (TESTS) run there
until the first failure; a break that none of them notices SURVIVED, and the exit status is 1. First they must all pass on
the unbroken copy, or a failure would say nothing. test_mutations.py sees to it that the texts still occur in the code.

Left out: breaks that change no result. For example, compute_advantages may read the value of a masked column, because the
first `torch.where` has made it 0 already.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120               # for the tests of one break; more is a failure of the check, not a catch
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}      # bytecode of another break might be taken for fresh

# the test files that answer for each source file, the quickest first
TESTS = {
    "ppo.py": ["test_golden.py", "test_mutation_gaps.py", "test_ppo.py", "test_inputs.py", "test_faults.py", "test_determinism.py",
               "test_cuda_budget.py"],
    "policy.py": ["test_policy.py", "test_golden.py", "test_mutation_gaps.py", "test_ppo.py", "test_faults.py"],
    "generation.py": ["test_generation.py", "test_gpt2.py", "test_golden.py", "test_mutation_gaps.py", "test_cuda_budget.py", "test_cuda_paths.py",
                      "test_cuda.py"],
    "gpt2.py": ["test_gpt2.py", "test_golden.py", "test_generation.py", "test_mutation_gaps.py"],
    "attention.py": ["test_gpt2.py", "test_fast.py", "test_golden.py", "test_generation.py", "test_cuda_paths.py"],
    "inputs.py": ["test_ppo.py", "test_policy.py", "test_generation.py", "test_mutation_gaps.py", "test_inputs.py", "test_faults.py"],
    "metrics.py": ["test_ppo.py", "test_golden.py", "test_mutation_gaps.py", "test_inputs.py", "test_cuda_budget.py", "test_bench.py"],
    "fast.py": ["test_fast.py", "test_inputs.py", "test_generation.py", "test_cuda_budget.py", "test_cuda_paths.py", "test_cuda.py"],
    "distributed.py": ["test_distributed.py"],
    "files/atomic.py": ["files/test_atomic.py"],
    "files/safetensors.py": ["files/test_safetensors.py"],
    "files/hub.py": ["files/test_hub.py"],
    "files/tokenizer.py": ["files/test_tokenizer.py"],
    "files/model_folder.py": ["files/test_model_folder.py"],
    "files/checkpoint.py": ["files/test_checkpoint.py"],
    "training/batch.py": ["training/test_batch.py", "training/test_run.py"],
    "training/config.py": ["training/test_config.py", "training/test_run.py"],
    "training/data.py": ["training/test_data.py"],
    "training/evaluate.py": ["training/test_run.py"],
    "training/pretrain.py": ["training/test_pretrain.py", "test_cuda_budget.py"],
    "training/reward_training.py": ["training/test_reward_training.py", "scoring/test_reward_model.py"],
    "training/run.py": ["training/test_run_folder.py", "training/test_run.py"],
    "training/run_folder.py": ["training/test_run_folder.py", "training/test_run.py"],
    "training/terminal.py": ["training/test_terminal.py"],
    "scoring/human.py": ["scoring/test_human.py"],
    "scoring/rewards.py": ["scoring/test_rewards.py"],
    "scoring/reward_model.py": ["scoring/test_reward_model.py"],
    "report/findings.py": ["report/test_findings.py"],
    "report/page.py": ["report/test_page.py"],
    "__main__.py": ["test_main.py"],
}


class Mutation(NamedTuple):
    file: str       # in minippo/
    old: str        # occurs there exactly once
    new: str
    breaks: str     # what is wrong then


MUTATIONS = [
    # --- KL and rewards
    Mutation("ppo.py", "non_score_reward = -kl_coef * kl", "non_score_reward = kl_coef * kl",
             "sign of the KL penalty: going away from the reference is rewarded"),
    Mutation("ppo.py", '"kl": lambda p, q: p - q,', '"kl": lambda p, q: q - p,', "KL of the reference to the policy"),
    Mutation("ppo.py", "lambda p, q: 0.5 * (p - q)**2,", "lambda p, q: (p - q)**2,", "mse penalty without its half"),
    Mutation("ppo.py", "(p.exp() * (p - q)).sum(-1)",
             "(q.exp() * (p - q)).sum(-1)", "exact KL weighted by the reference's probabilities"),
    Mutation("ppo.py", "kl = torch.where(mask, KL_PENALTIES[kl_penalty](logprobs, ref_logprobs) if kl is None else kl, 0.0)",
             "kl = KL_PENALTIES[kl_penalty](logprobs, ref_logprobs) if kl is None else kl", "KL penalty of padding"),
    Mutation("ppo.py", "scores = torch.where(columns == last, scores[:, None], 0.0)",
             "scores = scores[:, None].expand(mask.shape)", "score on every token"),
    Mutation("ppo.py", "scores = torch.where(columns == last, scores[:, None], 0.0)",
             "scores = torch.where(columns == 0, scores[:, None], 0.0)", "score on the first token"),
    Mutation("ppo.py", "last = torch.where(mask, columns, -1).amax(1, keepdim=True)",
             "last = columns[-1:].expand(len(mask), 1)",
             "score on the last column, which is padding in all but the longest response"),
    Mutation("ppo.py", "self.kl_controller.value, config.kl_penalty",
             "config.init_kl_coef, config.kl_penalty", "the controller's coefficient is not used"),
    Mutation("ppo.py", "masked_whiten(rewards, batch.mask, shift_mean=False)",
             "masked_whiten(rewards, batch.mask)", "whitened rewards lose their mean"),
    Mutation("ppo.py", "masked_whiten(rewards, batch.mask, shift_mean=False)",
             "masked_whiten(rewards, torch.ones_like(batch.mask), shift_mean=False)",
             "reward whitening counts padding"),

    # --- advantages and returns
    Mutation("ppo.py", "delta = rewards[:, t] + gamma * next_value - values[:, t]",
             "delta = rewards[:, t] + next_value - gamma * values[:, t]", "discount on the wrong value"),
    Mutation("ppo.py", "delta = rewards[:, t] + gamma * next_value - values[:, t]",
             "delta = rewards[:, t] + gamma * values[:, t] - next_value", "values shifted by one token"),
    Mutation("ppo.py", "delta + gamma * lam * next_advantage", "delta + gamma * next_advantage", "lambda forgotten"),
    Mutation("ppo.py", "delta + gamma * lam * next_advantage", "delta + lam * next_advantage", "gamma forgotten in the trace"),
    Mutation("ppo.py", "for t in reversed(range(values.shape[1])):", "for t in range(values.shape[1]):", "GAE from the left"),
    Mutation("ppo.py", "next_value = next_advantage = torch.zeros_like(values[:, 0])",
             "next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])", "a value behind the last token"),
    Mutation("ppo.py", "values, rewards = torch.where(mask, values, 0.0), torch.where(mask, rewards, 0.0)\n", "\n",
             "GAE reads values and rewards of padding"),
    Mutation("ppo.py", "return advantages, advantages + values  ", "return advantages, masked_whiten(advantages, mask) + values  ",
             "whitening before the returns"),
    Mutation("ppo.py", "return advantages, advantages + values  ", "return advantages, masked_whiten(advantages + values, mask)  ",
             "returns whitened"),
    Mutation("ppo.py", "masked_whiten(advantages, batch.mask)\n",
             "advantages\n", "advantages not whitened"),
    Mutation("ppo.py", "masked_whiten(advantages, batch.mask)\n",
             "masked_whiten(advantages, torch.ones_like(batch.mask))\n",
             "advantage whitening counts padding"),
    Mutation("ppo.py", "masked_whiten(advantages, batch.mask)\n",
             "masked_whiten(advantages, batch.mask, shift_mean=False)\n",
             "advantages keep their mean"),
    Mutation("metrics.py", "/ (mask.sum() - 1).clamp(min=1)",
             "/ mask.sum().clamp(min=1)", "variance with n in the place of n - 1"),
    Mutation("metrics.py", "/ (mask.sum() - 1).clamp(min=1)", "/ (mask.sum() - 1)", "variance of one element is NaN"),
    Mutation("metrics.py", "torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)",
             "x.mean()", "masked_mean without its mask"),
    Mutation("metrics.py", "torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)",
             "(x * mask).sum() / mask.sum().clamp(min=1)", "NaN behind the mask survives a product"),
    Mutation("metrics.py", "torch.rsqrt(var + 1e-8)", "1 / (var + 1e-8)", "whitening divides by the variance"),

    # --- losses
    Mutation("ppo.py", "pg_loss = mean(torch.maximum(pg_losses, pg_losses_clipped))",
             "pg_loss = mean(torch.minimum(pg_losses, pg_losses_clipped))", "the better of the two policy losses"),
    Mutation("ppo.py", "pg_loss = mean(torch.maximum(pg_losses, pg_losses_clipped))", "pg_loss = mean(pg_losses)",
             "no policy clip"),
    Mutation("ppo.py", "pg_loss = mean(torch.maximum(pg_losses, pg_losses_clipped))", "pg_loss = mean(pg_losses_clipped)",
             "clipped also where a step would be undone"),
    Mutation("ppo.py", "ratio.clamp(1 - cliprange, 1 + cliprange)", "ratio.clamp(min=1 - cliprange)", "no clip from above"),
    Mutation("ppo.py", "ratio.clamp(1 - cliprange, 1 + cliprange)", "ratio.clamp(max=1 + cliprange)", "no clip from below"),
    Mutation("ppo.py", "pg_losses = -advantages * ratio\n", "pg_losses = advantages * ratio\n",
             "gradient descent on the advantage"),
    Mutation("ppo.py", "log_ratio, advantages = torch.where(mask, new_logprobs - logprobs, 0.0),",
             "log_ratio, advantages = torch.where(mask, logprobs - new_logprobs, 0.0),", "ratio upside down"),
    Mutation("ppo.py", "log_ratio, advantages = torch.where(mask, new_logprobs - logprobs, 0.0),", "log_ratio, advantages = new_logprobs - logprobs,",
             "log-probabilities of padding in the ratio"),
    Mutation("ppo.py", "mean = lambda x: torch.where(mask, x, 0.0).sum() / n_tokens", "mean = lambda x: x.mean()",
             "losses averaged over padding, too"),
    Mutation("ppo.py", "torch.maximum(vf_losses, vf_losses_clipped))", "torch.minimum(vf_losses, vf_losses_clipped))",
             "the better of the two value losses"),
    Mutation("ppo.py", "values_clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)",
             "values_clipped = new_values", "no value clip"),
    Mutation("ppo.py", "values_clipped = torch.clamp(new_values, values - cliprange_value, values + cliprange_value)",
             "values_clipped = torch.clamp(new_values, returns - cliprange_value, returns + cliprange_value)",
             "value clip round the returns"),
    Mutation("ppo.py", "vf_loss = 0.5 * mean(", "vf_loss = mean(", "value loss without its half"),
    Mutation("ppo.py", "loss = pg_loss + vf_coef * vf_loss", "loss = pg_loss + vf_loss", "vf_coef forgotten"),
    Mutation("ppo.py", "loss = loss - entropy_coef * mean(entropy)", "loss = loss + entropy_coef * mean(entropy)",
             "entropy punished"),
    Mutation("ppo.py", "batch.temperature, config.entropy_coef > 0, self.critic)", "batch.temperature, False, self.critic)", "entropy bonus without a gradient"),

    # --- the update
    Mutation("ppo.py", "new.entropy, config.entropy_coef, n_tokens)",
             "new.entropy, config.entropy_coef, new.mask.sum() * len(minibatch))",
             "mean of the micro-batches' means: tokens of short ones weigh more"),
    Mutation("ppo.py", "config.vf_coef, new.entropy, config.entropy_coef, n_tokens)",
             "config.vf_coef, new.entropy, config.entropy_coef)", "micro-batches add up to a multiple of the gradient"),
    Mutation("ppo.py", "for x in (batch.logprobs, batch.values, batch.advantages, batch.returns))",
             "for x in (batch.logprobs, batch.values, batch.returns, batch.advantages))",
             "advantages and returns exchanged"),
    Mutation("ppo.py", '                counts["ppo/skipped"] += 1  ',
             '                self.optimizer.zero_grad(set_to_none=False)\n                self.optimizer.step()\n                counts["ppo/skipped"] += 1  ',
             "a skipped minibatch still moves the weights through Adam"),
    Mutation("ppo.py", 'if not finite or record["ppo/policy/ratio_mean"] > config.ratio_threshold:',
             'if record["ppo/policy/ratio_mean"] > config.ratio_threshold:', "a NaN loss is stepped on"),
    Mutation("ppo.py", 'if not finite or record["ppo/policy/ratio_mean"] > config.ratio_threshold:',
             "if not finite:", "no ratio threshold"),
    Mutation("ppo.py", '                counts["ppo/early_stopped"] = 1  ',
             '                self.optimizer.step()\n                counts["ppo/early_stopped"] = 1  ',
             "early stopping after the step"),
    Mutation("ppo.py", "            if config.max_grad_norm is not None:\n                torch.nn.utils.clip_grads_with_norm_(self.trainable, config.max_grad_norm, grad_norm)\n            self.optimizer.step()\n",
             "            self.optimizer.step()\n            if config.max_grad_norm is not None:\n                torch.nn.utils.clip_grads_with_norm_(self.trainable, config.max_grad_norm, grad_norm)\n",
             "max_grad_norm after the step"),
    Mutation("ppo.py", "        self.model.zero_grad()                                          # also of",
             "        # also of",
             "gradients of earlier minibatches stay"),
    Mutation("ppo.py", "torch.optim.Adam(self.trainable, lr=config.learning_rate, eps=config.adam_eps, fused=True)",
             "torch.optim.Adam(self.trainable, lr=config.learning_rate, fused=True)", "adam_eps does not arrive"),
    Mutation("ppo.py", "for minibatch in minibatches:\n            record",
             "for minibatch in minibatches[:len(minibatches) // config.ppo_epochs]:\n            record",
             "one epoch whatever ppo_epochs"),
    Mutation("ppo.py", 'order = torch.randperm(len(lengths), generator=generator, device="cpu").tolist()',
             "order = list(range(len(lengths)))", "no shuffling"),
    Mutation("ppo.py", 'order = torch.randperm(len(lengths), generator=generator, device="cpu").tolist()',
             "order = torch.randperm(len(lengths)).tolist()", "shuffled by torch's global generator"),
    Mutation("ppo.py", "for i in range(0, len(order), size)]",
             "for i in range(0, len(order) - size + 1, size)]", "the last, smaller minibatch is dropped"),
    Mutation("ppo.py", 'kwargs["generator"] = self.generator', 'kwargs["generator"] = None',
             "sampling by torch's global generator"),
    Mutation("ppo.py", 'order = torch.randperm(len(lengths), generator=generator, device="cpu").tolist()',
             "order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()",
             "every epoch in the same order"),
    Mutation("ppo.py", "batch.temperature, config.entropy_coef > 0,", "1.0, config.entropy_coef > 0,", "temperature missing in the update"),
    Mutation("ppo.py", "if self.critic else None, logprobs, values, advantages, returns,",
             "if self.critic else None, logprobs, values, masked_whiten(advantages, new.mask), returns,",
             "advantages whitened in every micro-batch again"),
    Mutation("ppo.py", 'record["ppo/policy/approxkl"] > 1.5 * config.target_kl',
             'record["ppo/policy/approxkl"] > config.target_kl', "early stopping at the target already"),
    Mutation("ppo.py", "mean_of(applied or records)",
             "mean_of(records)", "statistics of skipped minibatches in the means"),

    # --- reference, temperature, scores, controller
    Mutation("ppo.py", "evaluate_responses(self.ref_model, aligned, batch.temperature, critic=False)",
             "evaluate_responses(self.model, aligned, batch.temperature, critic=False)",
             "the reference moves with the policy"),
    Mutation("ppo.py", "evaluate_responses(self.ref_model, aligned, batch.temperature, critic=False)",
             "evaluate_responses(self.ref_model, aligned, critic=False)",
             "temperature missing in the reference"),
    Mutation("ppo.py", "policy = evaluate_responses(self.model, aligned, batch.temperature, critic=self.critic)",
             "policy = evaluate_responses(self.model, aligned, critic=self.critic)",
             "temperature missing in the rollout"),
    Mutation("ppo.py", "response_kl(self.model, self.ref_model, aligned, batch.temperature)",
             "response_kl(self.model, self.ref_model, aligned)", "temperature missing in the exact KL"),
    Mutation("ppo.py", "batch.logprobs[index, :width], batch.values[index, :width] =",
             "batch.logprobs[index, :width], batch.values[:len(rows), :width] =", "values of a micro-batch land in other rows"),
    Mutation("inputs.py", ".sub_(penalty)",
             ".add_(penalty)", "a missing EOS is rewarded"),
    Mutation("metrics.py", "self.mean += delta * n / total",
             "self.mean += delta / total", "running mean forgets the batch's size"),
    Mutation("metrics.py", " + delta**2 * self.count * n / total) / total",
             ") / total", "running variance forgets the distance of the means"),
    Mutation("metrics.py", "/ max(1.0, self.count - 1)",
             "/ max(1.0, self.count)", "running deviation with n in the place of n - 1"),
    Mutation("ppo.py", "scores.clamp(-config.score_clip, config.score_clip)",
             "scores.clamp(max=config.score_clip)", "low scores not clipped"),
    Mutation("ppo.py", "error = min(max(kl / self.target - 1, -0.2), 0.2)", "error = min(max(1 - kl / self.target, -0.2), 0.2)",
             "controller with the wrong sign"),
    Mutation("ppo.py", "error = min(max(kl / self.target - 1, -0.2), 0.2)", "error = kl / self.target - 1",
             "controller without its limit"),
    Mutation("ppo.py", "1 + error * min(n_steps / self.horizon, 1)", "1 + error / self.horizon", "controller forgets the batch size"),
    Mutation("ppo.py", "1 + error * min(n_steps / self.horizon, 1)", "1 + error * n_steps / self.horizon",
             "a batch far beyond the horizon turns the sign of kl_coef"),
    Mutation("ppo.py", "        self.model.zero_grad()                                          # also of",
             "        if self.optimizer.state:\n            self.model.zero_grad()                                      # also of",
             "gradients left by others enter the step"),
    Mutation("metrics.py", "wide = x.double() ", "wide = x.float() ", "equal advantages are whitened to rounding noise"),
    Mutation("metrics.py", "x = scores.double() ", "x = scores.float() ", "equal scores get a tiny standard deviation"),
    Mutation("generation.py", " | (self.input_pos == self.last_pos)", "", "rows at their limit go on being decoded"),
    Mutation("ppo.py", " if math.isfinite(kl) else 0.0", "", "one NaN in a forward pass makes kl_coef NaN for good"),
    Mutation("generation.py", "self.output.fill_(-1)", "self.output.zero_()", "token 0 cannot be EOS"),
    Mutation("ppo.py", 'self.kl_controller.update(stats["objective/kl"], len(batch.queries))',
             'self.kl_controller.update(stats["objective/kl"], config.batch_size)',
             "controller counts another number of responses"),
    Mutation("metrics.py", "kl = torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)",
             "kl = torch.where(mask, logprobs - ref_logprobs, 0.0).mean(1)",
             "KL per token, not per response"),
    Mutation("ppo.py", "            self.lr_scheduler.step()\n", "            pass\n", "the schedule stands still"),
    Mutation("ppo.py", "            scores = moments.scale(", "            scores = scores if config.score_clip is None else scores.clamp(-config.score_clip, config.score_clip)\n"
             "            scores = moments.scale(", "scores clipped before they are scaled"),
    Mutation("inputs.py", "scores[i, len(response) - 1]).sub_",
             "scores[i, -1]).sub_", "the penalty for a missing EOS falls on padding"),
    Mutation("metrics.py", "+ non_score_reward.sum(1)).mean(),",
             "- non_score_reward.sum(1)).mean(),", "score_total adds the KL penalty with the wrong sign"),
    Mutation("metrics.py", "1 - unexplained / variance",
             "unexplained / variance", "unexplained called explained variance"),

    # --- alignment, value head, reference copy
    Mutation("policy.py", "upload([tokens, positions, torch.cat",
             "upload([tokens, positions.sub(1).clamp(min=0), torch.cat", "each token read one position too early"),
    Mutation("policy.py", "predicts = input_mask & (position >= query_lengths - 1)",
             "predicts = input_mask.roll(1, 1) & (position >= query_lengths)",
             "each token read at its own position, where the model has seen it"),
    Mutation("policy.py", "response[:-1] for response in responses", "response[1:] for response in responses",
             "responses fed without their first token"),
    Mutation("policy.py", "tokens[in_query] = torch.cat(queries)",
             "tokens[in_query] = torch.cat([query.flip(0) for query in queries])", "queries fed backwards"),
    Mutation("policy.py", "values = model.v_head(hidden).squeeze(-1) if critic",
             "values = model.v_head(hidden.roll(-1, 0)).squeeze(-1) if critic", "values of the state after the token"),
    Mutation("policy.py", "values = model.v_head(hidden).squeeze(-1) if critic", "values = model.v_head(hidden.detach()).squeeze(-1) if critic",
             "value loss cut off from the trunk"),
    Mutation("policy.py", "logits = transformer.head(hidden / temperature)",
             "logits = transformer.head(hidden)", "temperature missing in scoring"),
    Mutation("fast.py", "return (probs * -grad[:, None]).scatter_add_(-1, targets[:, None], grad[:, None]), None",
             "return probs * -grad[:, None], None", "gradient of a log-probability without its one-hot part"),
    Mutation("fast.py", "return (probs * -grad[:, None]).scatter_add_", "return (probs * -grad.mean()).scatter_add_",
             "one gradient for the probabilities of all tokens"),
    Mutation("policy.py", "aligned.tokens, aligned.real_index)",
             "aligned.tokens, aligned.positions)", "the query skipped as if it were padding"),
    Mutation("policy.py", "log_q = (reference.transformer.head(ref_h) / temperature)",
             "log_q = (reference.transformer.head(ref_h))", "exact KL against a reference of another temperature"),
    Mutation("policy.py", "kl.append((log_p.exp() * (log_p - log_q)).sum(-1))",
             "kl.append((log_q.exp() * (log_q - log_p)).sum(-1))", "exact KL the other way round"),
    Mutation("fast.py", "entropy = -torch.linalg.vecdot(probs, log_probs)", "entropy = torch.linalg.vecdot(probs, log_probs)",
             "entropy with the wrong sign"),
    Mutation("policy.py", "entropy = -(log_probs.exp() * log_probs).sum(-1)", "entropy = -log_probs.mean(-1)",
             "a trained entropy that is the cross-entropy of the uniform distribution"),
    Mutation("policy.py", "reference = copy.deepcopy(model).eval().requires_grad_(False)",
             "reference = copy.copy(model).eval()", "the reference shares the policy's weights"),
    Mutation("policy.py", "reference = copy.deepcopy(model).eval().requires_grad_(False)",
             "reference = copy.deepcopy(model).eval()", "the reference can be trained"),
    Mutation("policy.py", "        nn.init.zeros_(self.v_head.weight)\n", "", "a value head that starts with noise"),
    Mutation("inputs.py", "if len(query) + len(response) > n_positions:",
             "if len(response) > n_positions:", "sequences longer than n_positions reach the model"),
    Mutation("inputs.py", "if len(query) + len(response) > n_positions:",
             "if len(query) + len(response) >= n_positions:", "the last position refused"),

    # --- sampling
    Mutation("generation.py", "row.index(sampling.eos_token_id) + 1 if",
             "row.index(sampling.eos_token_id) if", "EOS dropped from the response"),
    Mutation("generation.py", "            end = min(end, limits[i])\n",
             "            end = min(end, R)\n", "a row's own length limit ignored"),
    Mutation("generation.py", "self.input_pos.copy_(lengths - 1)",
             "self.input_pos.copy_(lengths)", "cache position off by one"),
    Mutation("generation.py", "hidden[self.cache.rows, lengths - 1]", "hidden[:, -1]",
             "first token read at the last padded column"),
    Mutation("generation.py", "self.input_pos == self.last_pos)).all())", "self.input_pos == self.last_pos)).any())", "one finished row ends all"),
    Mutation("generation.py", "j[0] < self.min_new", "j[0] <= self.min_new", "minimum length off by one"),
    Mutation("generation.py", "logits = logits / self.temperature", "logits = logits * self.temperature",
             "temperature upside down"),
    Mutation("generation.py", "tail = probs.cumsum(-1) - probs >= self.top_p", "tail = probs.cumsum(-1) >= self.top_p",
             "top-p leaves out the token that fills it"),
    Mutation("generation.py", 'torch.rand(len(queries), R, generator=generator, dtype=torch.float32, device="cpu")',
             "torch.rand(1, R, generator=generator).expand(len(queries), -1)", "all rows draw the same number"),
    Mutation("generation.py", 'torch.rand(len(queries), R, generator=generator, dtype=torch.float32, device="cpu")',
             "torch.rand(len(queries), 1, generator=generator).expand(-1, R)", "all tokens of a row draw the same number"),
    Mutation("generation.py", 'torch.rand(len(queries), R, generator=generator, dtype=torch.float32, device="cpu")',
             "torch.rand(len(queries), R)", "the seed is ignored"),
    Mutation("generation.py", "uniform * cdf[:, -1:], right=True)", "uniform * cdf[:, -1:])",
             "u = 0 chooses a token of probability 0"),
    Mutation("fast.py", "    torch._foreach_copy_(list(kept.model.h.parameters()), list(model.h.parameters()))\n",
             "", "sampling in bf16 from the weights of the first rollout"),
    Mutation("generation.py", "logits < kth", "logits <= kth", "top-k keeps one too few"),
    Mutation("generation.py", "uniform * cdf[:, -1:]", "uniform",
             "probabilities that add up to 0.999999 let the last token in"),
    Mutation("inputs.py", "shortest - len(query)", "shortest", "min_length counted without the query"),
    Mutation("inputs.py", "if len(query) + limit > n_positions:",
             "if len(query) + limit >= n_positions:", "the last position never sampled"),

    # --- GPT-2
    Mutation("gpt2.py", 'approximate="tanh"', 'approximate="none"', "exact gelu"),
    Mutation("attention.py", "    return merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))  ",
             "    return merge_heads(F.scaled_dot_product_attention(q, k, v))  ",
             "prefill and scoring without the causal mask"),
    Mutation("attention.py", "behind = self.columns > input_pos[:, None]",
             "behind = self.columns >= input_pos[:, None]", "the newest token does not see itself"),
    Mutation("attention.py", "behind = self.columns > input_pos[:, None]",
             "behind = self.columns > input_pos[:, None] + 1", "decoding sees a stale column"),
    Mutation("generation.py", "model.embed(self.token, self.input_pos[:, None])",
             "model.embed(self.token, self.input_pos[:, None] - 1)", "decoding with the position before"),
    Mutation("attention.py", "    q, k, v = qkv.view(", "    k, q, v = qkv.view(", "query and key exchanged"),
    Mutation("attention.py", "qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).unbind(2)",
             "qkv.view(B, T, n_head, 3, C3 // (3 * n_head)).unbind(3)",
             "query, key and value interleaved by head, as in GPT-NeoX"),
    Mutation("gpt2.py", "return x + self.mlp(self.ln_2(x))", "return self.ln_2(x + self.mlp(x))",
             "layer norm behind the MLP, as in GPT-1"),
    Mutation("gpt2.py", "return self.ln_f(x.to(self.wte.weight.dtype))", "return x.to(self.wte.weight.dtype)", "no final layer norm"),
    Mutation("attention.py", ".index_copy_(0, self.real_index, x).view(B, T, -1)",
             ".index_copy_(0, self.real_index.flip(0), x).view(B, T, -1)", "tokens put back in another order"),
    Mutation("fast.py", "torch.inference_mode(False), torch.set_grad_enabled(gradients),", "torch.inference_mode(False),",
             "sampling builds a graph for gradients"),
    Mutation("fast.py", "return (onednn(grad, weight.T) if", "return (onednn(2 * grad, weight.T) if", "twice the gradient from oneDNN"),
    Mutation("fast.py", "rows.sum(0) if for_bias", "rows.mean(0) if for_bias", "a bias learns from the mean of its rows"),
    Mutation("gpt2.py", "0.02 / math.sqrt(2 * self.config.n_layer) if", "0.02 if", "residual projections start too large"),
    Mutation("gpt2.py", "self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)",
             "self.ln_1 = LayerNorm(config.n_embd)", "layer_norm_epsilon does not arrive"),
    Mutation("gpt2.py", "x = x + self.attn(", "x = self.attn(", "no residual connection round the attention"),

    # --- checkpoints
    Mutation("files/checkpoint.py", '    trainer.generator.set_state(tensors["generator"])\n', "",
             "sampling starts over after a resume"),
    Mutation("files/checkpoint.py", "for name, value in theirs.items() if", "for name, value in own.items() if",
             "the reference is the policy after a resume"),
    Mutation("files/checkpoint.py", '        trainer.kl_controller.value = state["kl_coef"]', "        pass",
             "kl_coef starts over after a resume"),
    Mutation("files/checkpoint.py", "    if trainer.config.adap_kl_ctrl:\n", "    if True:\n", "a fixed kl_coef is the checkpoint's"),
    Mutation("files/checkpoint.py", '    vars(trainer.moments).update(moments)\n', "",
             "the running scale of scores starts over after a resume"),
    Mutation("files/checkpoint.py", 'load_state_dict({"state": optimizer["state"],', 'load_state_dict({"state": {},',
             "Adam's moments are lost in a resume"),
    Mutation("files/checkpoint.py", "entry != {\"bytes\": path.stat().st_size, \"sha256\": sha256(path)}:", "entry[\"bytes\"] != path.stat().st_size:",
             "a flipped byte goes unnoticed"),
    Mutation("files/checkpoint.py", "for name, value in ours.items() if name in settings}", "for name, value in ours.items() if False}",
             "the learning rate is the checkpoint's"),
    Mutation("files/checkpoint.py", "settings -= SCHEDULED if", "settings -= set() if", "a scheduled learning rate starts over"),
    Mutation("files/checkpoint.py", 'kind = "counter" if isinstance(value, Counter) else "dict"', 'kind = "dict"',
             "milestones come back as a plain dictionary"),
    Mutation("files/checkpoint.py", "if not FILES <= ours:", "if False:", "a foreign folder is replaced"),
    Mutation("files/checkpoint.py", "if foreign := sorted(there - ours):", "if foreign := []:", "foreign files in a checkpoint go with it"),
    Mutation("files/checkpoint.py", "if x.shape != like.shape or x.dtype != like.dtype or not torch.isfinite(x).all():",
             "if not torch.isfinite(x).all():", "moments of another shape reach fused Adam"),
    Mutation("files/checkpoint.py", "if x.shape != like.shape or x.dtype != like.dtype or not torch.isfinite(x).all():",
             "if x.shape != like.shape or x.dtype != like.dtype:", "a reference of NaN is loaded"),
    Mutation("files/checkpoint.py", "return sizes | places | {", "return sizes | {",
             "other frozen parameters get each other's moments"),
    Mutation("files/checkpoint.py", "return sizes | places | {", "return places | {",
             "a checkpoint of other heads is accepted"),
    Mutation("files/checkpoint.py", "                scheduler.load_state_dict(before)\n", "", "a scheduler that was refused has changed"),

    # --- files
    Mutation("files/atomic.py", "    path = Path(os.path.realpath(path))\n    if path.exists() and not path.is_file()",
             "    path = Path(path)\n    if path.exists() and not path.is_file()", "a link becomes a file when it is written to"),
    Mutation("files/atomic.py", "    folder = Path(os.path.realpath(os.path.expanduser(folder)))\n    if folder.exists() and not folder.is_dir()",
             "    folder = Path(folder)\n    if folder.exists() and not folder.is_dir()", "a link to a folder becomes one"),
    Mutation("files/atomic.py", "            os.rename(aside, folder)\n        raise", "            pass\n        raise",
             "the old folder is gone after a failed rename"),
    Mutation("files/atomic.py", "match.groups() == (folder.name, \"old\")", "match[2] == \"old\"", "any folder set aside is taken for this one"),
    Mutation("files/atomic.py", " and names.fullmatch(match[1]):", ":", "leftovers of others are removed"),
    Mutation("files/atomic.py", "if (size := path.stat().st_size) > limit or", "if (size := path.stat().st_size) < 0 or",
             "a JSON file of 30 GB is read"),
    Mutation("files/safetensors.py", "check(len(result) == len(pairs),", "check(True,", "of two equal names the last wins"),
    Mutation("files/safetensors.py", "check(info.start == position,", "check(True,", "tensors may overlap"),
    Mutation("files/safetensors.py", "if names is None or name in names]", "]", "what is not asked for is read"),
    Mutation("files/hub.py", "if response.status == 206 and (now != version or None in now):", "if False:",
             "halves of two versions are joined"),
    Mutation("files/hub.py", "if max(done, size or 0) > most or", "if", "a body without end fills the disk"),
    Mutation("files/hub.py", 'token if urlsplit(url)[:2] == home else ""', "token", "the token goes to another host"),
    Mutation("files/hub.py", "with suppress(OSError, ValueError, AttributeError):", "with suppress(ZeroDivisionError):",
             "a closed terminal ends a download"),
    Mutation("files/hub.py", "elif size not in (None, path.stat().st_size) or", "elif", "another file counts as the public model"),
    Mutation("files/hub.py", "if wanted not in (None, found):", "if False:", "a wrong hash is taken"),
    Mutation("files/tokenizer.py", "read_text(merges, MAX_FILE)", 'merges.read_bytes().decode("utf-8", "replace")', "merges with CR line ends are lost"),
    Mutation("files/tokenizer.py", "        _check_complete(vocab, tokens, added)\n", "", "merges that were cut off are lost"),
    Mutation("files/tokenizer.py", "self.vocab_size = len(vocab) + len(beyond)", "self.vocab_size = len(vocab)", "added tokens are not counted"),
    Mutation("files/model_folder.py", 'tensor.T.contiguous() if name.endswith(TRANSPOSED) else tensor\n', "tensor\n", "linear weights are not transposed"),
    Mutation("files/model_folder.py", "if type(raw.get(name)) is not int or not 1 <= raw[name] <= largest:", "if False:",
             "sizes beyond all memory are tried"),
    Mutation("files/model_folder.py", "for file in part_names(folder / INDEX) if in_parts else [WEIGHTS]:", "for file in [WEIGHTS]:",
             "a model in parts is not read"),

    # --- several processes
    Mutation("distributed.py", "return rows[rank()::world_size()]", "return rows", "every process takes all rows: sums count them twice"),
    Mutation("distributed.py", "each[i % len(each)][i // len(each)]", "each[i // len(each[0])][i % len(each[0])]",
             "responses come back to other queries"),
    Mutation("distributed.py", "(dist.broadcast, flat, 0) if from_first else (dist.all_reduce, flat)", "dist.broadcast, flat, 0",
             "the first process's gradient is all that is learnt from"),
    Mutation("distributed.py", "            buckets.append([])", "            buckets = [[]]", "what does not fit into a bucket is not summed"),
    # --- runs, scores and reports: their guards
    Mutation("inputs.py", "if p.requires_grad and id(p) not in known), None)", "if False), None)",
             "a layer that was exchanged stays as it is, in silence"),
    Mutation("inputs.py", 'if not 0 <= group["lr"] < math.inf]', "if False]", "a learning rate of NaN spoils all weights"),
    Mutation("inputs.py", "if sum(map(len, queries)) > 4 and all(", "if False and all(",
             "queries within responses are trained on in silence"),
    Mutation("inputs.py", 'if any("_orig_mod." in name', "if any(False", "a model in torch.compile's wrapper is taken"),
    Mutation("inputs.py", 'if getattr(lr_scheduler, "optimizer", optimizer) is not optimizer:', "if False:",
             "a scheduler moves another optimizer"),
    Mutation("inputs.py", 'if kind == "bool" and', "if False and", "the text no counts as true"),
    Mutation("inputs.py", "math.inf if abs(score) > 1e300 else float(score)", "score", "fractions and 2**70 are no scores"),
    Mutation("files/model_folder.py", "if not PARAMETER.fullmatch(name)), None)", "if False), None)",
             "weights are saved under names that nothing loads"),
    Mutation("files/model_folder.py", "name = os.fspath(name_or_dir)", "name = str(name_or_dir)", "None is a repo of the Hub"),
    Mutation("files/atomic.py", "            error.filename = str(path)\n", "            pass\n",
             "a full disk does not say where"),
    Mutation("files/checkpoint.py", "@torch.inference_mode(False)   ", "# ",
             "what is loaded in inference mode can never change"),
    Mutation("training/run.py", "except BaseException as error:                                      # SystemExit",
             "except ValueError as error:                                      # SystemExit", "an error of the machine loses what was learnt"),
    Mutation("training/run.py", "if trainer.steps_done > saved and not moved and", "if trainer.steps_done > saved and",
             "weights of half an update are saved"),
    Mutation("training/run.py", "            trainer.generator.set_state(generator)\n", "            pass\n",
             "a failed update has moved the generator"),
    Mutation("training/run.py", "if self.asked > 1 and", "if False and", "a second Ctrl+C waits for the end of the update"),
    Mutation("training/run.py", 'if metrics["ppo/skipped_nonfinite"]:', "if False:", "a run goes on with losses of NaN"),
    Mutation("training/run.py", "    check_vocabulary(tokenizer, model.config.vocab_size, source)\n", "",
             "a tokenizer with more tokens than the model is found out in the run"),
    Mutation("training/run.py", "if n + limit > model.config.n_positions:", "if False:",
             "prompts that do not fit stop the run later"),
    Mutation("training/run.py", '    check_folder(out, OURS, bool(read_record(out)), "run\'s folder")\n', "",
             "a run goes into a folder of other things"),
    Mutation("training/run.py", '    except Exception as error:\n        warn(f"no report',
             '    except ZeroDivisionError as error:\n        warn(f"no report', "a report that fails ends the run"),
    Mutation("training/run.py", 'if (out / "report.html").exists() else ""', 'if True else ""',
             "a report is named that is not there"),
    Mutation("training/run_folder.py", "if self.file.seek(0, os.SEEK_END) > size:", "if False:",
             "lines of lost updates stay in the logs"),
    Mutation("training/run_folder.py", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "two runs in one folder"),
    Mutation("training/run_folder.py", "after_in_child=lambda: [file.close() for file in HELD]", "after_in_child=lambda: None",
             "a reward's child keeps the folder locked"),
    Mutation("training/run_folder.py", "if changed and not allow_config_change:", "if False:",
             "a run goes on with other settings"),
    Mutation("training/run_folder.py", "if not resume and (checkpoints(out) or", "if False and (checkpoints(out) or",
             "a second run is written over the first"),
    Mutation("training/run_folder.py", 'if name not in (".lock", "labels.jsonl") and not', "if False and not",
             "a folder of other things is taken"),
    Mutation("training/run_folder.py", "log.write([], sync=True)", "log.write([])",
             "a checkpoint counts on lines that are not on the disk"),
    Mutation("training/run_folder.py", "if not isinstance(record, dict) or not all(", "if record is None or not all(",
             "a config.json that is a list"),
    Mutation("training/run_folder.py", '        except (OSError, ValueError) as error:\n            warn(f"{folder.name}',
             '        except ZeroDivisionError as error:\n            warn(f"{folder.name}', "a damaged checkpoint is the end of its run"),
    Mutation("training/run_folder.py", "                self.file.truncate(size)\n            if not",
             "                pass\n            if not", "a full disk leaves half a line in the logs"),
    Mutation("training/terminal.py", "with suppress(OSError, ValueError, AttributeError):", "with suppress(AttributeError):",
             "a full or closed terminal ends the run"),
    Mutation("training/terminal.py", 'text.encode(encoding, "backslashreplace")', "text.encode(encoding)",
             "a sample that the terminal cannot encode ends the run"),
    Mutation("training/terminal.py", 'write(getattr(sys, stream), visible(text, keep="\\n\\t")', 'write(getattr(sys, stream), text', "a sample steers the terminal"),
    Mutation("training/terminal.py", "sys.stdin = sys.stdin or open(os.devnull)", "pass",
             "a file gets the number of a closed stdin"),
    Mutation("training/config.py", "Path(path).expanduser()", "Path(path)", "a folder called ~"),
    Mutation("training/config.py", "torch.empty(1, device=device).tolist()", "torch.empty(1, device=device)",
             "a device without numbers is taken"),
    Mutation("training/config.py", 'free = ("run ppo prompts out', 'free = ("run ppo reward prompts out',
             "a run goes on with another reward"),
    Mutation("training/data.py", "if len(raw) > LARGEST:", "if False:", "a file without end is read"),
    Mutation("training/data.py", 'else "\\ufffd" * len([*run])', 'else ""', "a token without a text vanishes"),
    Mutation("training/data.py", "for example in order[count:] if example not in seen]", "for example in order[count:]]",
             "copies of held-out examples are trained on"),
    Mutation("training/data.py", "if tokenizer.vocab_size > vocab_size:", "if False:", "a tokenizer of another model is taken"),
    Mutation("training/batch.py", 'torch.tensor(prompt, device="cpu")', "torch.tensor(prompt)",
             "a reward's default device takes the prompts away"),
    Mutation("training/evaluate.py", "@training_modes\n", "", "a caller's autocast reaches the followed responses"),
    Mutation("training/pretrain.py", "if not math.isfinite(losses[-1]):", "if False:",
             "pretraining goes on with a loss of NaN"),
    Mutation("training/reward_training.py", "if not math.isfinite(value := loss.item()):", "if math.isnan(value := loss.item()) and False:",
             "a reward model learns from a loss of NaN"),
    Mutation("training/reward_training.py", "@torch.enable_grad()\n", "",
             "a caller's no_grad ends the training of a reward model"),
    Mutation("__main__.py", 'if "reward" not in flags and (code', "if False and (code",
             "a resumed run imports what its folder names"),
    Mutation("scoring/rewards.py", "except BaseException as error:                              # sys.exit(), too",
             "except Exception as error:", "a reward that calls sys.exit ends the program"),
    Mutation("scoring/rewards.py", "except (Exception, SystemExit) as error:", "except Exception as error:",
             "a module that ends the program when it is imported"),
    Mutation("scoring/rewards.py", "if isinstance(number, Real) and abs(number) <= LARGEST:", "if isinstance(number, Real):",
             "a score beyond fp32"),
    Mutation("scoring/rewards.py", "if no_list or len(values) != len(queries):", "if no_list:", "another number of scores"),
    Mutation("scoring/rewards.py", "isinstance(values, (str, bytes, Mapping, Set)) or", "isinstance(values, (str, bytes)) or",
             "a dictionary's keys are scores"),
    Mutation("scoring/rewards.py", "score_fn([*asked], answers)", "score_fn(asked, answers)",
             "a reward changes the batch"),
    Mutation("scoring/rewards.py", 'return check_scores(total, " + ".join(parts), queries), parts', "return total, parts",
             "a sum of infinity"),
    Mutation("scoring/rewards.py", "if _OWN.fullmatch(source)]", "if False]", "code that a folder names is not noticed"),
    Mutation("scoring/human.py", "                if LOWEST <= rating <= HIGHEST:  ", "                if True:  ",
             "a rating of nan"),
    Mutation("scoring/human.py", 'whole = not _FORM.startswith(_VARIES.sub(b"", tail))', "whole = not tail",
             "the end of somebody else's file is cut off"),
    Mutation("scoring/human.py", "if signum in always or signal.getsignal(signum) is not signal.SIG_IGN}", "}",
             "nohup does not hold while a person is asked"),
    Mutation("scoring/human.py", "except (OSError, ValueError) as error:                          # ValueError: a closed",
             "except ZeroDivisionError as error:                          # ValueError: a closed", "a terminal that goes away is a traceback"),
    Mutation("scoring/human.py", 'visible(text, keep="\\n").replace', "text.replace",
             "a response steers the terminal of who rates it"),
    Mutation("scoring/human.py", "            os.fsync(file.fileno())\n        self.ratings[pair] = rating",
             "        self.ratings[pair] = rating", "a rating is lost with the power"),
    Mutation("scoring/reward_model.py", "if isinstance(queries, str) or isinstance(responses, str):", "if False:",
             "a text is scored letter by letter"),
    Mutation("scoring/reward_model.py", "with torch_modes(self.device, self.transformer.compute_dtype):", "if True:",
             "a caller's autocast reaches the scores"),
    Mutation("scoring/reward_model.py", '> self.config.vocab_size:\n            raise ValueError(f"the tokenizer',
             '>= 2**63:\n            raise ValueError(f"the tokenizer', "a reward model takes another model's tokenizer"),
    Mutation("scoring/reward_model.py", "if std > 1e-6 * (1 + abs(mean)) else 1.0", "if std > 0 else 1.0",
             "rounding is blown up to scores of deviation 1"),
    Mutation("scoring/reward_model.py", "if not math.isfinite(std):", "if False:", "scores are normalised to NaN"),
    Mutation("scoring/reward_model.py", "            if got != expected:\n", "            if False:\n",
             "a head of another shape is loaded"),
    Mutation("report/findings.py", "flat = chance < inf and", "flat = False and",
             "a run that learnt nothing is unusual in nothing"),
    Mutation("report/findings.py", "elif flat and share < 0.01 and", "elif share < 0.01 and",
             "small updates are a fault of runs that learn"),
    Mutation("report/findings.py", "or not abs(value) < 1e100:", "or value != value:",
             "numbers of absurd size overflow the page"),
    Mutation("report/page.py", 'return escape("".join(hidden.get(c, c) for c in text).replace(" ", space))',
             'return "".join(hidden.get(c, c) for c in text).replace(" ", space)', "a text of the run is markup of the page"),
    Mutation("report/page.py", 'type(row.get("step")) is int and 0 <= row["step"] < 2**53', '"step" in row',
             "a step that is markup"),
    Mutation("report/page.py", '.replace("<", "\\\\u003c")', "", "a token ends the page's data"),
    Mutation("report/page.py", "if unicodedata.category(c) in _HIDDEN} | _SIGNS", "if False} | _SIGNS",
             "direction marks turn the page round"),
    Mutation("report/page.py", "script-src 'sha256-{ours}'", "script-src 'unsafe-inline'", "any script may run"),
    Mutation("report/page.py", "        if not fits(row):\n", "        if row is None:\n",
             "lines that no run writes reach the page"),
    # --- CUDA, on fake tensors
    Mutation("fast.py", "        decoder.cache.clear()  ", "        pass  ", "NaN stays in a kept cache"),
    Mutation("fast.py", "decoder = kept.pop(key, None)", "decoder = kept.get(key)", "the oldest decoder goes, used or not"),
    Mutation("generation.py", 'look_every = self.sampling.eos_token_id, 1 if self.output.device.type == "cpu" else 16', "look_every = self.sampling.eos_token_id, 1",
             "a host sync a token"),
    Mutation("generation.py", "        self.step_index.add_(1)\n", "        self.n = getattr(self, 'n', 0) + 1\n        self.step_index.fill_(self.n)\n",
             "a number of Python is frozen in the graph"),
    Mutation("fast.py", "(*shape, addresses, hooked(snapshot))", "(*shape, addresses)", "a graph does not call hooks"),
    Mutation("generation.py", "[], output.clone() ", "[], output ", "responses change with the next call"),
    Mutation("attention.py", "device=behind.device, dtype=self.keys[0].dtype)", "device=behind.device)", "an fp32 mask for bf16 attention"),
    Mutation("fast.py", 'non_blocking=device.type == "cuda")', "non_blocking=False)", "uploads wait for the GPU"),
    Mutation("fast.py", "        torch.backends.cuda.enable_cudnn_sdp(False)\n", "", "cuDNN attention"),
    Mutation("fast.py", "recompile_limit = max(64, ", "recompile_limit = max(8, ", "compiled blocks run out of shapes"),
    Mutation("metrics.py", "                           batch.advantages]).cpu() ", "                           batch.advantages]) ", "each statistic waits for the GPU"),
    Mutation("ppo.py", "to(kl.device, non_blocking=kl.is_cuda)", "to(kl.device)", "rewards wait for the rollout"),
    Mutation("metrics.py", "mark.record(torch.cuda.current_stream(self.device))", "mark.record()", "cuda:1 is timed on another card's stream"),
    Mutation("training/pretrain.py", "to(model.device)\n\n    progress", "clone()\n\n    progress", "rows are drawn on the CPU"),
]


# --- the check ------------------------------------------------------------------------------------

def run_tests(copy: Path, files: list[str], seconds: float, show: bool = False) -> tuple[int, str]:
    """pytest on these files of the copy until the first failure: its exit status, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *([] if show else ["--tb=no"])]
    try:
        done = subprocess.run(command + [f"tests/{name}" for name in files], cwd=copy, env=os.environ | ENVIRONMENT,
                              capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return -1, f"no result within {seconds:.0f} s"
    if show:
        print(done.stdout, done.stderr)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
    return done.returncode, failed[1] if failed else done.stdout.strip().rpartition("\n")[2]


def check(mutation: Mutation, copy: Path, show: bool) -> tuple[bool, str]:
    """Whether a test notices the break (pytest's status 1), and in words; the copy is whole again afterwards."""
    path = copy / "minippo" / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return False, f"OUT OF DATE, its text occurs {source.count(mutation.old)} times"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, text = run_tests(copy, TESTS[mutation.file], SECONDS, show)
    finally:
        path.write_text(source, encoding="utf-8")
    if status == 1:
        return True, f"caught by {text}"
    return False, "SURVIVED" if status == 0 else f"NO VERDICT (pytest's status {status}), {text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="K", help="a number of the list, or a word of the description")
    only = parser.parse_args().only
    chosen = [(number, mutation) for number, mutation in enumerate(MUTATIONS, 1)
              if only is None or only == str(number) or not only.isdigit() and only.lower() in mutation.breaks.lower()]
    start, left = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for name in ("minippo", "tests", "tutorial"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, copy)
        whole = [name for name in dict.fromkeys(name for _, mutation in chosen for name in TESTS[mutation.file])]
        status, text = run_tests(copy, whole, 5 * SECONDS)
        if status != 0:
            print(f"the tests must pass before anything is broken, but: {text}")
            return 1
        for number, mutation in chosen:
            caught, text = check(mutation, copy, show=len(chosen) == 1)
            left += not caught
            print(f"{number:3}  {mutation.file:13} {mutation.breaks}\n     {text}", flush=True)
    print(f"{len(chosen) - left} of {len(chosen)} breaks caught, {left} not, {time.monotonic() - start:.0f} s")
    return 1 if left or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
