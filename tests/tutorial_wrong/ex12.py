"""Wrong answers to chapter 12; each docstring is in the message that the check must give."""

import torch

from tutorial.solutions import ex12


def diagnose__score_only(metrics):
    """at the first step a response of 5 tokens surprises by 35 nats"""
    return "hacking" if metrics["ppo/mean_scores"][-1] > 2 else "healthy"


def diagnose__negative_kl_first(metrics):
    """a shift upsets KL and approxkl as well"""
    return "wrong sampler" if max(metrics["objective/kl"][2:]) < -0.1 else ex12.diagnose(metrics)


def diagnose__one_batch_below_zero(metrics):
    """demand that it stays negative"""
    said = ex12.diagnose(metrics)
    return "wrong sampler" if said == "healthy" and min(metrics["objective/kl"]) < 0 else said


def diagnose__one_side_of_zero(metrics):
    """not 0 is on either side of 0"""
    said = ex12.diagnose(metrics)
    return "healthy" if said == "dropout" and metrics["objective/kl"][0] < 0 else said


def diagnose__looks_at_the_last_step_alone(metrics):
    """before anything was learnt: it must be 0"""
    said = ex12.diagnose(metrics)
    return "healthy" if said == "dropout" else said


def diagnose__high_kl_first(metrics):
    """of which the high KL is a consequence"""
    return "hacking" if metrics["objective/kl"][-1] > 10 else ex12.diagnose(metrics)


def diagnose__collapse_before_hacking(metrics):
    """look at the KL before samples/distinct"""
    return "collapse" if metrics["samples/distinct"][-1] < 0.1 else ex12.diagnose(metrics)


def diagnose__trusts_a_small_kl(metrics):
    """although the KL of 3.5 is no alarm"""
    said = ex12.diagnose(metrics)
    return "healthy" if said == "collapse" else said


def diagnose__no_values(metrics):
    """the mean return stayed at 0"""
    said = ex12.diagnose(metrics)
    return "healthy" if said == "early whitening" else said


def diagnose__no_last_return(metrics):
    """is a return statement missing?"""
    said = ex12.diagnose(metrics)
    return None if said == "healthy" else said


def failing_invariant__mean_ratio(step):
    """every ratio must be 1"""
    said = ex12.failing_invariant(step)
    return "none" if said == "ratio" and step["first_ratio"].mean() == 1 else said


def failing_invariant__mean_kl(step):
    """compare token by token"""
    said = ex12.failing_invariant(step)
    return "none" if said == "reference" and (step["logprobs"] - step["ref_logprobs"]).sum() == 0 else said


def failing_invariant__last_column(step):
    """its return is -0.25, its reward -1"""
    said = ex12.failing_invariant(step)
    return "none" if said == "returns" and step["returns"][0, 2] == step["rewards"][0, 2] else said


def failing_invariant__every_return(step):
    """all five hold here"""
    said = ex12.failing_invariant(step)
    return "returns" if said == "none" and not torch.equal(step["returns"], step["rewards"]) else said


def failing_invariant__surprise_over_the_padding(step):
    """surprise 1 and entropy 0.7 differ by 0.3"""
    said = ex12.failing_invariant(step)
    return "surprise" if said == "none" and -step["logprobs"].mean() > 1.1 * step["entropy"].mean() else said


def failing_invariant__one_sided_surprise(step):
    """it can be too small, too"""
    said = ex12.failing_invariant(step)
    return "none" if said == "surprise" and step["logprobs"].mean() > -1 else said


def failing_invariant__no_mask(step):
    """holds 7 outside the mask"""
    mask = step["mask"]
    return ex12.failing_invariant({name: torch.where(mask, x, 0) if x.shape == mask.shape and name != "mask" else x
                                   for name, x in step.items()})


def failing_invariant__other_order(step):
    """name the first in the order of the list"""
    said = ex12.failing_invariant(step)
    return "reference" if said == "ratio" and not torch.equal(step["logprobs"], step["ref_logprobs"]) else said


def failing_invariant__no_last_return(step):
    """is a return statement missing?"""
    said = ex12.failing_invariant(step)
    return None if said == "none" else said


def diagnose__unknown_name(metrics):
    """none of the names in the docstring"""
    said = ex12.diagnose(metrics)
    return "off by one" if said == "shifted" else said


def diagnose__surprise_of_a_response_alone(metrics):
    """what 80 tokens with an entropy of 0.75 each have"""
    return "shifted" if metrics["objective/entropy"][0] > 10 else ex12.diagnose(metrics)


def diagnose__any_approxkl(metrics):
    """look at the first"""
    said = ex12.diagnose(metrics)
    return "large steps" if said == "healthy" and max(metrics["ppo/policy/approxkl"]) > 0.1 else said


def failing_invariant__nearly_one(step):
    """it must be 1 exactly"""
    said = ex12.failing_invariant(step)
    return "none" if said == "ratio" and torch.allclose(step["first_ratio"], torch.ones(5)) else said


def failing_invariant__plus_logprob(step):
    """is it minus the logprob"""
    said = ex12.failing_invariant(step)
    return "surprise" if said == "none" else said


def failing_invariant__surprise_before_reference(step):
    """name the first in the order of the list"""
    said = ex12.failing_invariant(step)
    return "surprise" if said == "reference" and step["logprobs"].mean() < -2 else said


def diagnose__pops(metrics):
    """you changed `metrics` in place"""
    said = ex12.diagnose(metrics)
    metrics["objective/kl"].pop(0)
    return said


def failing_invariant__in_place(step):
    """you changed `step` in place"""
    said = ex12.failing_invariant(step)
    step["logprobs"][~step["mask"]] = 1.0
    return said
