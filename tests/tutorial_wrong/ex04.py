"""Wrong answers to chapter 4; each docstring is in the message that the check must give."""

import torch


def inverse_cdf__argmax(probs, uniform):
    """this is the most likely token"""
    return probs.argmax(-1)


def inverse_cdf__not_cumulated(probs, uniform):
    """cumulate them first"""
    return (probs <= uniform[:, None]).sum(-1)


def inverse_cdf__one_before(probs, uniform):
    """this is the token before"""
    return (probs.cumsum(-1) <= uniform[:, None]).sum(-1) - 1


def inverse_cdf__one_too_far(probs, uniform):
    """one token too far"""
    return (probs.cumsum(-1) <= uniform[:, None]).sum(-1) + 1


def inverse_cdf__last(probs, uniform):
    """take the first"""
    exceeds = probs.cumsum(-1) > uniform[:, None]
    return (exceeds * torch.arange(probs.shape[-1])).amax(-1)


def inverse_cdf__border(probs, uniform):
    """EXCEED the uniform number, not equal it"""
    return (probs.cumsum(-1) < uniform[:, None]).sum(-1)


def inverse_cdf__behind_the_end(probs, uniform):
    """gave token 3"""
    return (probs.cumsum(-1) <= uniform[:, None]).sum(-1)


def inverse_cdf__clamped(probs, uniform):
    """gave token 2"""
    return (probs.cumsum(-1) <= uniform[:, None]).sum(-1).clamp(max=probs.shape[-1] - 1)


def inverse_cdf__multinomial(probs, uniform):
    """random numbers of its own"""
    return torch.multinomial(probs, 1).squeeze(-1)


def inverse_cdf__kept_dimension(probs, uniform):
    """in shape (B,)"""
    return (probs.cumsum(-1) <= uniform[:, None]).sum(-1, keepdim=True)


def pick(logprobs, tokens):
    return logprobs.gather(-1, tokens[..., None]).squeeze(-1)


def logprobs_from_logits__no_shift(logits, tokens, temperature):
    """you scored the token before: shift the logits by one"""
    return pick((logits / temperature).log_softmax(-1)[:, :-1], tokens[:, :-1])


def logprobs_from_logits__drops_the_first(logits, tokens, temperature):
    """drop the last position of the logits, not the first"""
    return pick((logits / temperature).log_softmax(-1)[:, 1:], tokens[:, 1:])


def logprobs_from_logits__no_shift_all(logits, tokens, temperature):
    """one column too many"""
    return pick((logits / temperature).log_softmax(-1), tokens)


def logprobs_from_logits__other_way(logits, tokens, temperature):
    """you shifted the wrong way"""
    return pick((logits / temperature).log_softmax(-1)[:, 1:], tokens[:, :-1])


def logprobs_from_logits__roll(logits, tokens, temperature):
    """torch.roll wraps"""
    return pick((logits / temperature).log_softmax(-1), tokens.roll(-1, 1))


def logprobs_from_logits__no_temperature(logits, tokens, temperature):
    """temperature is not used"""
    return pick(logits.log_softmax(-1)[:, :-1], tokens[:, 1:])


def logprobs_from_logits__times_temperature(logits, tokens, temperature):
    """you multiplied by the temperature"""
    return pick((logits * temperature).log_softmax(-1)[:, :-1], tokens[:, 1:])


def logprobs_from_logits__temperature_after(logits, tokens, temperature):
    """before the softmax"""
    return pick(logits.log_softmax(-1)[:, :-1] / temperature, tokens[:, 1:])


def logprobs_from_logits__probabilities(logits, tokens, temperature):
    """these are probabilities"""
    return pick((logits / temperature).softmax(-1)[:, :-1], tokens[:, 1:])


def logprobs_from_logits__logits(logits, tokens, temperature):
    """these are logits"""
    return pick((logits / temperature)[:, :-1], tokens[:, 1:])


def logprobs_from_logits__plain_logits(logits, tokens, temperature):
    """then log_softmax"""
    return pick(logits[:, :-1], tokens[:, 1:])


def logprobs_from_logits__over_positions(logits, tokens, temperature):
    """over the vocabulary, dim=-1"""
    return pick((logits[:, :-1] / temperature).log_softmax(1), tokens[:, 1:])


def logprobs_from_logits__log_of_softmax(logits, tokens, temperature):
    """log_softmax, not softmax and then log"""
    return pick((logits / temperature).softmax(-1).log()[:, :-1], tokens[:, 1:])


def cut(x, starts, lengths):
    columns = torch.zeros(len(x), max(lengths))
    for row, (start, R) in enumerate(zip(starts, lengths)):
        columns[row, :R] = x[row, start:start + R]
    return columns


def response_columns__one_late(all_logprobs, query_lengths, response_lengths):
    """one column too late"""
    return cut(all_logprobs, query_lengths, response_lengths)


def response_columns__padding_kept(all_logprobs, query_lengths, response_lengths):
    """set them to 0"""
    return cut(all_logprobs, [Q - 1 for Q in query_lengths], [max(response_lengths)] * len(query_lengths))


def response_columns__one_start_for_all(all_logprobs, query_lengths, response_lengths):
    """used the first row's for all"""
    return cut(all_logprobs, [query_lengths[0] - 1] * len(query_lengths), response_lengths)


def response_columns__longest_start_for_all(all_logprobs, query_lengths, response_lengths):
    """used the longest one for all"""
    return cut(all_logprobs, [max(query_lengths) - 1] * len(query_lengths), response_lengths)


def response_columns__from_the_end(all_logprobs, query_lengths, response_lengths):
    """cut every row at the end"""
    return cut(all_logprobs, [all_logprobs.shape[1] - R for R in response_lengths], response_lengths)


def response_columns__pushed_right(all_logprobs, query_lengths, response_lengths):
    """pushed to the right"""
    columns = torch.zeros(len(all_logprobs), max(response_lengths))
    for row, (Q, R) in enumerate(zip(query_lengths, response_lengths)):
        columns[row, -R:] = all_logprobs[row, Q - 1:Q - 1 + R]
    return columns


def response_columns__the_query(all_logprobs, query_lengths, response_lengths):
    """these are the query's columns"""
    return cut(all_logprobs, [0] * len(query_lengths), response_lengths)


def logprobs_from_logits__in_place(logits, tokens, temperature):
    """you changed `logits` in place"""
    logits /= temperature
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def response_columns__popped(all_logprobs, query_lengths, response_lengths):
    """you changed `query_lengths` in place"""
    longest, rows = max(response_lengths), []
    for row, R in zip(all_logprobs, response_lengths):
        Q = query_lengths.pop(0)
        rows.append(torch.cat([row[Q - 1:Q - 1 + R], torch.zeros(longest - R)]))
    return torch.stack(rows)
