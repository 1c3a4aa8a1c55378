"""Wrong answers to chapter 1; each docstring is in the message that the check must give."""

import torch


def optimal_policy__not_normalised(ref_probs, scores, kl_coef):
    """they do not sum to 1"""
    return ref_probs * (scores / kl_coef).exp()


def optimal_policy__multiplies(ref_probs, scores, kl_coef):
    """you multiplied the scores by kl_coef"""
    return (ref_probs.log() + scores * kl_coef).softmax(0)


def optimal_policy__no_coefficient(ref_probs, scores, kl_coef):
    """kl_coef is not used"""
    return (ref_probs.log() + scores).softmax(0)


def optimal_policy__no_reference(ref_probs, scores, kl_coef):
    """you forgot the reference"""
    return (scores / kl_coef).softmax(0)


def optimal_policy__sign(ref_probs, scores, kl_coef):
    """the sign is wrong"""
    return (ref_probs.log() - scores / kl_coef).softmax(0)


def optimal_policy__probabilities_as_logits(ref_probs, scores, kl_coef):
    """not ref_probs itself"""
    return (ref_probs + scores / kl_coef).softmax(0)


def optimal_policy__overflows(ref_probs, scores, kl_coef):
    """exp(2000) overflows"""
    weights = ref_probs * (scores / kl_coef).exp()
    return weights / weights.sum()


def objective__kl_added(probs, ref_probs, scores, kl_coef):
    """subtract it"""
    return (probs * scores).sum() + kl_coef * (probs * (probs / ref_probs).log()).sum()


def objective__no_coefficient(probs, ref_probs, scores, kl_coef):
    """kl_coef is missing"""
    return (probs * scores).sum() - (probs * (probs / ref_probs).log()).sum()


def objective__reverse_kl(probs, ref_probs, scores, kl_coef):
    """runs the wrong way"""
    return (probs * scores).sum() - kl_coef * (ref_probs * (ref_probs / probs).log()).sum()


def objective__unweighted_logarithms(probs, ref_probs, scores, kl_coef):
    """the logarithms are not weighted"""
    return (probs * scores).sum() - kl_coef * (probs / ref_probs).log().mean()


def objective__unweighted_scores(probs, ref_probs, scores, kl_coef):
    """the scores are not weighted"""
    return scores.mean() - kl_coef * (probs * (probs / ref_probs).log()).sum()


def objective__nan_at_zero(probs, ref_probs, scores, kl_coef):
    """0 * log 0 is nan"""
    return (probs * scores).sum() - kl_coef * (probs * (probs / ref_probs).log()).sum()


def optimal_policy__best_alone(ref_probs, scores, kl_coef):
    """all the probability is on the best word"""
    return torch.nn.functional.one_hot(scores.argmax(), len(scores)).float()


def optimal_policy__no_exp(ref_probs, scores, kl_coef):
    """exp is missing: the factor is exp(score / kl_coef), not"""
    weights = ref_probs * scores / kl_coef
    return weights / weights.sum()


def optimal_policy__no_exp_not_normalised(ref_probs, scores, kl_coef):
    """exp is missing, and the result does not sum to 1"""
    return ref_probs * scores / kl_coef


def optimal_policy__clamped_exponent(ref_probs, scores, kl_coef):
    """the exponent was clamped"""
    weights = ref_probs * (scores / kl_coef).clamp(max=80).exp()
    return weights / weights.sum()


def optimal_policy__in_place(ref_probs, scores, kl_coef):
    """you changed `scores` in place"""
    scores /= kl_coef
    return (ref_probs.log() + scores).softmax(0)


def objective__absolute(probs, ref_probs, scores, kl_coef):
    """you took absolute values"""
    return (probs * scores).sum() - kl_coef * (probs * (probs / ref_probs).log().abs()).sum()


def objective__bits(probs, ref_probs, scores, kl_coef):
    """this KL is in bits"""
    return (probs * scores).sum() - kl_coef * (probs * (probs / ref_probs).log2()).sum()


def objective__kl_div(probs, ref_probs, scores, kl_coef):
    """kl_div takes the mean over the words"""
    return (probs * scores).sum() - kl_coef * torch.nn.functional.kl_div(ref_probs.log(), probs, reduction="mean")


def objective__kl_div_turned_round(probs, ref_probs, scores, kl_coef):
    """kl_div(ref_probs.log(), probs, reduction='sum')"""
    return (probs * scores).sum() - kl_coef * torch.nn.functional.kl_div(probs.log(), ref_probs, reduction="mean")


def objective__in_place(probs, ref_probs, scores, kl_coef):
    """you changed `probs` in place"""
    probs.clamp_(min=1e-12)
    return (probs * scores).sum() - kl_coef * (probs * (probs / ref_probs).log()).sum()
