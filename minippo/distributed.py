"""One batch on several processes, which together compute what one computes; without torchrun nothing happens here.

Every process holds the whole batch, all random numbers and all weights. Shared out are decoding, forward and backward passes: each
fills in its rows of zeros, or has the gradient of its rows, and the sum is what one process has. The rest each computes for itself.
"""

import atexit
import hashlib
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET, store = 2**24, None         # numbers sent at once: few calls, little memory for their copy; what processes share as they end


class ProcessLost(RuntimeError):
    """Another process has ended, which says why itself, or did not come in time."""


def start() -> tuple[bool, int]:
    """Join the processes that torchrun started, once; returns whether this is the first one, and how many there are."""
    global store
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        timeout = timedelta(seconds=float(os.environ.get("MINIPPO_TIMEOUT", 1800)))             # that one waits for another
        store, number, n = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)      # of this start, not of one before
        nccl = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()          # it wants a card for each process
        torch.cuda.set_device(default_device() if nccl else -1)                                 # -1: leave it
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", store=store, rank=number, world_size=n, timeout=timeout)
        atexit.register(lambda: (time.sleep(0.2), dist.destroy_process_group()))     # gloo's thread lets go of its tensors, or aborts
        check_same("version of minippo", *(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))
    return rank() == 0, world_size()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:                                          # 0 prints and writes
    return dist.get_rank() if world_size() > 1 else 0


def speaks() -> bool:                                       # the first of those that end says why, the others say nothing
    return store is None or store.compare_set("minippo/speaker", "", str(rank())).decode() == str(rank())


def default_device() -> torch.device:                       # CUDA where there is one, another one for each process as far as they go
    return torch.device(f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % n}" if (n := torch.cuda.device_count()) else "cpu")


def share(rows: Sequence) -> Sequence:                      # may be empty: more processes than rows
    return rows[rank()::world_size()]


def interleave(each: list[Sequence]) -> list:               # the inverse of share: row i is the (i // n)-th of process i % n
    return [each[i % len(each)][i // len(each)] for i in range(sum(map(len, each)))]


def together(what: str, collective, *args) -> None:
    """What all processes must call; ProcessLost where one does not."""
    try:
        collective(*args)
    except RuntimeError as error:
        raise ProcessLost(f"process {rank()} of {world_size()} waited for {what}: another one has ended or is late ({error!s:.99})") from error


def of_each(what: str, thing: Any) -> list:
    """What every process has, in their order; it travels through memory of the CPU."""
    things = [thing] * world_size()
    if len(things) > 1:
        together(what, dist.all_gather_object, things, thing)
    return things


def check_same(what: str, *things: Any) -> None:
    """ValueError where the processes differ in these tensors, or in the repr of these things."""
    plain = repr([x.tolist() if isinstance(x, Tensor) else x for x in things if world_size() > 1])      # alone nothing
    if len(set(of_each(what, hashlib.sha256(plain.encode()).digest()))) > 1:
        raise ValueError(f"the processes differ in their {what}: give all the same, and seed what you draw at random")


def in_place(what: str, tensors: list[Tensor], from_first: bool = False) -> None:
    """The sum over all processes, the same everywhere to the last bit, or the first one's numbers; small tensors go together."""
    buckets: list[list[Tensor]] = [[]]
    for tensor in tensors if world_size() > 1 else []:
        if tensor.numel() + sum(x.numel() for x in buckets[-1]) > BUCKET:
            buckets.append([])
        buckets[-1].append(tensor.detach())
    for bucket in filter(None, buckets):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        together(what, *((dist.broadcast, flat, 0) if from_first else (dist.all_reduce, flat)))
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.copy_(part.view(tensor.shape))
