"""The same loop with a trained reward: a reward model learns from your texts what is good, then PPO writes for it.

    python -m examples.reward_model runs/demo/pretrained                   # on the built-in film reviews
    python -m examples.reward_model gpt2 good.txt bad.txt                  # on your own: one text a line, good ones and bad ones
"""

import random
import sys

import torch

from minippo import GPT2, GPT2WithValueHead, PPOConfig, PPOTrainer, RewardModel, load_tokenizer
from minippo.training.data import load_labelled, make_reviews
from minippo.training.reward_training import RewardModelConfig, train_on_labels

NAME, FILES = (sys.argv[1] if len(sys.argv) > 1 else "gpt2"), sys.argv[2:]
tokenizer, rng = load_tokenizer(NAME), random.Random(0)

# 1. texts, each with a label: 1 good, 0 bad
labelled = load_labelled(FILES) if FILES else [(review.text, int(review.score > 0.5)) for review in make_reviews(2000, seed=0)]
texts, labels = zip(*labelled)

# 2. a reward model: the language model with another head, trained to tell good from bad
judge = RewardModel.from_gpt2(GPT2.from_pretrained(NAME), tokenizer, torch.Generator().manual_seed(0))
result = train_on_labels(judge, texts, labels, RewardModelConfig(learning_rate=5e-5 if NAME == "gpt2" else 1e-3))
print(f"the reward model is right on {result.accuracy:.0%} of {result.held_out} texts that it was not trained on")

# 3. PPO: the policy continues the first words of the texts, the reward model scores what it wrote
model = GPT2WithValueHead.from_pretrained(NAME)
config = PPOConfig(batch_size=32, mini_batch_size=16, learning_rate=1.41e-5 if NAME == "gpt2" else 5e-4, seed=0)
trainer = PPOTrainer(config, model, tokenizer=tokenizer)
for update in range(1, 21):
    openings = [" ".join(rng.choice(texts).split()[:3]) for _ in range(config.batch_size)]
    queries = [torch.tensor(tokenizer.encode(opening)) for opening in openings]
    responses = trainer.generate(queries, max_new_tokens=24)
    answers = [tokenizer.decode(response, skip_special_tokens=True) for response in responses]
    stats = trainer.step(queries, responses, judge.score(openings, answers))
    print(f"update {update:2}  score {stats['ppo/mean_scores']:6.3f}  kl {stats['objective/kl']:6.3f}  |{openings[0]}|{answers[0]}")

judge.save_pretrained("runs/reward-model")
model.save_pretrained("runs/reward-example", tokenizer)
