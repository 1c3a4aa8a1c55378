"""Wrong answers to chapter 6; each docstring is in the message that the check must give."""

import re

import torch

from tutorial.solutions import ex06


def words_of(text):
    return re.findall("[a-z]+", text.lower())


def rule(responses, good, bad, opinion=lambda words, wanted: len(set(words) & wanted), below=len, shortest=4, cut=words_of):
    scores = []
    for response in responses:
        words = cut(response)
        score = opinion(words, good) - opinion(words, bad)
        scores.append(score / max(1, below(words)) if len(words) >= shortest else 0.0)
    return scores


def robust_score__count(queries, responses, good, bad):
    """divide by the number of words"""
    return rule(responses, good, bad, below=lambda words: 1)


def robust_score__good_only(queries, responses, good, bad):
    """bad words are not subtracted"""
    return rule(responses, good, set())


def robust_score__share_of_opinions(queries, responses, good, bad):
    """divide by all words"""
    return rule(responses, good, bad, below=lambda words: len(set(words) & (good | bad)))


def robust_score__with_the_query(queries, responses, good, bad):
    """the query was counted"""
    return rule([f"{q} {r}" for q, r in zip(queries, responses)], good, bad)


def robust_score__repetition(queries, responses, good, bad):
    """cheated by repetition"""
    return rule(responses, good, bad, opinion=lambda words, wanted: sum(word in wanted for word in words))


def robust_score__different_words_below(queries, responses, good, bad):
    """counts twice below the line"""
    return rule(responses, good, bad, below=lambda words: len(set(words)))


def robust_score__brevity(queries, responses, good, bad):
    """cheated by brevity"""
    return rule(responses, good, bad, shortest=1)


def robust_score__five_words(queries, responses, good, bad):
    """four words are enough"""
    return rule(responses, good, bad, shortest=5)


def robust_score__upper_case(queries, responses, good, bad):
    """upper case hides words"""
    return rule(responses, good, bad, cut=lambda text: re.findall("[A-Za-z]+", text))


def robust_score__punctuation(queries, responses, good, bad):
    """punctuation hides words"""
    return rule(responses, good, bad, cut=lambda text: text.lower().replace(",", "").split())


def robust_score__split(queries, responses, good, bad):
    """cut with _words_of, not with split"""
    return rule(responses, good, bad, cut=str.split)


def robust_score__one_number(queries, responses, good, bad):
    """expected a list of 4 floats"""
    return sum(rule(responses, good, bad))


def bradley_terry_loss__sign(chosen, rejected):
    """the sign inside is wrong"""
    return -torch.nn.functional.logsigmoid(rejected - chosen).mean()


def bradley_terry_loss__no_minus(chosen, rejected):
    """the minus in front is missing"""
    return torch.nn.functional.logsigmoid(chosen - rejected).mean()


def bradley_terry_loss__sum(chosen, rejected):
    """this is the sum"""
    return -torch.nn.functional.logsigmoid(chosen - rejected).sum()


def bradley_terry_loss__per_pair(chosen, rejected):
    """this is one loss a pair"""
    return -torch.nn.functional.logsigmoid(chosen - rejected)


def bradley_terry_loss__no_logarithm(chosen, rejected):
    """the logarithm is missing"""
    return -(chosen - rejected).sigmoid().mean()


def bradley_terry_loss__mean_first(chosen, rejected):
    """first the logarithm of each pair"""
    return -(chosen - rejected).sigmoid().mean().log()


def bradley_terry_loss__no_sigmoid(chosen, rejected):
    """there is no sigmoid"""
    return -(chosen - rejected).mean()


def bradley_terry_loss__each_by_itself(chosen, rejected):
    """each text was judged by itself"""
    return -(chosen.sigmoid().log() + (1 - rejected.sigmoid()).log()).mean()


def bradley_terry_loss__infinite(chosen, rejected):
    """use torch.nn.functional.logsigmoid"""
    return -(chosen - rejected).sigmoid().log().mean()


def last_token_scores__last_column(scores, lengths):
    """this is the last column"""
    return scores[:, -1]


def last_token_scores__first_token(scores, lengths):
    """this is the first token"""
    return scores[:, 0]


def last_token_scores__one_early(scores, lengths):
    """one too early"""
    return scores[torch.arange(len(lengths)), torch.tensor(lengths) - 2]


def last_token_scores__one_far(scores, lengths):
    """one too far"""
    return scores[torch.arange(len(lengths)), torch.tensor(lengths).clamp_max(scores.shape[1] - 1)]


def last_token_scores__mean(scores, lengths):
    """this is the mean over the text"""
    return torch.stack([row[:length].mean() for row, length in zip(scores, lengths)])


def last_token_scores__all_pairs(scores, lengths):
    """index rows and columns together"""
    return scores[:, torch.tensor(lengths) - 1]


def last_token_scores__one_number(scores, lengths):
    """one score a text"""
    return scores[torch.arange(len(lengths)), torch.tensor(lengths) - 1].sum()


def last_token_scores__largest(scores, lengths):
    """this is the largest score up to the last token"""
    return torch.stack([row[:length].max() for row, length in zip(scores, lengths)])


def bradley_terry_loss__detached(chosen, rejected):
    """the loss carries no gradient"""
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean().detach()


def robust_score__shortens_the_set(queries, responses, good, bad):
    """you changed `good` in place"""
    good -= bad
    good.discard("joy")
    return ex06.robust_score(queries, responses, good, bad)


def bradley_terry_loss__in_place(chosen, rejected):
    """you changed `chosen` in place"""
    chosen -= rejected
    return -torch.nn.functional.logsigmoid(chosen).mean()
