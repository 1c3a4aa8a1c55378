"""The course: thirteen chapters that build ppo.py from nothing. Start with README.md in this folder."""
