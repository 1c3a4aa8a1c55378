"""Wrong answers to chapter 7; each docstring is in the message that the check must give."""

import torch


def penalty(logprobs, ref_logprobs, mask, kl_coef):
    return torch.where(mask, -kl_coef * (logprobs - ref_logprobs), 0.0)


def at_the_end(scores, mask):
    """The score on the last real token."""
    columns = torch.arange(mask.shape[1])
    return torch.where(columns == mask.sum(1, keepdim=True) - 1, scores[:, None], 0.0)


def kl_estimates__turned_round(logprobs, ref_logprobs):
    """k1 is turned round"""
    k1 = ref_logprobs - logprobs
    return k1, 0.5 * k1**2, (-k1).exp() - 1 + k1


def kl_estimates__absolute(logprobs, ref_logprobs):
    """k1 lost its sign"""
    k1 = (logprobs - ref_logprobs).abs()
    return k1, 0.5 * k1**2, (-k1).exp() - 1 + k1


def kl_estimates__ratio(logprobs, ref_logprobs):
    """that is the ratio"""
    k1 = (logprobs - ref_logprobs).exp()
    return k1, 0.5 * k1**2, (-k1).exp() - 1 + k1


def kl_estimates__no_half(logprobs, ref_logprobs):
    """the half of k2"""
    k1 = logprobs - ref_logprobs
    return k1, k1**2, (-k1).exp() - 1 + k1


def kl_estimates__no_square(logprobs, ref_logprobs):
    """k2 takes its square"""
    k1 = logprobs - ref_logprobs
    return k1, 0.5 * k1, (-k1).exp() - 1 + k1


def kl_estimates__other_ratio(logprobs, ref_logprobs):
    """k3 takes the other ratio"""
    k1 = logprobs - ref_logprobs
    return k1, 0.5 * k1**2, k1.exp() - 1 - k1


def kl_estimates__sign_in_k3(logprobs, ref_logprobs):
    """the sign of k1 inside k3"""
    k1 = logprobs - ref_logprobs
    return k1, 0.5 * k1**2, (-k1).exp() - 1 - k1


def kl_estimates__no_minus_one(logprobs, ref_logprobs):
    """the -1 of k3"""
    k1 = logprobs - ref_logprobs
    return k1, 0.5 * k1**2, (-k1).exp() + k1


def kl_estimates__ratio_alone(logprobs, ref_logprobs):
    """the + k1 of k3"""
    k1 = logprobs - ref_logprobs
    return k1, 0.5 * k1**2, (-k1).exp() - 1


def kl_estimates__one_result(logprobs, ref_logprobs):
    """return k1, k2, k3"""
    return logprobs - ref_logprobs


def kl_estimates__no_return(logprobs, ref_logprobs):
    """is the return statement missing?"""
    logprobs - ref_logprobs


def compute_rewards__sign(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the sign of the KL is wrong"""
    return penalty(ref_logprobs, logprobs, mask, kl_coef) + at_the_end(scores, mask)


def compute_rewards__no_coefficient(scores, logprobs, ref_logprobs, mask, kl_coef):
    """kl_coef is missing"""
    return penalty(logprobs, ref_logprobs, mask, 1.0) + at_the_end(scores, mask)


def compute_rewards__coefficient_of_both(scores, logprobs, ref_logprobs, mask, kl_coef):
    """kl_coef multiplied the score"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + kl_coef * at_the_end(scores, mask)


def compute_rewards__last_column(scores, logprobs, ref_logprobs, mask, kl_coef):
    """fell on the padding"""
    rewards = penalty(logprobs, ref_logprobs, mask, kl_coef)
    rewards[:, -1] += scores
    return rewards


def compute_rewards__last_column_masked(scores, logprobs, ref_logprobs, mask, kl_coef):
    """is lost"""
    rewards = -kl_coef * (logprobs - ref_logprobs)
    rewards[:, -1] += scores
    return torch.where(mask, rewards, 0.0)


def compute_rewards__no_mask(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the padding earned a KL reward: drop it"""
    return -kl_coef * (logprobs - ref_logprobs) + at_the_end(scores, mask)


def compute_rewards__no_mask_at_all(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score of a short response is on it"""
    rewards = -kl_coef * (logprobs - ref_logprobs)
    rewards[:, -1] += scores
    return rewards


def compute_rewards__score_everywhere(scores, logprobs, ref_logprobs, mask, kl_coef):
    """every token got the score"""
    return torch.where(mask, scores[:, None] - kl_coef * (logprobs - ref_logprobs), 0.0)


def compute_rewards__score_first(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score is on the first token"""
    rewards = penalty(logprobs, ref_logprobs, mask, kl_coef)
    rewards[:, 0] += scores
    return rewards


def compute_rewards__kl_at_the_end(scores, logprobs, ref_logprobs, mask, kl_coef):
    """each token pays for itself"""
    return at_the_end(scores + penalty(logprobs, ref_logprobs, mask, kl_coef).sum(1), mask)


def compute_rewards__absolute(scores, logprobs, ref_logprobs, mask, kl_coef):
    """you took the absolute value"""
    return -penalty(logprobs, ref_logprobs, mask, kl_coef).abs() + at_the_end(scores, mask)


def compute_rewards__clamped(scores, logprobs, ref_logprobs, mask, kl_coef):
    """you cut off the negative ones"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef).clamp(max=0) + at_the_end(scores, mask)


def compute_rewards__k2(scores, logprobs, ref_logprobs, mask, kl_coef):
    """that is k2"""
    return torch.where(mask, -kl_coef * 0.5 * (logprobs - ref_logprobs) ** 2, 0.0) + at_the_end(scores, mask)


def compute_rewards__no_score(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score is not there"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef)


def compute_rewards__score_replaces(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score replaced the KL"""
    end = at_the_end(torch.ones_like(scores), mask).bool()
    return torch.where(end, scores[:, None], penalty(logprobs, ref_logprobs, mask, kl_coef))


def compute_rewards__k3(scores, logprobs, ref_logprobs, mask, kl_coef):
    """that is k3"""
    k1 = logprobs - ref_logprobs
    return torch.where(mask, -kl_coef * ((-k1).exp() - 1 + k1), 0.0) + at_the_end(scores, mask)


def compute_rewards__subtracted(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score is subtracted"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) - at_the_end(scores, mask)


def compute_rewards__every_column(scores, logprobs, ref_logprobs, mask, kl_coef):
    """every column got the score"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + scores[:, None]


def kl_estimates__weighted(logprobs, ref_logprobs):
    """k1 is weighted by the token's probability"""
    k1 = logprobs.exp() * (logprobs - ref_logprobs)
    return k1, 0.5 * k1**2, (-k1).exp() - 1 + k1


def kl_estimates__in_place(logprobs, ref_logprobs):
    """you changed `logprobs` in place"""
    k1 = logprobs
    k1 -= ref_logprobs
    return k1, 0.5 * k1**2, (-k1).exp() - 1 + k1


def compute_rewards__by_length(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score was divided by the length and paid on each token"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + torch.where(mask, (scores / mask.sum(1))[:, None], 0.0)


def compute_rewards__mean_score(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the score was divided by the length: it is paid in full"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + at_the_end(scores / mask.sum(1), mask)


def compute_rewards__columns_of_all_rows(scores, logprobs, ref_logprobs, mask, kl_coef):
    """in every row: it needs the row, too"""
    rewards = penalty(logprobs, ref_logprobs, mask, kl_coef)
    rewards[:, mask.sum(1) - 1] += scores
    return rewards


def compute_rewards__columns_of_all_rows_masked(scores, logprobs, ref_logprobs, mask, kl_coef):
    """in every row, before the mask"""
    rewards = -kl_coef * (logprobs - ref_logprobs)
    rewards[:, mask.sum(1) - 1] += scores
    return torch.where(mask, rewards, 0.0)


def compute_rewards__mean_kl_at_the_end(scores, logprobs, ref_logprobs, mask, kl_coef):
    """the mean KL of the response is on the last token"""
    return at_the_end(scores + penalty(logprobs, ref_logprobs, mask, kl_coef).sum(1) / mask.sum(1), mask)


def compute_rewards__one_late(scores, logprobs, ref_logprobs, mask, kl_coef):
    """one column late"""
    late = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True)
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + torch.where(late, scores[:, None], 0.0)


def compute_rewards__one_early(scores, logprobs, ref_logprobs, mask, kl_coef):
    """one column early"""
    return penalty(logprobs, ref_logprobs, mask, kl_coef) + at_the_end(scores, mask).roll(-1, 1)


def compute_rewards__in_place(scores, logprobs, ref_logprobs, mask, kl_coef):
    """you changed `logprobs` in place"""
    kl = logprobs
    kl -= ref_logprobs
    return torch.where(mask, -kl_coef * kl, 0.0) + at_the_end(scores, mask)


def compute_rewards__scores_in_place(scores, logprobs, ref_logprobs, mask, kl_coef):
    """you changed `scores` in place"""
    rewards = penalty(logprobs, ref_logprobs, mask, kl_coef) + at_the_end(scores, mask)
    scores -= scores.mean()
    return rewards
