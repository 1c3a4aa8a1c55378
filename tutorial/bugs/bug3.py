"""A small GPT-2 that decides itself when to stop: token 0 ends a response, and each token costs a tenth of a point.

    python -m tutorial.bugs.bug3

One line is wrong; nothing crashes, and the score rises. Which line is it, and which of the printed metrics tells?
"""

import copy

import torch

from minippo import GPT2Config, GPT2WithValueHead
from minippo.policy import response_logprobs
from minippo.ppo import compute_advantages, compute_rewards, masked_mean, masked_whiten

EOS, B, EPOCHS, MINIBATCH, STEPS = 0, 64, 4, 32, 16
KL_COEF, LAM, VF_COEF = 0.05, 0.95, 0.5


def score(response):
    """One point for a 4 anywhere, less a tenth a token: the best response is 4 and EOS."""
    return float(4 in response) - 0.1 * len(response)


def run() -> list[dict]:
    """One dict of metrics a step."""
    dice = torch.Generator().manual_seed(0)
    sizes = GPT2Config(vocab_size=6, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2WithValueHead(sizes, generator=dice)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-4)
    queries, history = [torch.tensor([1])] * B, []
    for _ in range(STEPS):
        responses = model.generate(queries, max_new_tokens=10, eos_token_id=EOS, generator=dice)
        lengths = torch.tensor([len(response) for response in responses])
        scores = torch.tensor([score(response) for response in responses])
        with torch.no_grad():
            logprobs, values, mask = response_logprobs(model, queries, responses)
            ref_logprobs, _, _ = response_logprobs(reference, queries, responses)
        rewards, _, kl = compute_rewards(scores, logprobs, ref_logprobs, mask, KL_COEF)
        advantages, returns = compute_advantages(values, rewards, mask, gamma=1.0, lam=LAM)
        advantages = masked_whiten(advantages, mask)

        trained = 0                                             # tokens that the loss has seen
        for _ in range(EPOCHS):
            for rows in torch.randperm(B, generator=dice).split(MINIBATCH):
                new_logprobs, new_values, _ = response_logprobs(model, [queries[row] for row in rows],
                                                                [responses[row] for row in rows])
                width = new_logprobs.shape[1]                   # the longest of this minibatch
                real = torch.arange(width) < lengths[rows, None] - 1
                old_logprobs, A, G = logprobs[rows, :width], advantages[rows, :width], returns[rows, :width]
                ratio = torch.where(real, new_logprobs - old_logprobs, 0.0).exp()
                objective = torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A)
                error = (new_values - G) ** 2
                loss = -masked_mean(objective, real) + VF_COEF * 0.5 * masked_mean(error, real)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                trained += int(real.sum())

        history.append({"score": scores.mean().item(), "kl": kl.sum(1).mean().item(), "length": lengths.float().mean().item(),
                        "trained": trained / B / EPOCHS, "surprise": -masked_mean(logprobs, mask).item(),
                        "last_ratio": masked_mean(ratio, real).item(), "value_error": masked_mean(error, real).item()})
    return history


if __name__ == "__main__":
    history = run()
    print("step  " + "".join(f"{name:>13}" for name in history[0]))
    for step in range(0, STEPS, 2):
        print(f"{step + 1:4}  " + "".join(f"{number:13.4f}" for number in history[step].values()))
