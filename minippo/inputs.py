"""What users hand in, checked once at the door, before anything changes: tokens, pairs, scores, limits.

Everything here works from numbers such as vocab_size and n_positions, not from models. Errors say what came, what was wanted
and what to do.
"""

import math
import operator
import warnings
from numbers import Real
from typing import Callable, Sequence

import torch
from torch import Tensor


def fits(x: float) -> bool:
    """Whether fp32 holds a positive number, and one over it."""
    return 1e-37 < x < 1e37


def check_number(name: str, value, wanted: str, holds: Callable[[float], bool]) -> None:
    """ValueError for anything but a finite number for which `holds` does."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value!r:.80}")


def require(settings, names: str, wanted: str, holds: Callable[[float], bool], optional: bool = False) -> None:
    """check_number for these fields of a configuration; an optional one may be None."""
    for name in names.split():
        if (value := getattr(settings, name)) is not None or not optional:
            check_number(f"{type(settings).__name__}: {name}", value, wanted, holds)


def whole(name: str, value) -> int:
    """A whole number, also of numpy or as a tensor, as an int; ValueError for all else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r:.80}") from None


def check_ppo_config(config, kinds_of_kl: tuple[str, ...]) -> None:
    """ValueError for a PPOConfig that no step can work with."""
    require(config, "batch_size mini_batch_size gradient_accumulation_steps ppo_epochs group_size", "a whole number above 0",
            lambda x: isinstance(x, int) and x > 0)
    require(config, "seed", "a whole number of at most 63 bits", lambda x: isinstance(x, int) and abs(x) < 2**63)
    require(config, "adam_eps target horizon cliprange cliprange_value ratio_threshold target_kl temperature", "a number above 0",
            lambda x: x > 0)
    require(config, "learning_rate init_kl_coef vf_coef entropy_coef", "a number of at least 0", lambda x: x >= 0)
    require(config, "gamma lam", "a number from 0 to 1", lambda x: 0 <= x <= 1)
    require(config, "max_grad_norm score_clip missing_eos_penalty", "None or a number above 0", lambda x: x > 0, optional=True)
    if wrong := [name for name, kind in type(config).__annotations__.items() if kind == "bool" and getattr(config, name) not in (True, False)]:
        raise ValueError(f"PPOConfig: {wrong[0]} must be True or False, got {getattr(config, wrong[0])!r}")        # "no" counts as true
    if config.kl_penalty not in kinds_of_kl:
        raise ValueError(f"PPOConfig: kl_penalty must be one of {', '.join(kinds_of_kl)}; got {config.kl_penalty!r}")
    if config.advantage not in ("gae", "reinforce", "rloo", "grpo"):
        raise ValueError(f"PPOConfig: advantage must be gae, reinforce, rloo or grpo; got {config.advantage!r}")
    if config.advantage in ("rloo", "grpo") and config.group_size < 2:
        raise ValueError(f"PPOConfig: {config.advantage} compares responses to the same query: group_size must be 2 or more, got "
                         f"{config.group_size}")
    if config.batch_size % config.group_size:
        raise ValueError(f"PPOConfig: batch_size {config.batch_size} is not a multiple of group_size {config.group_size}")
    if config.use_score_norm and not config.use_score_scaling:
        raise ValueError("PPOConfig: use_score_norm needs use_score_scaling=True; alone it would do nothing")


def check_tokens(name: str, sequences: Sequence, vocab_size: int) -> list[Tensor]:
    """`sequences` as a list of non-empty 1-D int64 CPU tensors, every token inside the vocabulary; ValueError otherwise."""
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Sequence):
        got = f"one tensor of shape {tuple(sequences.shape)}" if isinstance(sequences, Tensor) else type(sequences).__name__
        raise ValueError(f"{name}: expected a list of 1-D token tensors, got {got}; put a single sequence into a list, and cut "
                         "the rows of a padded tensor to their lengths: padding would be read as tokens")
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
        raise ValueError(f"{name}[{i}]: token id {bad} is outside the vocabulary of {vocab_size} tokens; the right tokenizer?")
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
    if sum(map(len, queries)) > 4 and all(torch.equal(query, response[:len(query)]) for query, response in zip(queries, responses)):
        warnings.warn("every response begins with its query, whose tokens are then trained like those of the policy: give the responses "
                      "alone (return_prompt=False)", stacklevel=5)
    return queries, responses


def check_groups(queries: list[Tensor], group_size: int) -> None:
    """ValueError where group_size neighbours do not have one query."""
    if len(queries) % group_size:
        raise ValueError(f"expected groups of {group_size} responses to one query (PPOConfig.group_size), got {len(queries)} responses")
    for i, query in enumerate(queries):
        if i % group_size and not torch.equal(query, queries[i - i % group_size]):
            raise ValueError(f"queries[{i}] differs from queries[{i - i % group_size}], but group_size is {group_size}: repeat each "
                             "query that often, one behind the other")


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
        if isinstance(score, Real):                                                         # a Fraction or 2**70, too
            score = torch.tensor(math.inf if abs(score) > 1e300 else float(score), dtype=torch.float32, device="cpu")
        row = score.detach().cpu() if isinstance(score, Tensor) else torch.as_tensor(score, device="cpu")
        if row.is_complex() or not torch.isfinite(row.float()).all():
            raise ValueError(f"scores[{i}] is not finite, or not in fp32: {row.tolist()!r:.80}; look at the score function")
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
            raise ValueError(f"scores[{i}]: expected one number, or {len(response)} per-token rewards, got shape {tuple(row.shape)}")
    return per_token


def check_sampling(do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, eos_token_id: int | None,
                   vocab_size: int) -> dict:
    """The settings of generation.Sampling; ValueError for what cannot be sampled from."""
    top_k, top_p = 0 if top_k is None else top_k, 1.0 if top_p is None else top_p
    check_number("generate: temperature", temperature, "one positive number that fp32 holds; do_sample=False is greedy", fits)
    check_number("generate: top_p", top_p, "above 0 and at most 1, which keeps every token", lambda x: 1e-37 < x <= 1)
    check_number("generate: top_k", top_k, "a whole number of at least 0", lambda x: x >= 0 and x == int(x))
    if eos_token_id is not None:
        eos_token_id = whole("generate: eos_token_id, where it is not None,", eos_token_id)
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
    limits = [whole("generate: max_new_tokens", n) for n in (max_new_tokens if several else [max_new_tokens] * len(queries))]
    if len(limits) != len(queries):
        raise ValueError(f"generate: got {len(limits)} values of max_new_tokens for {len(queries)} queries")
    fewest = whole("generate: min_new_tokens", min_new_tokens or 0)
    shortest = whole("generate: min_length", -1 if min_length is None else min_length)
    min_new = [max(0, fewest, shortest - len(query)) for query in queries]
    for i, (query, limit) in enumerate(zip(queries, limits)):
        if limit < (least := max(1, min_new[i])):
            raise ValueError(f"generate: max_new_tokens={limit} is less than the minimum of {least}")
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
    check_number("step: temperature", temperature, "one positive number that fp32 holds", fits)
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
    if isinstance(dtype := model.transformer.dtype, str):
        raise ValueError(f"the model's dtype is the text {dtype!r}, expected torch.bfloat16 or the like")
    if wrong:
        raise ValueError(f"the model's {wrong[0]} is {wrong[1]}, expected fp32 weights: leave .half() and .bfloat16() out, and give the "
                         "precision of the blocks to from_pretrained(..., dtype=torch.bfloat16)")


def check_trainable(model: torch.nn.Module, trained: list[Tensor], optimizer) -> None:
    """ValueError for weights that were exchanged, unfrozen or halved since the trainer was made, and for an impossible learning rate."""
    check_precision(model)
    known = {id(p) for p in trained}
    if new := next((name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known), None):
        raise ValueError(f"the model's {new} was exchanged or unfrozen since the trainer was made, whose optimizer does not know it: "
                         "make a new trainer")
    if wrong := [float(group["lr"]) for group in optimizer.param_groups if not 0 <= group["lr"] < math.inf]:
        raise ValueError(f"the optimizer's learning rate is {wrong[0]}, expected a number of at least 0: see the lr_scheduler")


def check_models(model: torch.nn.Module, ref_model: torch.nn.Module | None, tokenizer, optimizer, lr_scheduler) -> None:
    """ValueError for what could not train, or would train nothing: said when a trainer is made, not in its first step."""
    if isinstance(tokenizer, str):
        raise ValueError(f"tokenizer: expected a tokenizer, got a text; load_tokenizer({tokenizer!r:.80}) makes one")
    for name, one in (("model", model), ("ref_model", ref_model)):
        if not (hasattr(one, "transformer") and hasattr(one, "v_head")) and not (name == "ref_model" and one is None):
            raise ValueError(f"{name}: expected a GPT2WithValueHead, got {type(one).__name__}; from_pretrained makes one")
    if any("_orig_mod." in name for name, _ in model.named_parameters()):
        raise ValueError("the model is wrapped by torch.compile, which would compile nothing that PPO calls, and rename its parameters: "
                         "give the model itself, and PPOConfig(compile=True)")
    check_precision(model)
    if ref_model is not None:
        (V, P), (ref_V, ref_P) = ((each.config.vocab_size, each.config.n_positions) for each in (model, ref_model))
        if ref_V != V or ref_P < P:
            raise ValueError(f"the model has {V} tokens and {P} positions, the reference {ref_V} and {ref_P}: they do not fit")
        if {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in ref_model.parameters()}:
            raise ValueError("ref_model shares weights with the model and would move with it: pass create_reference_model(model)")
    if optimizer is None and lr_scheduler is not None:
        raise ValueError("lr_scheduler was given without the optimizer that it schedules: pass both")
    if getattr(lr_scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("lr_scheduler: it belongs to another optimizer, whose learning rate it would move")
    if isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ValueError("lr_scheduler: ReduceLROnPlateau needs a metric at every step: keep it apart and call it with yours")
    own = {id(p) for p in model.parameters()}
    if optimizer is not None and any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: it holds parameters that are not the model's; make it over model.parameters()")
