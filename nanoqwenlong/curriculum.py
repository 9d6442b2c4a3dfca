"""Which examples a step trains on: length phases, and hard examples that come back. Pure Python.

QwenLong-L1 section 2.4. Phase k trains on lengths in (L_{k-1}, L_k] (Eq. 9). Each phase also trains on hard examples of
earlier phases, drawn with weight diff(x) = 1 / mean reward of x's group (Eq. 10). That weight is infinite if no answer
was ever right, so the paper in practice keeps just those examples. Here the mean reward has a floor instead.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from .errors import CurriculumError


@dataclass(frozen=True)
class Phase:
    """Examples of length in (low, high], for a number of steps.

    >>> phases((100, 300), (40, 60))[1]
    Phase(number=2, low=100, high=300, num_steps=60)
    """

    number: int                         # from 1
    low: int
    high: int
    num_steps: int

    def has(self, length: int) -> bool:
        return self.low < length <= self.high


def phases(lengths: Sequence[int], steps: Sequence[int]) -> list[Phase]:
    """One phase per length: phase k covers (lengths[k - 2], lengths[k - 1]], the first one starts at 0.

    Raises CurriculumError unless lengths rise from 1 and each has a step count of at least 1."""
    rising = list(lengths) == sorted(set(lengths))
    positive = min((*lengths, *steps), default=0) >= 1
    if len(lengths) != len(steps) or not rising or not positive:
        raise CurriculumError(f"--phase-lengths {tuple(lengths)} and --phase-steps {tuple(steps)} do not fit: each "
                              "phase needs a length above the one before, and a number of steps of at least 1")
    numbers, lows = count(1), (0, *lengths)
    return list(map(Phase, numbers, lows, lengths, steps))


def phase_of_each_step(phases: Sequence[Phase]) -> list[Phase]:
    return [phase for phase in phases for _ in range(phase.num_steps)]


def bucket(length: int, lengths: Sequence[int]) -> str:
    """The name of the length interval that a length falls into, as metrics spell it.

    >>> bucket(100, (100, 300)), bucket(101, (100, 300)), bucket(999, (100, 300)), bucket(7, ())
    ('0-100', '100-300', '300+', 'all')
    """
    low = 0
    for high in lengths:
        if length <= high:
            return f"{low}-{high}"
        low = high
    return f"{low}+" if low else "all"


@lru_cache(maxsize=4)
def epoch_order(num: int, name: str) -> tuple[int, ...]:
    """0 ... num - 1 in an order that is a function of the name. Cached: every batch of an epoch asks for it."""
    order = list(range(num))
    random.Random(name).shuffle(order)
    return tuple(order)


class RetrospectiveSampler:
    """Draws example ids for a step: most from the phase itself, the rest hard examples of earlier phases.

    A phase goes through its own examples in shuffled order, epoch after epoch. An example is hard if its newest mean
    reward is at most `hard_below`. Its weight is 1 / max(mean reward, floor), so a solved example stops coming back. A
    draw is a function of the seed, the phase, how often that phase has drawn, and what has been recorded.

    Args:
        lengths: {example id: length}.
        fraction: of each batch, how much is reserved for hard examples of earlier phases.

    >>> s = RetrospectiveSampler({"a": 10, "b": 12, "c": 90}, phases((50, 100), (1, 1)), fraction=0.5, seed=0)
    >>> sorted(s.draw(s.phases[0], 2)); s.record("a", 0.125); s.record("b", 1.0)
    ['a', 'b']
    >>> s.draw(s.phases[1], 2)                               # one of phase 2, and the one that was hard in phase 1
    ['c', 'a']
    """

    def __init__(self, lengths: Mapping[str, int], phases: Sequence[Phase], fraction: float = 0.25,
                 hard_below: float = 0.5, floor: float = 1 / 16, seed: int = 0):
        if not 0 <= fraction < 1 or floor <= 0:
            raise CurriculumError(f"the sampler needs 0 <= fraction < 1 and floor > 0, got {fraction} and {floor}")
        self.phases, self.seed = phases, seed
        self.fraction, self.hard_below, self.floor = fraction, hard_below, floor
        self.members: dict[int, list[str]] = {}                # phase number -> its own examples, in data order
        for phase in phases:
            self.members[phase.number] = [key for key in lengths if phase.has(lengths[key])]
            if not self.members[phase.number]:
                raise CurriculumError(f"phase {phase.number} trains on lengths from {phase.low + 1} to {phase.high} "
                                      "tokens, but no example is that long: change --phase-lengths (with a number of "
                                      "--phase-steps for each) or the data")
        self.mean_rewards: dict[str, float] = {}
        self.num_drawn = dict.fromkeys(self.members, 0)        # phase number -> examples it has taken of its own
        self.num_draws = dict.fromkeys(self.members, 0)        # phase number -> batches it has drawn

    def record(self, example_id: str, mean_reward: float) -> None:
        """Remember what a group of answers to this example earned on average. NaN (unscorable) changes nothing."""
        if not math.isnan(mean_reward):
            self.mean_rewards[example_id] = float(mean_reward)

    def difficulty(self, example_id: str) -> float:
        return 1 / max(self.mean_rewards[example_id], self.floor)

    def hard_examples(self, phase: Phase) -> list[str]:
        """The hard examples of all earlier phases, in data order."""
        hard = []
        for number in range(1, phase.number):
            for example_id in self.members[number]:
                if self.mean_rewards.get(example_id, math.inf) <= self.hard_below:
                    hard.append(example_id)
        return hard

    def num_reserved(self, n: int) -> int:
        """How many of a batch of `n` are hard examples of earlier phases, if there are that many."""
        return int(self.fraction * n + 0.5)

    def largest_draw(self, n: int) -> int:
        """The most examples that `draw` can return for `n`, over all phases and whatever is hard."""
        largest = num_earlier = 0
        for phase in self.phases:
            num_own = len(self.members[phase.number])
            num_hard = min(self.num_reserved(n), num_earlier)
            largest = max(largest, num_own + num_hard)
            num_earlier += num_own
        return min(n, largest)

    def draw(self, phase: Phase, n: int) -> list[str]:
        """`n` different ids, or fewer if there are fewer: the phase's own, then hard ones of earlier phases."""
        hard = self.hard_examples(phase)
        rng = random.Random(f"{self.seed}/retrospective/{phase.number}/{self.num_draws[phase.number]}")
        chosen = []
        num_chosen = min(self.num_reserved(n), len(hard))
        for _ in range(num_chosen):
            weights = list(map(self.difficulty, hard))
            example_id = rng.choices(hard, weights)[0]
            hard.remove(example_id)                            # no repeats within a batch
            chosen.append(example_id)
        self.num_draws[phase.number] += 1
        return self._draw_own(phase.number, n - len(chosen)) + chosen

    def _draw_own(self, number, n):
        """The next `n` examples of the phase's own. The rest of an epoch is skipped if it is too short for a batch."""
        members = self.members[number]
        n = min(n, len(members))
        epoch, start = divmod(self.num_drawn[number], len(members))
        if start + n > len(members):
            epoch, start = epoch + 1, 0
        self.num_drawn[number] = epoch * len(members) + start + n
        order = epoch_order(len(members), f"{self.seed}/order/{number}/{epoch}")
        return [members[place] for place in order[start:start + n]]

    def state_dict(self) -> dict:
        """JSON-ready. A sampler that loads it draws what this one would have drawn."""
        return {"mean_rewards": dict(self.mean_rewards),
                "num_drawn": {str(number): count for number, count in self.num_drawn.items()},
                "num_draws": {str(number): count for number, count in self.num_draws.items()}}

    def load_state_dict(self, state: Mapping) -> None:
        """Load a state_dict, or what eval.py --difficulty writes, which has only mean_rewards."""
        self.mean_rewards = dict(state["mean_rewards"])
        for name in ("num_drawn", "num_draws"):
            counts = getattr(self, name)
            for number, count in state.get(name, {}).items():
                counts[int(number)] = count
