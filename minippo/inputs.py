"""What users hand in, checked once at the door, before anything changes: tokens, pairs, scores, limits.

Everything here works from numbers such as vocab_size and n_positions, not from models. Errors say what came, what was wanted
and what to do.
"""

from __future__ import annotations

import math
import operator
import warnings
from numbers import Real
from typing import Callable, Sequence

import torch
from torch import Tensor


def require(settings, names: str, wanted: str, holds: Callable[[float], bool], optional: bool = False) -> None:
    """ValueError for the first of these fields of a configuration that is not a finite number for which `holds` does."""
    for name in names.split():
        value = getattr(settings, name)
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and holds(value)) and not (optional and value is None):
            raise ValueError(f"{type(settings).__name__}: {name} must be {wanted}, got {value!r}")


def check_ppo_config(config, kinds_of_kl: tuple[str, ...]) -> None:
    """ValueError for a PPOConfig that no step can work with."""
    require(config, "batch_size mini_batch_size gradient_accumulation_steps ppo_epochs", "a whole number above 0",
            lambda x: isinstance(x, int) and x > 0)
    require(config, "seed", "a whole number of at most 63 bits", lambda x: isinstance(x, int) and abs(x) < 2**63)
    require(config, "adam_eps target horizon cliprange cliprange_value ratio_threshold target_kl temperature", "a number above 0",
            lambda x: x > 0)
    require(config, "learning_rate init_kl_coef vf_coef entropy_coef", "a number of at least 0", lambda x: x >= 0)
    require(config, "gamma lam", "a number from 0 to 1", lambda x: 0 <= x <= 1)
    require(config, "max_grad_norm score_clip missing_eos_penalty", "None or a number above 0", lambda x: x > 0, optional=True)
    if config.kl_penalty not in kinds_of_kl:
        raise ValueError(f"PPOConfig: kl_penalty must be one of {', '.join(kinds_of_kl)}; got {config.kl_penalty!r}")
    if config.use_score_norm and not config.use_score_scaling:
        raise ValueError("PPOConfig: use_score_norm needs use_score_scaling=True; alone it would do nothing")


def check_tokens(name: str, sequences: Sequence, vocab_size: int) -> list[Tensor]:
    """`sequences` as a list of non-empty 1-D int64 CPU tensors, every token inside the vocabulary; ValueError otherwise."""
    if isinstance(sequences, Tensor):
        advice = "wrap it in a list" if sequences.dim() < 2 else "cut its rows to their lengths: padding would be read as tokens"
        raise ValueError(f"{name}: expected a list of 1-D token tensors, got one tensor of shape {tuple(sequences.shape)}; {advice}")
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Sequence):
        raise ValueError(f"{name}: expected a list of 1-D token tensors, got {type(sequences).__name__}")
    if len(sequences) == 0:
        raise ValueError(f"{name}: expected at least one sequence, got an empty list")
    checked: list[Tensor] = []
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, (str, bytes)):
            raise ValueError(f"{name}[{i}] is text; encode it first: torch.tensor(tokenizer.encode(text))")
        try:
            tokens = sequence if isinstance(sequence, Tensor) else torch.as_tensor(sequence, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}[{i}]: expected a 1-D tensor of token ids, got {sequence!r:.80}") from error
        if tokens.dim() != 1 or tokens.numel() == 0:
            raise ValueError(f"{name}[{i}]: expected a non-empty 1-D tensor of token ids, got shape {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ValueError(f"{name}[{i}]: token ids are integers, got {tokens.dtype}")
        checked.append(tokens.detach().to(checked[0].device if checked else tokens.device, torch.long))
    flat = torch.cat(checked).cpu()                                                         # one host sync for all rows
    ragged = list(flat.split([len(tokens) for tokens in checked]))
    if flat.min() < 0 or flat.max() >= vocab_size:
        i, bad = next((i, token) for i, tokens in enumerate(ragged) for token in tokens.tolist() if not 0 <= token < vocab_size)
        raise ValueError(f"{name}[{i}]: token id {bad} is outside the vocabulary of {vocab_size} tokens; is this the model's "
                         "own tokenizer?")
    return ragged


def check_pairs(queries: Sequence, responses: Sequence, vocab_size: int, n_positions: int) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and responses as checked lists of equal length, each pair within the model's positions; ValueError otherwise."""
    queries, responses = check_tokens("queries", queries, vocab_size), check_tokens("responses", responses, vocab_size)
    if len(queries) != len(responses):
        raise ValueError(f"got {len(queries)} queries and {len(responses)} responses; they come in pairs")
    for i, (query, response) in enumerate(zip(queries, responses)):
        if len(query) + len(response) > n_positions:
            raise ValueError(f"queries[{i}] and responses[{i}] have {len(query)} + {len(response)} tokens together, but the "
                             f"model has {n_positions} positions; does the response repeat the query?")
    return queries, responses


def check_scores(scores: Sequence | Tensor, responses: list[Tensor]) -> Tensor:
    """Scores as an fp32 CPU tensor: (B,) for one number a response, (B, R) where a response has one reward a token.

    In a mixed batch a single number stands at its response's last token.
    """
    B = len(responses)
    if isinstance(scores, (str, bytes)) or not (isinstance(scores, Sequence) or hasattr(scores, "__array__") and scores.ndim > 0):
        raise ValueError(f"scores: expected a list of {B} numbers or a tensor of that length, got {scores!r:.80}")
    if len(scores) != B:
        raise ValueError(f"expected {B} scores, one for each response, got {len(scores)}")
    scores = scores.detach().cpu() if isinstance(scores, Tensor) else scores                # one host sync, not one a row
    rows = []
    for i, score in enumerate(scores):
        if not (isinstance(score, (Real, Tensor)) or hasattr(score, "__array__")):
            raise ValueError(f"scores[{i}]: expected a number or a tensor, got {type(score).__name__} {score!r:.40}")
        row = score.detach().cpu() if isinstance(score, Tensor) else torch.as_tensor(score, device="cpu")
        if row.is_complex() or not torch.isfinite(row.float()).all():
            raise ValueError(f"scores[{i}] is not finite, or not in fp32: {row.tolist()!r:.80}; check the score function on this "
                             "response")
        rows.append(row.float())
    if all(row.numel() == 1 for row in rows):
        return torch.stack([row.reshape(()) for row in rows])
    per_token = torch.zeros(B, max(len(response) for response in responses), dtype=torch.float32, device="cpu")
    for i, (row, response) in enumerate(zip(rows, responses)):
        if row.numel() == 1:
            per_token[i, len(response) - 1] = row.reshape(())
        elif row.shape == response.shape:
            per_token[i, :len(response)] = row
        else:
            raise ValueError(f"scores[{i}]: expected one number, or {len(response)} per-token rewards for the {len(response)} "
                             f"tokens of its response, got shape {tuple(row.shape)}")
    return per_token


def check_sampling(do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, eos_token_id: int | None,
                   vocab_size: int) -> dict:
    """The settings of generation.Sampling; ValueError for what cannot be sampled from."""
    top_k, top_p = 0 if top_k is None else top_k, 1.0 if top_p is None else top_p
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"generate: temperature must be one positive number, got {temperature!r}; "
                         "for the most likely token use do_sample=False")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must lie in (0, 1], got {top_p!r}; 1.0 keeps every token")
    if not isinstance(top_k, Real) or not 0 <= top_k < math.inf or top_k != int(top_k):
        raise ValueError(f"generate: top_k must be a whole number >= 0, got {top_k!r}; 0 keeps every token")
    if eos_token_id is not None:
        try:
            eos_token_id = operator.index(eos_token_id)
        except TypeError:
            raise ValueError(f"generate: expected one eos_token_id or None, got {eos_token_id!r}") from None
        if not 0 <= eos_token_id < vocab_size:
            raise ValueError(f"generate: eos_token_id {eos_token_id} is outside the vocabulary of {vocab_size} tokens")
    return {"do_sample": bool(do_sample), "temperature": float(temperature), "top_k": int(top_k), "top_p": float(top_p),
            "eos_token_id": eos_token_id}


def refuse(unsupported: dict) -> None:
    """ValueError for arguments of other libraries' generate, unless there are none."""
    if unsupported:
        raise ValueError(f"generate: {', '.join(unsupported)} is not supported: responses are sampled token by token, as PPO scores "
                         "them; there are max_new_tokens, min_new_tokens, min_length, do_sample, temperature, top_k, top_p, "
                         "eos_token_id, pad_token_id, seed, generator")


def check_limits(queries: list[Tensor], max_new_tokens: int | Sequence[int], min_new_tokens: int | None, min_length: int | None,
                 n_positions: int) -> tuple[list[int], list[int]]:
    """Most and fewest new tokens of each row; ValueError where they contradict each other or the model's positions."""
    several = isinstance(max_new_tokens, Sequence) or getattr(max_new_tokens, "ndim", 0) > 0
    try:
        limits = [operator.index(n) for n in (max_new_tokens if several else [max_new_tokens] * len(queries))]
    except TypeError as error:
        raise ValueError("generate: max_new_tokens must be a whole number, or a list of one for each query, "
                         f"got {max_new_tokens!r}") from error
    if len(limits) != len(queries):
        raise ValueError(f"generate: got {len(limits)} values of max_new_tokens for {len(queries)} queries")
    try:
        fewest, shortest = operator.index(min_new_tokens or 0), operator.index(-1 if min_length is None else min_length)
    except TypeError as error:
        raise ValueError("generate: min_new_tokens and min_length must be whole numbers, "
                         f"got {min_new_tokens!r} and {min_length!r}") from error
    min_new = [max(0, fewest, shortest - len(query)) for query in queries]
    for i, (query, limit) in enumerate(zip(queries, limits)):
        if limit < 1:
            raise ValueError(f"generate: max_new_tokens must be at least 1, got {limit}")
        if min_new[i] > limit:
            raise ValueError(f"generate: a minimum of {min_new[i]} new tokens is more than max_new_tokens={limit}")
        if len(query) + limit > n_positions:
            raise ValueError(f"generate: queries[{i}] has {len(query)} tokens and may grow by {limit}, but the model has "
                             f"{n_positions} positions: shorten the query or lower max_new_tokens")
    return limits, min_new


def pad_right(sequences: list[Tensor]) -> Tensor:
    """Ragged sequences as one (B, T) tensor, zeros on the right.

    Zero is an ordinary token: padding is known from the lengths alone, never from token ids.
    """
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)


def check_temperature(temperature: float, sampled_at: float) -> float:
    """The temperature to score at; warns where the latest responses were sampled at another."""
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"step: temperature must be one positive number, got {temperature!r}")
    if temperature != sampled_at:
        warnings.warn(f"the latest responses were sampled at temperature {sampled_at:g}, but step() scores at {temperature:g}: give it "
                      "their temperature, or set PPOConfig.temperature for both", stacklevel=5)
    return float(temperature)


def penalise_missing_eos(scores: Tensor, responses: list[Tensor], eos_token_id: int | None, penalty: float) -> Tensor:
    """Scores, (B,) or (B, R), less `penalty` at the end of each response that does not end with EOS."""
    if eos_token_id is None:
        raise ValueError("missing_eos_penalty needs to know the EOS token: give the trainer a tokenizer, or set trainer.eos_token_id")
    scores = scores.clone()
    for i, response in enumerate(responses):
        if int(response[-1]) != eos_token_id:
            (scores[i] if scores.dim() == 1 else scores[i, len(response) - 1]).sub_(penalty)
    return scores


def warn_of_filters(generation_kwargs: dict) -> bool:
    """Whether these settings cut tokens off the distribution that `step` scores; then with a warning."""
    filtered = [name for name in ("top_k", "min_length", "min_new_tokens") if (generation_kwargs.get(name) or 0) > 0]
    filtered += ["top_p"] if (generation_kwargs.get("top_p") or 1) < 1 else []
    if filtered:
        warnings.warn(f"{', '.join(filtered)}: the responses no longer come from the distribution that step() scores, so KL can "
                      "turn negative and be 'earned'; for training sample with top_k=0, top_p=1.0, min_length=-1", stacklevel=3)
    return bool(filtered)


def warn_of_negative_kl(kl: float) -> None:
    if kl < -1:
        warnings.warn(f"KL is {kl:.2f} nats per response: sampling and scoring disagree (top_k, top_p, min_length, another "
                      "temperature, responses of another model?)", stacklevel=4)


def check_precision(model: torch.nn.Module) -> None:
    """ValueError for 16-bit weights: what an update adds to them is mostly rounded away."""
    wrong = next(((name, p.dtype) for name, p in model.named_parameters() if p.dtype not in (torch.float32, torch.float64)), None)
    if wrong:
        raise ValueError(f"the model's {wrong[0]} is {wrong[1]}, expected fp32 weights: leave .half() and .bfloat16() out, and give the "
                         "precision of the blocks to from_pretrained(..., dtype=torch.bfloat16)")


def check_models(model: torch.nn.Module, ref_model: torch.nn.Module | None, optimizer, lr_scheduler) -> None:
    """ValueError for what could not train, or would train nothing: said when a trainer is made, not in its first step."""
    for name, one in (("model", model), ("ref_model", ref_model)):
        if not (hasattr(one, "transformer") and hasattr(one, "v_head")) and not (name == "ref_model" and one is None):
            raise ValueError(f"{name}: expected a GPT2WithValueHead, got {type(one).__name__}; GPT2WithValueHead.from_pretrained loads "
                             "folders that transformers and TRL wrote, too")
    check_precision(model)
    if ref_model is not None:
        if ref_model.config.vocab_size != model.config.vocab_size:
            raise ValueError(f"the model has {model.config.vocab_size} tokens, the reference {ref_model.config.vocab_size}")
        if ref_model.config.n_positions < model.config.n_positions:
            raise ValueError(f"the model has {model.config.n_positions} positions, the reference only {ref_model.config.n_positions}: "
                             "it could not score the longest responses")
        shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in ref_model.parameters()}
        if ref_model is model or shared:
            raise ValueError("ref_model is the model itself, or shares weights with it, and would move with it: pass "
                             "create_reference_model(model) or None")
    if optimizer is None and lr_scheduler is not None:
        raise ValueError("lr_scheduler was given without the optimizer that it schedules: pass both")
    if isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("lr_scheduler: ReduceLROnPlateau needs a metric at every step: keep it apart and call it with yours")
    own = {id(p) for p in model.parameters()}
    if optimizer is not None and any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: it holds parameters that are not the model's, and would leave the model's as they are; make it "
                         "over model.parameters()")
