"""Training runs: the loop around ppo.py, the models and texts that it needs, the demo."""
