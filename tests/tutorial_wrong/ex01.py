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
