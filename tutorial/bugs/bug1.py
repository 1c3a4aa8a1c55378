"""Three questions, six words to answer each with one, and a table of logits for a policy: PPO without a language model.

    python -m tutorial.bugs.bug1

One line is wrong; nothing crashes, and the score rises. Which line is it, and which of the printed metrics tells?
"""

import torch
from torch.distributions import Categorical

B, EPOCHS, MINIBATCH, STEPS = 96, 4, 32, 24
KL_COEF, CLIPRANGE = 0.5, 0.2
SCORES = torch.tensor([[0.0, 1.0, 2.0, -1.0, -2.0, 0.5],        # of each word as an answer to question 0
                       [2.0, 0.0, -1.0, 0.5, 1.0, -2.0],        # 1
                       [-1.0, -2.0, 0.0, 1.0, 0.5, 2.0]])       # 2


def run() -> list[dict]:
    """One dict of metrics a step."""
    torch.manual_seed(0)
    policy = torch.zeros(3, 6, requires_grad=True)              # logits of the words, a row for each question
    reference = torch.zeros(3, 6)                               # all words are as likely
    critic = torch.zeros(3, requires_grad=True)                 # the score expected of each question
    optimizer = torch.optim.Adam([policy, critic], lr=0.05)
    history = []
    for _ in range(STEPS):
        question = torch.arange(B) % 3
        with torch.no_grad():
            word = Categorical(logits=policy[question]).sample()
            logprob = Categorical(logits=policy[question]).log_prob(word)
            kl = logprob - Categorical(logits=reference[question]).log_prob(word)
            reward = SCORES[question, word] - KL_COEF * kl
            advantage = reward - critic[question]
            advantage = (advantage - advantage.mean()) / advantage.std()

        clipped, moved, errors = [], [], []
        for _ in range(EPOCHS):
            for rows in torch.randperm(B).split(MINIBATCH):
                old_logprob = Categorical(logits=policy.detach()[question]).log_prob(word)[rows]
                new_logprob = Categorical(logits=policy[question[rows]]).log_prob(word[rows])
                ratio = (new_logprob - old_logprob).exp()
                objective = ratio * advantage[rows]
                objective_clipped = ratio.clamp(1 - CLIPRANGE, 1 + CLIPRANGE) * advantage[rows]
                error = (critic[question[rows]] - reward[rows]) ** 2
                loss = -torch.minimum(objective, objective_clipped).mean() + 0.5 * error.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                clipped.append((objective_clipped < objective).float().mean())
                moved.append(0.5 * ((new_logprob - old_logprob) ** 2).mean())
                errors.append(error.mean())

        mean = lambda numbers: torch.stack(numbers).mean().item()
        history.append({"score": SCORES[question, word].mean().item(), "kl": kl.mean().item(),
                        "entropy": Categorical(logits=policy.detach()).entropy().mean().item(),
                        "approxkl": mean(moved), "clipfrac": mean(clipped), "value_error": mean(errors)})
    return history


if __name__ == "__main__":
    history = run()
    print("step  " + "".join(f"{name:>13}" for name in history[0]))
    for step in range(0, STEPS, 3):
        print(f"{step + 1:4}  " + "".join(f"{number:13.4f}" for number in history[step].values()))
