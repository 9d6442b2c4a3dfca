"""Drawing tokens: random numbers that depend on names only, inverse-CDF sampling, and the exchange between ranks."""

import random
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch

from .. import parallel
from ..records import Completion
from .schedule import Answer

Tensor = torch.Tensor


def uniforms(seed: int | Sequence[int], key: str | int, sample: int) -> Iterator[float]:
    """An endless stream of numbers in [0, 1). It depends on the three arguments and on nothing else."""
    seeds = [int(part) for part in (seed if isinstance(seed, Sequence) else [seed])]
    digest = blake2b(repr((seeds, key, sample)).encode(), digest_size=16).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        yield rng.random()


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Token ids (S,) and their log-probs (S,) over the full vocabulary, from logits (S, V) and u (S,) in [0, 1): the
    first token with a cumulative probability above u. Temperature 0 is greedy. NaN logits give a NaN log-prob."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = (logits.to(wide) / (temperature or 1.0)).log_softmax(-1)        # (S, V)
    if temperature == 0:
        ids = logprobs.argmax(-1, keepdim=True)                                # (S, 1)
    else:
        mass = logprobs.double().exp()
        if top_p < 1:                                                          # smallest set of mass >= top_p
            mass, order = mass.sort(dim=-1, descending=True, stable=True)
            mass = torch.where(mass.cumsum(-1) - mass < top_p, mass, 0.0)
        cdf = mass.cumsum(-1)
        ids = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)    # first place with cdf > u
        ids = ids.clamp(max=logits.shape[-1] - 1)                              # with NaN logits the search ends past V
        if top_p < 1:
            ids = order.gather(-1, ids)
    return ids[:, 0], logprobs.gather(-1, ids)[:, 0]


def exchange(answers: Sequence[Answer]) -> list[Completion]:
    """The completions of the answers of all ranks, in the order of the ranks. JSON holds every number exactly."""
    completions = []
    for share in parallel.gather([(a.ids, a.logprobs, a.finish_reason or "length") for a in answers]):
        for ids, logprobs, finish_reason in share:
            completions.append(Completion(tuple(ids), tuple(logprobs), finish_reason))
    return completions
