"""Responses of eight tokens, each chosen by the token before it: a policy that is a table, and a KL that is kept at its target.

    python -m tutorial.bugs.bug2

One line is wrong; nothing crashes, and the score rises. Which line is it, and which of the printed metrics tells?
"""

import torch

V, R, B = 6, 8, 128                         # words, tokens of a response, responses
EPOCHS, STEPS, LAM = 2, 60, 0.95
TARGET, HORIZON = 2.0, 500                 # of the KL, in nats per response; responses over which the controller acts


def score(responses):
    """How many tokens of a response are 4: (B, R) -> (B,)."""
    return (responses == 4).float().sum(1)


class Policy(torch.nn.Module):
    """Log-probabilities and values of the next token by the token before it; row V is the beginning."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(V + 1, V))
        self.worth = torch.nn.Parameter(torch.zeros(V + 1, R))

    def sample(self):
        responses = torch.full((B, 1), V)
        for _ in range(R):
            chances = self.logits[responses[:, -1]].softmax(-1)
            responses = torch.cat([responses, torch.multinomial(chances, 1)], 1)
        return responses[:, 1:]

    def forward(self, responses):
        before = torch.cat([torch.full((B, 1), V), responses[:, :-1]], 1)
        logprobs = self.logits[before].log_softmax(-1).gather(-1, responses[..., None]).squeeze(-1)
        return logprobs, self.worth[before, torch.arange(R)]            # (B, R) each


def run() -> list[dict]:
    """One dict of metrics a step."""
    torch.manual_seed(0)
    policy, reference, kl_coef, history = Policy(), Policy(), 0.8, []
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.03)
    for _ in range(STEPS):
        with torch.no_grad():
            responses = policy.sample()
            logprobs, values = policy(responses)
            kl = logprobs - reference(responses)[0]
            scores = score(responses)

        rewards = -kl_coef * kl
        rewards[:, -1] += scores
        advantages, later = torch.zeros(B, R), torch.zeros(B)
        for t in reversed(range(R)):
            expected = values[:, t + 1] if t + 1 < R else torch.zeros(B)
            later = rewards[:, t] + expected - values[:, t] + LAM * later
            advantages[:, t] = later
        returns = advantages + values
        advantages = (advantages - advantages.mean()) / advantages.std()

        for _ in range(EPOCHS):
            new_logprobs, new_values = policy(responses)
            ratio = (new_logprobs - logprobs).exp()
            objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            error = (new_values - returns) ** 2
            loss = -objective.mean() + 0.5 * error.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        history.append({"score": scores.mean().item(), "kl": kl.sum(1).mean().item(), "kl_coef": kl_coef,
                        "surprise": -logprobs.sum(1).mean().item(), "last_ratio": ratio.mean().item(),
                        "value_error": error.mean().item()})
        drift = (kl.mean() / TARGET - 1).clamp(-0.2, 0.2).item()
        kl_coef *= 1 + drift * B / HORIZON
    return history


if __name__ == "__main__":
    history = run()
    print("step  " + "".join(f"{name:>13}" for name in history[0]))
    for step in range(0, STEPS, 6):
        print(f"{step + 1:4}  " + "".join(f"{number:13.4f}" for number in history[step].values()))
