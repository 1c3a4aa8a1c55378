"""Wrong answers to chapter 8; each docstring is in the message that the check must give."""

import torch


def deltas(values, rewards, gamma):
    """The TD errors without any masking."""
    return rewards + gamma * torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1) - values


def clean(x, mask):
    return torch.where(mask, x, 0.0)


def backwards(deltas, factor):
    advantages, later = torch.zeros_like(deltas), 0.0
    for t in reversed(range(deltas.shape[1])):
        later = advantages[:, t] = deltas[:, t] + factor * later
    return advantages


def right(values, rewards, mask, gamma, lam):
    return backwards(deltas(clean(values, mask), clean(rewards, mask), gamma), gamma * lam)


def whiten(x, mask):
    return clean((x - x[mask].mean()) / x[mask].std(), mask)


def td_errors__mask_at_the_end_only(values, rewards, mask, gamma):
    """leaked into the last real token"""
    return clean(deltas(values, rewards, gamma), mask)


def td_errors__no_mask(values, rewards, mask, gamma):
    """you used the padding"""
    return deltas(values, rewards, gamma)


def td_errors__rewards_of_padding(values, rewards, mask, gamma):
    """not 0 in your result"""
    return deltas(clean(values, mask), rewards, gamma)


def td_errors__no_gamma(values, rewards, mask, gamma):
    """gamma is missing"""
    return deltas(clean(values, mask), clean(rewards, mask), 1.0)


def td_errors__roll(values, rewards, mask, gamma):
    """torch.roll wraps"""
    values = clean(values, mask)
    return clean(rewards + gamma * values.roll(-1, 1) - values, mask)


def td_errors__other_way(values, rewards, mask, gamma):
    """shift the values the other way"""
    values = clean(values, mask)
    return clean(rewards + gamma * torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1) - values, mask)


def td_errors__nothing_expected(values, rewards, mask, gamma):
    """own value is not subtracted"""
    values = clean(values, mask)
    return clean(deltas(values, rewards, gamma) + values, mask)


def td_errors__no_return(values, rewards, mask, gamma):
    """is the return statement missing?"""
    clean(deltas(clean(values, mask), rewards, gamma), mask)


def compute_advantages__one_result(values, rewards, mask, gamma, lam):
    """return advantages, returns"""
    return right(values, rewards, mask, gamma, lam)


def compute_advantages__td_errors(values, rewards, mask, gamma, lam):
    """these are the TD errors"""
    advantages = right(values, rewards, mask, gamma, 0.0)
    return advantages, advantages + clean(values, mask)


def compute_advantages__lam_alone(values, rewards, mask, gamma, lam):
    """you carried lam alone"""
    advantages = backwards(deltas(clean(values, mask), clean(rewards, mask), gamma), lam)
    return advantages, advantages + clean(values, mask)


def compute_advantages__gamma_alone(values, rewards, mask, gamma, lam):
    """lam is not used"""
    advantages = right(values, rewards, mask, gamma, 1.0)
    return advantages, advantages + clean(values, mask)


def compute_advantages__forwards(values, rewards, mask, gamma, lam):
    """you ran forwards"""
    surprises = deltas(clean(values, mask), clean(rewards, mask), gamma)
    advantages = clean(backwards(surprises.flip(1), gamma * lam).flip(1), mask)
    return advantages, advantages + clean(values, mask)


def compute_advantages__padding_leaks(values, rewards, mask, gamma, lam):
    """the padding leaked into the real tokens"""
    advantages = clean(backwards(deltas(values, rewards, gamma), gamma * lam), mask)
    return advantages, advantages + clean(values, mask)


def compute_advantages__no_mask(values, rewards, mask, gamma, lam):
    """you used the padding"""
    advantages = backwards(deltas(values, rewards, gamma), gamma * lam)
    return advantages, advantages + values


def compute_advantages__lam_in_the_td_error(values, rewards, mask, gamma, lam):
    """lam belongs to the next advantage"""
    advantages = backwards(deltas(clean(values, mask), clean(rewards, mask), gamma * lam), gamma * lam)
    return advantages, advantages + clean(values, mask)


def compute_advantages__whitened(values, rewards, mask, gamma, lam):
    """the trainer whitens them later"""
    advantages = right(values, rewards, mask, gamma, lam)
    return whiten(advantages, mask), advantages + clean(values, mask)


def compute_advantages__returns_are_advantages(values, rewards, mask, gamma, lam):
    """add the values"""
    advantages = right(values, rewards, mask, gamma, lam)
    return advantages, advantages


def compute_advantages__returns_of_padding(values, rewards, mask, gamma, lam):
    """keep the padding's values"""
    advantages = right(values, rewards, mask, gamma, lam)
    return advantages, advantages + values


def compute_advantages__returns_are_sums_of_rewards(values, rewards, mask, gamma, lam):
    """these returns are sums of rewards"""
    return right(values, rewards, mask, gamma, lam), backwards(clean(rewards, mask), gamma)


def compute_advantages__returns_of_whitened(values, rewards, mask, gamma, lam):
    """made of whitened advantages"""
    advantages = right(values, rewards, mask, gamma, lam)
    return advantages, whiten(advantages, mask) + clean(values, mask)


def masked_whiten__padding_not_zero(x, mask):
    """the padding is not 0"""
    return (x - x[mask].mean()) / x[mask].std()


def masked_whiten__divides_by_n(x, mask):
    """the variance has n - 1"""
    return clean((x - x[mask].mean()) / x[mask].std(unbiased=False), mask)


def masked_whiten__divides_by_the_variance(x, mask):
    """divide by its square root"""
    return clean((x - x[mask].mean()) / x[mask].var(), mask)


def masked_whiten__mean_only(x, mask):
    """the variance is not 1"""
    return clean(x - x[mask].mean(), mask)


def masked_whiten__keeps_the_mean(x, mask):
    """subtract it"""
    return clean(x / x[mask].std(), mask)


def masked_whiten__over_the_padding(x, mask):
    """the padding counted"""
    return clean((x - x.mean()) / x.std(), mask)


def masked_whiten__row_by_row(x, mask):
    """each row was whitened by itself"""
    n = mask.sum(1, keepdim=True)
    centred = clean(x - clean(x, mask).sum(1, keepdim=True) / n, mask)
    return centred * ((centred**2).sum(1, keepdim=True) / (n - 1).clamp(min=1) + 1e-8).rsqrt()


def masked_whiten__nan_for_one(x, mask):
    """n - 1 is 0"""
    return whiten(x, mask)


def td_errors__multiplied_by_the_mask(values, rewards, mask, gamma):
    """0 * nan is nan"""
    values, rewards = values * mask, rewards * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return (rewards + gamma * next_values - values) * mask
