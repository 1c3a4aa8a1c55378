"""Wrong answers to chapter 9; each docstring is in the message that the check must give."""

import torch


def clean(x, mask):
    return torch.where(mask, x, 0.0)


def two(new_logprobs, logprobs, advantages, cliprange):
    """The objective of each token, plain and clipped, without any masking."""
    ratio = (new_logprobs - logprobs).exp()
    return ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages


def errors(new_values, values, returns, c):
    clipped = torch.minimum(torch.maximum(new_values, values - c), values + c)
    return (new_values - returns) ** 2, (clipped - returns) ** 2


def mean(x, mask):
    return clean(x, mask).sum() / mask.sum()


def policy(new_logprobs, logprobs, advantages, mask, cliprange):
    return -mean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask)


def value(new_values, values, returns, mask, cliprange_value):
    return 0.5 * mean(torch.maximum(*errors(new_values, values, returns, cliprange_value)), mask)


def policy_loss__sign(new_logprobs, logprobs, advantages, mask, cliprange):
    """the sign is wrong"""
    return -policy(new_logprobs, logprobs, advantages, mask, cliprange)


def policy_loss__better(new_logprobs, logprobs, advantages, mask, cliprange):
    """you took the better of the two"""
    return -mean(torch.maximum(*two(new_logprobs, logprobs, advantages, cliprange)), mask)


def policy_loss__not_clipped(new_logprobs, logprobs, advantages, mask, cliprange):
    """nothing is clipped"""
    return -mean(two(new_logprobs, logprobs, advantages, cliprange)[0], mask)


def policy_loss__clipped_alone(new_logprobs, logprobs, advantages, mask, cliprange):
    """you use the clipped ratio alone"""
    return -mean(two(new_logprobs, logprobs, advantages, cliprange)[1], mask)


def policy_loss__upside_down(new_logprobs, logprobs, advantages, mask, cliprange):
    """upside down"""
    return policy(logprobs, new_logprobs, advantages, mask, cliprange)


def policy_loss__no_exp(new_logprobs, logprobs, advantages, mask, cliprange):
    """take exp of the difference"""
    ratio = new_logprobs - logprobs
    return -mean(torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages), mask)


def policy_loss__all_columns(new_logprobs, logprobs, advantages, mask, cliprange):
    """you divided by all columns"""
    return -clean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask).mean()


def policy_loss__padding_in_the_sum(new_logprobs, logprobs, advantages, mask, cliprange):
    """the padding counted: drop it"""
    return -torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)).sum() / mask.sum()


def policy_loss__no_mask(new_logprobs, logprobs, advantages, mask, cliprange):
    """use the mask"""
    return -torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)).mean()


def policy_loss__sum(new_logprobs, logprobs, advantages, mask, cliprange):
    """that is the sum"""
    return -clean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask).sum()


def policy_loss__mean_of_means(new_logprobs, logprobs, advantages, mask, cliprange):
    """each response by itself"""
    return -(clean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask).sum(1) / mask.sum(1)).mean()


def policy_loss__item(new_logprobs, logprobs, advantages, mask, cliprange):
    """no gradient flows through the policy loss"""
    return policy(new_logprobs, logprobs, advantages, mask, cliprange).item()


def policy_loss__clipped_term_detached(new_logprobs, logprobs, advantages, mask, cliprange):
    """the gradient inside the range is halved"""
    plain, clipped = two(new_logprobs, logprobs, advantages, cliprange)
    return -mean(torch.minimum(plain, clipped.detach()), mask)


def policy_loss__multiplies_by_the_mask(new_logprobs, logprobs, advantages, mask, cliprange):
    """rubbish in the padding made the loss nan"""
    return -(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)) * mask).sum() / mask.sum()


def policy_loss__masks_after_exp(new_logprobs, logprobs, advantages, mask, cliprange):
    """rubbish in the padding made the gradient nan"""
    return policy(new_logprobs, logprobs, advantages, mask, cliprange)


def policy_loss__one_sided(new_logprobs, logprobs, advantages, mask, cliprange):
    """clipped on one side only"""
    ratio = (new_logprobs - logprobs).exp()
    return -mean(torch.minimum(ratio * advantages, ratio.clamp(max=1 + cliprange) * advantages), mask)


def policy_loss__logarithm_clipped(new_logprobs, logprobs, advantages, mask, cliprange):
    """clip the ratio itself"""
    log_ratio = new_logprobs - logprobs
    return -mean(torch.minimum(log_ratio.exp() * advantages, log_ratio.clamp(-cliprange, cliprange).exp() * advantages), mask)


def value_loss__no_half(new_values, values, returns, mask, cliprange_value):
    """the half is missing"""
    return 2 * value(new_values, values, returns, mask, cliprange_value)


def value_loss__smaller(new_values, values, returns, mask, cliprange_value):
    """you took the smaller error"""
    return 0.5 * mean(torch.minimum(*errors(new_values, values, returns, cliprange_value)), mask)


def value_loss__not_clipped(new_values, values, returns, mask, cliprange_value):
    """clipping changes nothing here"""
    return 0.5 * mean((new_values - returns) ** 2, mask)


def value_loss__clipped_alone(new_values, values, returns, mask, cliprange_value):
    """you use the clipped error alone"""
    return 0.5 * mean(errors(new_values, values, returns, cliprange_value)[1], mask)


def value_loss__around_zero(new_values, values, returns, mask, cliprange_value):
    """around 0"""
    return value(new_values, 0 * values, returns, mask, cliprange_value)


def value_loss__old_around_new(new_values, values, returns, mask, cliprange_value):
    """you clipped the old values around the new"""
    clipped = torch.clamp(values, new_values - cliprange_value, new_values + cliprange_value)
    return 0.5 * mean(torch.maximum((new_values - returns) ** 2, (clipped - returns) ** 2), mask)


def value_loss__factor(new_values, values, returns, mask, cliprange_value):
    """you clipped to a factor of the old value"""
    clipped = torch.clamp(new_values, values * (1 - cliprange_value), values * (1 + cliprange_value))
    return 0.5 * mean(torch.maximum((new_values - returns) ** 2, (clipped - returns) ** 2), mask)


def value_loss__around_returns(new_values, values, returns, mask, cliprange_value):
    """not the returns"""
    return value(new_values, returns, returns, mask, cliprange_value)


def value_loss__larger_mean(new_values, values, returns, mask, cliprange_value):
    """token by token"""
    return 0.5 * torch.maximum(*(mean(error, mask) for error in errors(new_values, values, returns, cliprange_value)))


def value_loss__all_columns(new_values, values, returns, mask, cliprange_value):
    """you divided by all columns"""
    return 0.5 * clean(torch.maximum(*errors(new_values, values, returns, cliprange_value)), mask).mean()


def value_loss__no_mask(new_values, values, returns, mask, cliprange_value):
    """use the mask"""
    return 0.5 * torch.maximum(*errors(new_values, values, returns, cliprange_value)).mean()


def value_loss__sum(new_values, values, returns, mask, cliprange_value):
    """that is half the sum"""
    return 0.5 * clean(torch.maximum(*errors(new_values, values, returns, cliprange_value)), mask).sum()


def value_loss__mean_of_means(new_values, values, returns, mask, cliprange_value):
    """each response by itself"""
    worse = clean(torch.maximum(*errors(new_values, values, returns, cliprange_value)), mask)
    return 0.5 * (worse.sum(1) / mask.sum(1)).mean()


def value_loss__without_gradient(new_values, values, returns, mask, cliprange_value):
    """no gradient flows through the value loss"""
    with torch.no_grad():
        return value(new_values, values, returns, mask, cliprange_value)


def ppo_loss__no_coefficient(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """vf_coef is missing"""
    return policy(new_logprobs, logprobs, advantages, mask, c) + value(new_values, values, returns, mask, cv)


def ppo_loss__subtracted(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """the value loss is subtracted"""
    return policy(new_logprobs, logprobs, advantages, mask, c) - vf_coef * value(new_values, values, returns, mask, cv)


def ppo_loss__coefficient_of_both(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """in front of both"""
    return vf_coef * (policy(new_logprobs, logprobs, advantages, mask, c) + value(new_values, values, returns, mask, cv))


def ppo_loss__coefficient_of_the_policy(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """in front of the policy loss"""
    return vf_coef * policy(new_logprobs, logprobs, advantages, mask, c) + value(new_values, values, returns, mask, cv)


def ppo_loss__swapped_ranges(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """swapped"""
    return policy(new_logprobs, logprobs, advantages, mask, cv) + vf_coef * value(new_values, values, returns, mask, c)


def ppo_loss__two_results(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """return the sum, not its parts"""
    return policy(new_logprobs, logprobs, advantages, mask, c), value(new_values, values, returns, mask, cv)


def ppo_loss__values_detached(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """no gradient reaches new_values"""
    return (policy(new_logprobs, logprobs, advantages, mask, c)
            + vf_coef * value(new_values.detach(), values, returns, mask, cv))


def clipped_objective(ratio, advantages, mask, c):
    return -mean(torch.minimum(ratio * advantages, ratio.clamp(1 - c, 1 + c) * advantages), mask)


def policy_loss__quotient_of_logarithms(new_logprobs, logprobs, advantages, mask, cliprange):
    """the ratio is one log-probability over the other"""
    return clipped_objective(new_logprobs / logprobs, advantages, mask, cliprange)


def policy_loss__clips_the_product(new_logprobs, logprobs, advantages, mask, cliprange):
    """you clipped ratio * advantage"""
    plain = (new_logprobs - logprobs).exp() * advantages
    return -mean(torch.minimum(plain, plain.clamp(1 - cliprange, 1 + cliprange)), mask)


def policy_loss__ratio_of_the_padding_is_one(new_logprobs, logprobs, advantages, mask, cliprange):
    """the padding counted with a ratio of 1: its log-ratio is 0"""
    ratio = ((new_logprobs - logprobs) * mask).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages).sum() / mask.sum()


def policy_loss__ratio_of_the_padding_is_one_and_the_mean_over_all(new_logprobs, logprobs, advantages, mask, cliprange):
    """the padding counted with a ratio of 1, in the sum and in the mean"""
    ratio = ((new_logprobs - logprobs) * mask).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - cliprange, 1 + cliprange) * advantages).mean()


def policy_loss__ratio_of_the_response(new_logprobs, logprobs, advantages, mask, cliprange):
    """the ratio is that of the whole response"""
    ratio = clean(new_logprobs - logprobs, mask).sum(1, keepdim=True).exp().expand_as(mask)
    return clipped_objective(ratio, advantages, mask, cliprange)


def policy_loss__mean_ratio_of_the_response(new_logprobs, logprobs, advantages, mask, cliprange):
    """the ratio is the mean one of the whole response"""
    ratio = (clean(new_logprobs - logprobs, mask).sum(1) / mask.sum(1)).exp()[:, None].expand_as(mask)
    return clipped_objective(ratio, advantages, mask, cliprange)


def policy_loss__over_the_responses(new_logprobs, logprobs, advantages, mask, cliprange):
    """you divided by the number of responses"""
    return -clean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask).sum() / len(mask)


def policy_loss__old_ignored(new_logprobs, logprobs, advantages, mask, cliprange):
    """logprobs is not used"""
    return clipped_objective(new_logprobs.exp(), advantages, mask, cliprange)


def policy_loss__reinforce(new_logprobs, logprobs, advantages, mask, cliprange):
    """there is no ratio"""
    return -mean(new_logprobs * advantages, mask)


def policy_loss__zeros_are_no_tokens(new_logprobs, logprobs, advantages, mask, cliprange):
    """a real token with advantage 0 was left out of the mean"""
    smaller = clean(torch.minimum(*two(new_logprobs, logprobs, advantages, cliprange)), mask)
    return -smaller[smaller != 0].mean()


def policy_loss__in_place(new_logprobs, logprobs, advantages, mask, cliprange):
    """you changed `advantages` in place"""
    advantages[~mask] = 0.0
    ratio = clean(new_logprobs - logprobs, mask).exp()
    return clipped_objective(ratio, advantages, mask, cliprange)


def value_loss__error_of_the_old(new_values, values, returns, mask, cliprange_value):
    """the second error is that of the rollout's values"""
    return 0.5 * mean(torch.maximum((new_values - returns) ** 2, (values - returns) ** 2), mask)


def value_loss__compared_with_the_old(new_values, values, returns, mask, cliprange_value):
    """you compared with the rollout's values"""
    return 0.5 * mean((new_values - values) ** 2, mask)


def value_loss__absolute(new_values, values, returns, mask, cliprange_value):
    """you took absolute errors: square them"""
    return 0.5 * mean(torch.maximum(*errors(new_values, values, returns, cliprange_value)).sqrt(), mask)


def value_loss__absolute_in_full(new_values, values, returns, mask, cliprange_value):
    """you took absolute errors, and the half is missing"""
    return mean(torch.maximum(*errors(new_values, values, returns, cliprange_value)).sqrt(), mask)


def value_loss__huber(new_values, values, returns, mask, cliprange_value):
    """this is the Huber loss, linear"""
    error = torch.maximum(*errors(new_values, values, returns, cliprange_value)).sqrt()
    return mean(torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none"), mask)


def value_loss__huber_and_a_half(new_values, values, returns, mask, cliprange_value):
    """this is the Huber loss, and a half too much"""
    return 0.5 * value_loss__huber(new_values, values, returns, mask, cliprange_value)


def value_loss__in_place(new_values, values, returns, mask, cliprange_value):
    """you changed `returns` in place"""
    returns -= values
    return value(new_values, values, returns + values, mask, cliprange_value)


def ppo_loss__halved_twice(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """halved twice"""
    return policy(new_logprobs, logprobs, advantages, mask, c) + 0.5 * vf_coef * value(new_values, values, returns, mask, cv)


def ppo_loss__logprobs_exchanged(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """old and new are exchanged in the policy loss"""
    return policy(logprobs, new_logprobs, advantages, mask, c) + vf_coef * value(new_values, values, returns, mask, cv)


def ppo_loss__values_exchanged(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """old and new are exchanged in the value loss"""
    return policy(new_logprobs, logprobs, advantages, mask, c) + vf_coef * value(values, new_values, returns, mask, cv)


def ppo_loss__both_exchanged(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """old and new are exchanged in both losses"""
    return policy(logprobs, new_logprobs, advantages, mask, c) + vf_coef * value(values, new_values, returns, mask, cv)


def ppo_loss__returns_for_advantages(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """the returns stand where the advantages belong"""
    return policy(new_logprobs, logprobs, returns, mask, c) + vf_coef * value(new_values, values, returns, mask, cv)


def ppo_loss__advantages_for_returns(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """the advantages stand where the returns belong"""
    return policy(new_logprobs, logprobs, advantages, mask, c) + vf_coef * value(new_values, values, advantages, mask, cv)


def ppo_loss__advantages_and_returns_exchanged(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """advantages and returns are exchanged"""
    return policy(new_logprobs, logprobs, returns, mask, c) + vf_coef * value(new_values, values, advantages, mask, cv)


def ppo_loss__whitened_again(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """the advantages were whitened here"""
    white = (advantages - advantages[mask].mean()) / advantages[mask].std()
    return policy(new_logprobs, logprobs, white, mask, c) + vf_coef * value(new_values, values, returns, mask, cv)


def ppo_loss__in_place(new_logprobs, new_values, logprobs, values, advantages, returns, mask, c, cv, vf_coef):
    """you changed `advantages` in place"""
    advantages -= advantages[mask].mean()
    return policy(new_logprobs, logprobs, advantages, mask, c) + vf_coef * value(new_values, values, returns, mask, cv)
