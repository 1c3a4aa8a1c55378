"""Where scores come from: rules, own functions, sums of them, a person, a reward model."""
