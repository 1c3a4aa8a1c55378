"""Wrong answers to chapter 11; each docstring is in the message that the check must give."""

import torch


def centred(totals, size):
    groups = totals.view(-1, size)
    return groups - groups.mean(1, keepdim=True)


def deviations(totals, size):
    return totals.view(-1, size).std(1, keepdim=True) + 1e-6


def right(totals, size, kind):
    if kind == "reinforce":
        return totals - totals.mean()
    if kind == "rloo":
        return (centred(totals, size) * size / (size - 1)).view(-1)
    return (centred(totals, size) / deviations(totals, size)).view(-1)


def group_advantages__reinforce_by_group(totals, group_size, kind):
    """compares with the whole batch"""
    return centred(totals, group_size).view(-1) if kind == "reinforce" else right(totals, group_size, kind)


def group_advantages__reinforce_leaves_out(totals, group_size, kind):
    """that mean of the others is rloo's"""
    n = len(totals)
    return (totals - totals.mean()) * n / (n - 1) if kind == "reinforce" else right(totals, group_size, kind)


def group_advantages__no_mean(totals, group_size, kind):
    """the mean is not subtracted"""
    return totals if kind == "reinforce" else right(totals, group_size, kind)


def group_advantages__sign(totals, group_size, kind):
    """the sign is wrong"""
    return -right(totals, group_size, kind)


def group_advantages__rows(totals, group_size, kind):
    """put the groups in a row again"""
    return centred(totals, group_size)


def group_advantages__mean_with_itself(totals, group_size, kind):
    """includes the response itself"""
    return centred(totals, group_size).view(-1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__factor_upside_down(totals, group_size, kind):
    """upside down"""
    return centred(totals, group_size).view(-1) * (group_size - 1) / group_size if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__others_over_n(totals, group_size, kind):
    """there are n - 1 others"""
    groups = totals.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups) / group_size).view(-1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__others_of_the_batch(totals, group_size, kind):
    """not of the batch"""
    n = len(totals)
    return totals - (totals.sum() - totals) / (n - 1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__interleaved(totals, group_size, kind):
    """neighbours belong together"""
    if kind == "reinforce":
        return totals - totals.mean()
    return right(totals.view(group_size, -1).T.reshape(-1), group_size, kind).view(-1, group_size).T.reshape(-1)


def group_advantages__rloo_divides(totals, group_size, kind):
    """rloo does not divide by the standard deviation"""
    return right(totals, group_size, "grpo" if kind == "rloo" else kind)


def group_advantages__deviation_with_n(totals, group_size, kind):
    """ours has n - 1"""
    if kind != "grpo":
        return right(totals, group_size, kind)
    return (centred(totals, group_size) / (totals.view(-1, group_size).std(1, unbiased=False, keepdim=True) + 1e-6)).view(-1)


def group_advantages__variance(totals, group_size, kind):
    """divide by its square root"""
    if kind != "grpo":
        return right(totals, group_size, kind)
    return (centred(totals, group_size) / (deviations(totals, group_size) ** 2)).view(-1)


def group_advantages__no_deviation(totals, group_size, kind):
    """also divides by the group's standard deviation"""
    return centred(totals, group_size).view(-1) if kind == "grpo" else right(totals, group_size, kind)


def group_advantages__grpo_leaves_out(totals, group_size, kind):
    """leaving it out is rloo's"""
    if kind != "grpo":
        return right(totals, group_size, kind)
    return right(totals, group_size, "grpo") * group_size / (group_size - 1)


def group_advantages__grpo_of_the_batch(totals, group_size, kind):
    """mean and deviation are those of the batch"""
    return (totals - totals.mean()) / (totals.std() + 1e-6) if kind == "grpo" else right(totals, group_size, kind)


def group_advantages__deviation_of_the_batch(totals, group_size, kind):
    """but the deviation the whole batch's"""
    return centred(totals, group_size).view(-1) / (totals.std() + 1e-6) if kind == "grpo" else right(totals, group_size, kind)


def group_advantages__nan_for_equal_scores(totals, group_size, kind):
    """a group of equal scores gives nan"""
    if kind != "grpo":
        return right(totals, group_size, kind)
    return (centred(totals, group_size) / totals.view(-1, group_size).std(1, keepdim=True)).view(-1)


def ratios(logprobs, ref_logprobs, mask):
    return torch.where(mask, logprobs - ref_logprobs, 0.0)


def implicit_reward__padding(logprobs, ref_logprobs, mask, beta):
    """the padding counts"""
    return beta * (logprobs - ref_logprobs).sum(1)


def implicit_reward__no_reference(logprobs, ref_logprobs, mask, beta):
    """the reference is missing"""
    return beta * torch.where(mask, logprobs, 0.0).sum(1)


def implicit_reward__no_beta(logprobs, ref_logprobs, mask, beta):
    """beta is missing"""
    return ratios(logprobs, ref_logprobs, mask).sum(1)


def implicit_reward__over_beta(logprobs, ref_logprobs, mask, beta):
    """you divided by beta"""
    return ratios(logprobs, ref_logprobs, mask).sum(1) / beta


def implicit_reward__sign(logprobs, ref_logprobs, mask, beta):
    """the sign is wrong"""
    return -beta * ratios(logprobs, ref_logprobs, mask).sum(1)


def implicit_reward__mean_of_tokens(logprobs, ref_logprobs, mask, beta):
    """you took the mean over the tokens"""
    return beta * ratios(logprobs, ref_logprobs, mask).sum(1) / mask.sum(1)


def implicit_reward__mean_of_columns(logprobs, ref_logprobs, mask, beta):
    """you took the mean over the columns"""
    return beta * ratios(logprobs, ref_logprobs, mask).mean(1)


def implicit_reward__no_logarithm(logprobs, ref_logprobs, mask, beta):
    """it is the logarithm of it"""
    return beta * ratios(logprobs, ref_logprobs, mask).sum(1).exp()


def implicit_reward__tokens(logprobs, ref_logprobs, mask, beta):
    """one number a token"""
    return beta * ratios(logprobs, ref_logprobs, mask)


def implicit_reward__one_number(logprobs, ref_logprobs, mask, beta):
    """one number for all"""
    return beta * ratios(logprobs, ref_logprobs, mask).sum()


def implicit_reward__times_the_mask(logprobs, ref_logprobs, mask, beta):
    """0 * nan is nan"""
    return beta * ((logprobs - ref_logprobs) * mask).sum(1)


def dpo_loss__exchanged(chosen, rejected):
    """chosen and rejected are exchanged"""
    return -torch.nn.functional.logsigmoid(rejected - chosen).mean()


def dpo_loss__sign(chosen, rejected):
    """the sign is wrong"""
    return torch.nn.functional.logsigmoid(chosen - rejected).mean()


def dpo_loss__no_log(chosen, rejected):
    """the logarithm is missing"""
    return -(chosen - rejected).sigmoid().mean()


def dpo_loss__sum(chosen, rejected):
    """not a sum"""
    return -torch.nn.functional.logsigmoid(chosen - rejected).sum()


def dpo_loss__each(chosen, rejected):
    """one loss a pair"""
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def dpo_loss__no_sigmoid(chosen, rejected):
    """the sigmoid is missing"""
    return -(chosen - rejected).mean()


def dpo_loss__mean_first(chosen, rejected):
    """the mean comes last"""
    return -torch.nn.functional.logsigmoid((chosen - rejected).mean())


def dpo_loss__no_rejected(chosen, rejected):
    """the rejected text is missing"""
    return -torch.nn.functional.logsigmoid(chosen).mean()


def dpo_loss__infinite(chosen, rejected):
    """gives inf"""
    return -(chosen - rejected).sigmoid().log().mean()


def group_advantages__others_with_oneself(totals, group_size, kind):
    """take its own off"""
    groups = totals.view(-1, group_size)
    return (groups - groups.sum(1, keepdim=True) / (group_size - 1)).view(-1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__rows_of_groups(totals, group_size, kind):
    """a group is a row of group_size neighbours"""
    groups = totals.view(group_size, -1)
    return ((groups - groups.mean(1, keepdim=True)) * group_size / (group_size - 1)).view(-1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__rows_of_groups_and_others(totals, group_size, kind):
    """and n - 1 of the others"""
    groups = totals.view(group_size, -1)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).view(-1) if kind == "rloo" else right(totals, group_size, kind)


def group_advantages__rows_of_groups_scaled(totals, group_size, kind):
    """a group is a row of group_size neighbours"""
    groups = totals.view(group_size, -1)
    scaled = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    return scaled.view(-1) if kind == "grpo" else right(totals, group_size, kind)


def group_advantages__mean_of_the_batch(totals, group_size, kind):
    """the deviation is the group's, but the mean the whole batch's"""
    scaled = (totals - totals.mean()).view(-1, group_size) / deviations(totals, group_size)
    return scaled.view(-1) if kind == "grpo" else right(totals, group_size, kind)


def implicit_reward__ratio_of_logs(logprobs, ref_logprobs, mask, beta):
    """you divided the log-probabilities"""
    return beta * torch.where(mask, logprobs / ref_logprobs, 0.0).sum(1)


def implicit_reward__detached(logprobs, ref_logprobs, mask, beta):
    """no gradient reaches logprobs"""
    return beta * torch.where(mask, logprobs.detach() - ref_logprobs, 0.0).sum(1)


def dpo_loss__epsilon(chosen, rejected):
    """the pairs that are most wrong teach nothing"""
    return -((chosen - rejected).sigmoid() + 1e-8).log().mean()


def dpo_loss__clamped(chosen, rejected):
    """the pairs that are most wrong teach nothing"""
    return torch.nn.functional.softplus(-(chosen - rejected).clamp(-20, 20)).mean()
