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


def shifted(values, after):
    """The values of the next tokens, with `after` behind the last column."""
    return torch.cat([values[:, 1:], after[:, None]], 1)


def bootstrapped(values, rewards, mask, gamma):
    """TD errors in which the last real token's own value follows it."""
    last = mask.sum(1, keepdim=True) - 1
    next_values = shifted(values, values[:, -1]).scatter(1, last, values.gather(1, last))
    return clean(rewards + gamma * next_values - values, mask)


def td_errors__bootstrapped(values, rewards, mask, gamma):
    """you bootstrapped: nothing follows the last token"""
    return bootstrapped(values, rewards, mask, gamma)


def td_errors__bootstrapped_last_column(values, rewards, mask, gamma):
    """you bootstrapped in the last column: nothing follows"""
    values = clean(values, mask)
    return clean(rewards + gamma * shifted(values, values[:, -1]) - values, mask)


def td_errors__bootstrapped_and_leaked(values, rewards, mask, gamma):
    """you bootstrapped in the last column, and the padding's value leaked"""
    return clean(rewards + gamma * shifted(values, values[:, -1]) - values, mask)


def td_errors__reward_less_value(values, rewards, mask, gamma):
    """the value after the token is missing"""
    return clean(rewards - values, mask)


def td_errors__value_added(values, rewards, mask, gamma):
    """the token's own value is added"""
    values = clean(values, mask)
    return clean(rewards + gamma * shifted(values, 0 * values[:, 0]) + values, mask)


def td_errors__last_column_forgotten(values, rewards, mask, gamma):
    """the last column is 0"""
    values, errors = clean(values, mask), torch.zeros_like(values)
    for t in range(values.shape[1] - 1):
        errors[:, t] = rewards[:, t] + gamma * values[:, t + 1] - values[:, t]
    return clean(errors, mask)


def td_errors__one_column_short(values, rewards, mask, gamma):
    """one column is missing: the last token has a TD error"""
    values = clean(values, mask)
    return clean(rewards[:, :-1] + gamma * values[:, 1:] - values[:, :-1], mask[:, :-1])


def td_errors__one_column_short_and_leaked(values, rewards, mask, gamma):
    """one column is missing, and the padding's value leaked"""
    return clean(rewards[:, :-1] + gamma * values[:, 1:] - values[:, :-1], mask[:, :-1])


def td_errors__monte_carlo(values, rewards, mask, gamma):
    """minus the value (Monte Carlo)"""
    return backwards(clean(rewards, mask), gamma) - clean(values, mask)


def td_errors__sums_of_rewards(values, rewards, mask, gamma):
    """the discounted sums of the rewards (Monte Carlo)"""
    return backwards(clean(rewards, mask), gamma)


def td_errors__everything_discounted(values, rewards, mask, gamma):
    """gamma discounts the reward, too"""
    values = clean(values, mask)
    return clean(gamma * (rewards + shifted(values, 0 * values[:, 0])) - values, mask)


def td_errors__reward_discounted(values, rewards, mask, gamma):
    """gamma stands in front of the reward"""
    values = clean(values, mask)
    return clean(gamma * rewards + shifted(values, 0 * values[:, 0]) - values, mask)


def td_errors__rolled_the_other_way(values, rewards, mask, gamma):
    """shift the other way, without wrapping"""
    values = clean(values, mask)
    return clean(rewards + gamma * values.roll(1, 1) - values, mask)


def td_errors__previous_value(values, rewards, mask, gamma):
    """the values are one column early"""
    values = clean(values, mask)
    previous = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
    return clean(rewards + gamma * values - previous, mask)


def td_errors__in_place(values, rewards, mask, gamma):
    """you changed `values` in place"""
    values[~mask] = 0.0
    return clean(deltas(values, rewards, gamma), mask)


def td_errors__masks_the_rewards_in_place(values, rewards, mask, gamma):
    """you changed `rewards` in place"""
    rewards *= mask
    return clean(deltas(clean(values, mask), rewards, gamma), mask)


def compute_advantages__bootstrapped(values, rewards, mask, gamma, lam):
    """you bootstrapped: nothing follows the last token"""
    advantages = backwards(bootstrapped(values, rewards, mask, gamma), gamma * lam)
    return advantages, clean(advantages + values, mask)


def compute_advantages__bootstrapped_last_column(values, rewards, mask, gamma, lam):
    """you bootstrapped in the last column: nothing follows"""
    advantages = backwards(td_errors__bootstrapped_last_column(values, rewards, mask, gamma), gamma * lam)
    return advantages, clean(advantages + values, mask)


def compute_advantages__bootstrapped_and_leaked(values, rewards, mask, gamma, lam):
    """you bootstrapped in the last column, and the padding's value leaked"""
    advantages = backwards(td_errors__bootstrapped_and_leaked(values, rewards, mask, gamma), gamma * lam)
    return advantages, clean(advantages + values, mask)


def compute_advantages__starts_too_early(values, rewards, mask, gamma, lam):
    """the loop began one column too early"""
    errors = deltas(clean(values, mask), clean(rewards, mask), gamma)
    advantages = torch.zeros_like(errors)
    for t in reversed(range(errors.shape[1] - 1)):
        advantages[:, t] = errors[:, t] + gamma * lam * advantages[:, t + 1]
    return advantages, clean(advantages + values, mask)


def compute_advantages__last_column_not_written(values, rewards, mask, gamma, lam):
    """the last column is 0"""
    advantages = right(values, rewards, mask, gamma, lam)
    advantages[:, -1] = 0
    return advantages, clean(advantages + values, mask)


def compute_advantages__averaged(values, rewards, mask, gamma, lam):
    """you multiplied the TD errors by 1 - lam"""
    advantages = (1 - lam) * right(values, rewards, mask, gamma, lam)
    return advantages, clean(advantages + values, mask)


def carried(values, rewards, mask, gamma, lam, columns):
    """Row by row, without a fresh start for each row; columns(row) says which columns are visited."""
    errors = deltas(clean(values, mask), clean(rewards, mask), gamma)
    advantages, later = torch.zeros_like(errors), 0.0
    for row in range(len(errors)):
        for t in reversed(columns(row)):
            later = advantages[row, t] = errors[row, t] + gamma * lam * later
    return advantages


def compute_advantages__carry(values, rewards, mask, gamma, lam):
    """the carry went on from row to row: each"""
    advantages = carried(values, rewards, mask, gamma, lam, lambda row: range(int(mask[row].sum())))
    return advantages, clean(advantages + values, mask)


def compute_advantages__carry_through_the_padding(values, rewards, mask, gamma, lam):
    """the carry went on from row to row, through the padding"""
    advantages = clean(carried(values, rewards, mask, gamma, lam, lambda row: range(mask.shape[1])), mask)
    return advantages, clean(advantages + values, mask)


def compute_advantages__carry_into_the_padding(values, rewards, mask, gamma, lam):
    """the carry went on from row to row, into the padding"""
    advantages = carried(values, rewards, mask, gamma, lam, lambda row: range(mask.shape[1]))
    return advantages, clean(advantages + values, mask)


def compute_advantages__in_place(values, rewards, mask, gamma, lam):
    """you changed `rewards` in place"""
    errors = deltas(clean(values, mask), clean(rewards, mask), gamma)
    advantages = rewards
    later = torch.zeros_like(errors[:, 0])
    for t in reversed(range(errors.shape[1])):
        later = advantages[:, t] = errors[:, t] + gamma * lam * later
    return advantages, clean(advantages + values, mask)


def each(x, mask, dim, unbiased):
    n = mask.sum(dim, keepdim=True)
    centred = clean(x - clean(x, mask).sum(dim, keepdim=True) / n, mask)
    return centred * torch.rsqrt((centred**2).sum(dim, keepdim=True) / (n - unbiased).clamp(min=1) + 1e-8)


def masked_whiten__row_by_row_over_n(x, mask):
    """each row was whitened by itself, over n"""
    return each(x, mask, 1, 0)


def masked_whiten__column_by_column(x, mask):
    """each column was whitened by itself: it"""
    return each(x, mask, 0, 1)


def masked_whiten__column_by_column_over_n(x, mask):
    """each column was whitened by itself, over n"""
    return each(x, mask, 0, 0)


def masked_whiten__min_max(x, mask):
    """the range moved to 0 .. 1"""
    return clean((x - x[mask].min()) / (x[mask].max() - x[mask].min()), mask)


def masked_whiten__min_max_both_sides(x, mask):
    """the range moved to -1 .. 1"""
    return clean(2 * (x - x[mask].min()) / (x[mask].max() - x[mask].min()) - 1, mask)


def masked_whiten__over_the_padding_and_n(x, mask):
    """the padding counted in mean and variance, and you divided by n"""
    return clean((x - x.mean()) / x.std(unbiased=False), mask)


def masked_whiten__in_place(x, mask):
    """you changed `x` in place"""
    x -= x[mask].mean()
    return clean(x * torch.rsqrt(x[mask].var() + 1e-8), mask)
