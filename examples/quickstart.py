"""PPO fine-tuning of GPT-2, the whole loop in one file: copy it, and change what is yours.

    python -m examples.quickstart                          # gpt2, downloaded once; better on a GPU
    python -m examples.quickstart runs/demo/pretrained     # a model folder: this one is left by `python -m minippo`
"""

import random
import sys

import torch

from minippo import GPT2WithValueHead, PPOConfig, PPOTrainer, load_tokenizer

NAME = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
OPENINGS = ["The film was", "My friend told me that", "This morning I went to the", "In the end, the", "What I like about it is"]
GOOD, BAD = {"good", "great", "best", "love", "loved", "nice", "fun", "happy"}, {"bad", "worst", "boring", "poor", "hate", "sad"}


def score(text: str) -> float:
    """The reward, yours to write: any number, the more the better. Here: good words less bad ones."""
    words = [word.strip(".,!?\"'").lower() for word in text.split()]
    return float(sum(word in GOOD for word in words) - sum(word in BAD for word in words))


tokenizer = load_tokenizer(NAME)
model = GPT2WithValueHead.from_pretrained(NAME)
config = PPOConfig(batch_size=32, mini_batch_size=16, learning_rate=1.41e-5, seed=0)
trainer = PPOTrainer(config, model, tokenizer=tokenizer)        # makes the frozen reference itself
rng = random.Random(0)

for update in range(1, 21):
    texts = [rng.choice(OPENINGS) for _ in range(config.batch_size)]
    queries = [torch.tensor(tokenizer.encode(text)) for text in texts]
    responses = trainer.generate(queries, max_new_tokens=24)
    answers = [tokenizer.decode(response, skip_special_tokens=True) for response in responses]
    stats = trainer.step(queries, responses, [score(answer) for answer in answers])
    print(f"update {update:2}  score {stats['ppo/mean_scores']:6.3f}  kl {stats['objective/kl']:6.3f}  "
          f"entropy {stats['ppo/policy/entropy']:.2f}  clipfrac {stats['ppo/policy/clipfrac']:.3f}", flush=True)
    if update % 5 == 0:
        print(f"    {texts[0]}|{answers[0]}")

model.save_pretrained("runs/quickstart", tokenizer)             # also for transformers' AutoModelForCausalLM
print("saved in runs/quickstart")
