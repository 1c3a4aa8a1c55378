"""Wrong answers to chapter 2; each docstring is in the message that the check must give."""

import torch


def clean(x, mask):
    return torch.where(mask, x, 0.0)


def estimates(probs, scores, baseline):
    return (scores - baseline)[:, None] * (torch.eye(len(probs)) - probs)


def moments(probs, each):
    mean = probs @ each
    return mean, probs @ ((each - mean) ** 2).sum(1)


def to_go(rewards, mask):
    return clean(clean(rewards, mask).flip(1).cumsum(1).flip(1), mask)


def loss_of(weights, logprobs, mask):
    return -clean(weights.detach() * logprobs, mask).sum(1).mean()


def policy_gradient__one_result(probs, scores, baseline):
    """return gradient, variance"""
    return probs @ estimates(probs, scores, baseline)


def policy_gradient__sign(probs, scores, baseline):
    """the sign is wrong"""
    return moments(probs, -estimates(probs, scores, baseline))


def policy_gradient__unweighted(probs, scores, baseline):
    """the words are not weighed: each estimate"""
    each = estimates(probs, scores, baseline)
    return each.sum(0), each.var()


def policy_gradient__plain_mean(probs, scores, baseline):
    """you took the plain mean over words"""
    each = estimates(probs, scores, baseline)
    return each.mean(0), each.var(0).sum()


def policy_gradient__no_log(probs, scores, baseline):
    """the log is missing"""
    return moments(probs, probs[:, None] * estimates(probs, scores, baseline))


def policy_gradient__own_logit_only(probs, scores, baseline):
    """the second part is missing"""
    return moments(probs, torch.diag(scores - baseline))


def policy_gradient__for_probabilities(probs, scores, baseline):
    """this is the gradient for probabilities, which must sum to 1"""
    return moments(probs, torch.diag((scores - baseline) / probs))


def policy_gradient__autograd_at_the_probabilities(probs, scores, baseline):
    """this is the gradient for probabilities, without a baseline"""
    probs = probs.requires_grad_()
    return torch.autograd.grad((probs * scores).sum(), probs)[0], torch.tensor(0.0)


def policy_gradient__no_mean(probs, scores, baseline):
    """these are the estimates of each word"""
    each = estimates(probs, scores, baseline)
    return each, each.var()


def policy_gradient__sum_over_logits(probs, scores, baseline):
    """the sum runs over the logits"""
    each = estimates(probs, scores, baseline)
    return probs * each.sum(1), probs @ each.var(1)


def policy_gradient__second_moment(probs, scores, baseline):
    """the squared mean is not subtracted"""
    each = estimates(probs, scores, baseline)
    return probs @ each, probs @ (each**2).sum(1)


def policy_gradient__no_baseline(probs, scores, baseline):
    """the baseline is missing in the variance"""
    return moments(probs, estimates(probs, scores, 0.0))


def policy_gradient__baseline_added(probs, scores, baseline):
    """the baseline is added"""
    return moments(probs, estimates(probs, scores, -baseline))


def policy_gradient__standard_deviation(probs, scores, baseline):
    """this is a standard deviation"""
    mean, variance = moments(probs, estimates(probs, scores, baseline))
    return mean, variance.sqrt()


def policy_gradient__mean_over_logits(probs, scores, baseline):
    """you took the mean over the logits"""
    mean, variance = moments(probs, estimates(probs, scores, baseline))
    return mean, variance / len(probs)


def policy_gradient__one_for_each_logit(probs, scores, baseline):
    """one variance for each logit"""
    each = estimates(probs, scores, baseline)
    return probs @ each, probs @ (each - probs @ each) ** 2


def policy_gradient__unweighted_variance(probs, scores, baseline):
    """not weighed in the variance"""
    each = estimates(probs, scores, baseline)
    return probs @ each, ((each - probs @ each) ** 2).sum()


def policy_gradient__variance_of_the_scores(probs, scores, baseline):
    """this is the variance of the scores"""
    return probs @ estimates(probs, scores, baseline), probs @ (scores - probs @ scores) ** 2


def rewards_to_go__so_far(rewards, mask):
    """these are the rewards so far"""
    return clean(clean(rewards, mask).cumsum(1), mask)


def rewards_to_go__whole(rewards, mask):
    """each token got the whole sum"""
    return clean(clean(rewards, mask).sum(1, keepdim=True).expand(rewards.shape), mask)


def rewards_to_go__without_its_own(rewards, mask):
    """own reward is missing"""
    return to_go(rewards, mask) - clean(rewards, mask)


def rewards_to_go__padding_leaks(rewards, mask):
    """the padding leaked"""
    return clean(rewards.flip(1).cumsum(1).flip(1), mask)


def rewards_to_go__no_mask(rewards, mask):
    """you used the padding"""
    return rewards.flip(1).cumsum(1).flip(1)


def rewards_to_go__not_flipped_back(rewards, mask):
    """the result runs backwards"""
    return clean(rewards, mask).flip(1).cumsum(1)


def rewards_to_go__across_rows(rewards, mask):
    """from one response into the next"""
    later, result = 0.0, torch.zeros_like(rewards)
    for row in reversed(range(len(rewards))):
        for t in reversed(range(int(mask[row].sum()))):
            later = result[row, t] = rewards[row, t] + later
    return result


def rewards_to_go__along_the_batch(rewards, mask):
    """you ran along the batch"""
    return clean(clean(rewards, mask).flip(0).cumsum(0).flip(0), mask)


def rewards_to_go__means(rewards, mask):
    """these are means"""
    return clean(to_go(rewards, mask) / mask.flip(1).cumsum(1).flip(1).clamp(min=1), mask)


def rewards_to_go__multiplied_by_the_mask(rewards, mask):
    """0 * nan is nan"""
    return (rewards * mask).flip(1).cumsum(1).flip(1) * mask


def reinforce_loss__sign(logprobs, rewards, mask, baseline):
    """the sign is wrong"""
    return -loss_of(to_go(rewards, mask) - baseline, logprobs, mask)


def reinforce_loss__added_up(logprobs, rewards, mask, baseline):
    """the responses are added up"""
    return loss_of(to_go(rewards, mask) - baseline, logprobs, mask) * len(mask)


def reinforce_loss__mean_over_tokens(logprobs, rewards, mask, baseline):
    """you divided by the number of tokens"""
    return -((to_go(rewards, mask) - baseline) * logprobs)[mask].mean()


def reinforce_loss__mean_over_cells(logprobs, rewards, mask, baseline):
    """padding included"""
    return -clean((to_go(rewards, mask) - baseline) * logprobs, mask).mean()


def reinforce_loss__each_by_its_length(logprobs, rewards, mask, baseline):
    """each response is divided by its length"""
    return loss_of((to_go(rewards, mask) - baseline) / mask.sum(1, keepdim=True), logprobs, mask)


def reinforce_loss__whole_return(logprobs, rewards, mask, baseline):
    """each token got the whole return"""
    return loss_of(clean(rewards, mask).sum(1, keepdim=True) - baseline, logprobs, mask)


def reinforce_loss__own_reward(logprobs, rewards, mask, baseline):
    """own reward alone"""
    return loss_of(rewards - baseline, logprobs, mask)


def reinforce_loss__no_baseline(logprobs, rewards, mask, baseline):
    """the baseline is not used"""
    return loss_of(to_go(rewards, mask), logprobs, mask)


def reinforce_loss__baseline_added(logprobs, rewards, mask, baseline):
    """the baseline is added"""
    return loss_of(to_go(rewards, mask) + baseline, logprobs, mask)


def reinforce_loss__no_log(logprobs, rewards, mask, baseline):
    """the log is gone"""
    return loss_of(to_go(rewards, mask) - baseline, logprobs.exp(), mask)


def reinforce_loss__padding_pushed(logprobs, rewards, mask, baseline):
    """the padding is pushed by minus the baseline"""
    return -((to_go(rewards, mask) - baseline) * logprobs).sum(1).mean()


def reinforce_loss__no_mask(logprobs, rewards, mask, baseline):
    """you used the padding"""
    return -((rewards.flip(1).cumsum(1).flip(1) - baseline) * logprobs).sum(1).mean()


def reinforce_loss__padding_in_the_returns(logprobs, rewards, mask, baseline):
    """leaked into the returns"""
    return loss_of(rewards.flip(1).cumsum(1).flip(1) - baseline, logprobs, mask)


def reinforce_loss__through_the_rewards(logprobs, rewards, mask, baseline):
    """the gradient runs through the rewards"""
    return -clean((to_go(rewards, mask) - baseline) * logprobs, mask).sum(1).mean()


def reinforce_loss__all_detached(logprobs, rewards, mask, baseline):
    """no gradient reaches logprobs"""
    return loss_of(to_go(rewards, mask) - baseline, logprobs.detach(), mask)


def reinforce_loss__not_a_scalar(logprobs, rewards, mask, baseline):
    """expected the loss to be one number"""
    return -clean((to_go(rewards, mask) - baseline) * logprobs, mask).sum(1)


def reinforce_loss__no_return(logprobs, rewards, mask, baseline):
    """is the return statement missing?"""
    loss_of(to_go(rewards, mask) - baseline, logprobs, mask)


def reinforce_loss__multiplied_by_the_mask(logprobs, rewards, mask, baseline):
    """0 * nan is nan"""
    return -(((to_go(rewards, mask) - baseline).detach() * logprobs) * mask).sum(1).mean()


def policy_gradient__whole_row_of_p(probs, scores, baseline):
    """you subtracted p(w) from the whole row"""
    return moments(probs, (scores - baseline)[:, None] * (torch.eye(len(probs)) - probs[:, None]))


def policy_gradient__diagonal_alone(probs, scores, baseline):
    """it moves the others, too"""
    return moments(probs, torch.diag((scores - baseline) * (1 - probs)))


def policy_gradient__unweighed_variance(probs, scores, baseline):
    """var() takes all for equally likely"""
    each = estimates(probs, scores, baseline)
    return probs @ each, each.var(0).sum()


def policy_gradient__unweighed_variance_with_n(probs, scores, baseline):
    """var(unbiased=False) takes all"""
    each = estimates(probs, scores, baseline)
    return probs @ each, each.var(0, unbiased=False).sum()


def reinforce_loss__baseline_from_each_reward(logprobs, rewards, mask, baseline):
    """subtract it after the sum"""
    return loss_of(to_go(rewards - baseline, mask), logprobs, mask)
