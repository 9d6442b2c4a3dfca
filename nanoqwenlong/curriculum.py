"""Which examples a step trains on: length phases, and the hard examples that come back. Pure Python.

QwenLong-L1 section 2.4: phase k trains on lengths in (L_{k-1}, L_k] (Eq. 9); from phase to phase the hard examples of
the earlier ones are carried over, drawn with weight diff(x) = 1 / mean reward of a group of answers (Eq. 10). That is
infinite where nobody ever answered right, which is what the paper keeps in practice, so the mean has a floor here.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .errors import CurriculumError


@dataclass(frozen=True)
class Phase:
    """Examples of length in (low, high] for a number of steps.

    >>> phases((100, 300), (40, 60))[1]
    Phase(number=2, low=100, high=300, num_steps=60)
    """

    number: int                         # from 1
    low: int
    high: int
    num_steps: int


def phases(lengths: Sequence[int], steps: Sequence[int]) -> list[Phase]:
    """Phase k from L_{k-1} (0 at first) to L_k = lengths[k - 1]."""
    if len(lengths) != len(steps) or not lengths or list(lengths) != sorted(set(lengths)) or (
            lengths[0] < 1 or min(steps) < 1):
        raise CurriculumError(f"phases need rising lengths and a step count for each, got lengths {tuple(lengths)} and "
                              f"steps {tuple(steps)}")
    return [Phase(k + 1, low, high, num) for k, (low, high, num) in enumerate(zip((0, *lengths), lengths, steps))]


def bucket(length: int, lengths: Sequence[int]) -> str:
    """The name of the phase interval a length falls into, as metrics spell it.

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
    """0 ... num - 1 in an order that is a function of the name; kept, as every batch of an epoch asks for it."""
    order = list(range(num))
    random.Random(name).shuffle(order)
    return tuple(order)


class RetrospectiveSampler:
    """Draws example ids: each phase goes through its own examples in shuffled order, epoch after epoch; a fraction of
    every batch are hard examples of earlier phases, the hardest most likely.

    lengths: {example id: length}. Hard: last recorded mean reward <= hard_below; its weight is
    1 / max(mean reward, floor). `record` keeps the newest mean reward, so what is solved stops coming back. A draw is a
    function of the seed, the phase, how often that phase has drawn, and what has been recorded.

    >>> s = RetrospectiveSampler({"a": 10, "b": 12, "c": 90}, phases((50, 100), (1, 1)), fraction=0.5, seed=0)
    >>> sorted(s.draw(s.phases[0], 2)); s.record("a", 0.125); s.record("b", 1.0)
    ['a', 'b']
    >>> s.draw(s.phases[1], 2)                                   # one of phase 2, and the one that was hard in phase 1
    ['c', 'a']
    """

    def __init__(self, lengths: Mapping[str, int], phases: Sequence[Phase], fraction: float = 0.25,
                 hard_below: float = 0.5, floor: float = 1 / 16, seed: int = 0):
        if not 0 <= fraction < 1 or floor <= 0:
            raise CurriculumError(f"the sampler needs 0 <= fraction < 1 and floor > 0, got {fraction} and {floor}")
        self.phases, self.fraction, self.hard_below, self.floor, self.seed = phases, fraction, hard_below, floor, seed
        self.members = {p.number: [i for i, n in lengths.items() if p.low < n <= p.high] for p in phases}
        for phase in phases:
            if not self.members[phase.number]:
                raise CurriculumError(f"phase {phase.number} trains on lengths from {phase.low + 1} to {phase.high} "
                                      "tokens, but no example is that long: change the phase lengths or the data")
        self.mean_rewards: dict[str, float] = {}
        self.num_drawn = {p.number: 0 for p in phases}                # places of its endless order that are used up
        self.num_draws = {p.number: 0 for p in phases}

    def record(self, example_id: str, mean_reward: float) -> None:
        """What a group of answers to this example earned on average."""
        self.mean_rewards[example_id] = float(mean_reward)

    def difficulty(self, example_id: str) -> float:
        return 1 / max(self.mean_rewards[example_id], self.floor)

    def hard_examples(self, phase: Phase) -> list[str]:
        """The recorded hard examples of all earlier phases, in data order."""
        earlier = [i for number in range(1, phase.number) for i in self.members[number]]
        return [i for i in earlier if self.mean_rewards.get(i, float("inf")) <= self.hard_below]

    def largest_draw(self, n: int) -> int:
        """How many examples `draw` gives at most when it is asked for `n`, whatever the phase and what is hard."""
        sizes = [len(self.members[phase.number]) for phase in self.phases]
        return max(min(n, own + min(self._num_hard(n), sum(sizes[:place]))) for place, own in enumerate(sizes))

    def _num_hard(self, n: int) -> int:
        """How many of a batch of `n` are hard ones of earlier phases, if there are so many."""
        return int(self.fraction * n + 0.5)

    def draw(self, phase: Phase, n: int) -> list[str]:
        """`n` different ids (fewer if there are fewer): the phase's own, then hard ones of earlier phases."""
        hard = self.hard_examples(phase)
        rng = random.Random(f"{self.seed}/retrospective/{phase.number}/{self.num_draws[phase.number]}")
        kept = []
        for _ in range(min(self._num_hard(n), len(hard))):     # without repeats within a batch
            chosen = rng.choices(hard, [self.difficulty(i) for i in hard])[0]
            hard.remove(chosen)
            kept.append(chosen)
        self.num_draws[phase.number] += 1
        return self._draw_own(phase.number, n - len(kept)) + kept

    def _draw_own(self, number: int, n: int) -> list[str]:
        """The next `n` of the phase's own; what is left of an epoch and too little for a batch is left out."""
        members = self.members[number]
        n = min(n, len(members))
        epoch, start = divmod(self.num_drawn[number], len(members))
        if start + n > len(members):
            epoch, start = epoch + 1, 0
        self.num_drawn[number] = epoch * len(members) + start + n
        order = epoch_order(len(members), f"{self.seed}/order/{number}/{epoch}")
        return [members[place] for place in order[start:start + n]]

    def state_dict(self) -> dict:
        """JSON-ready; a sampler that loads it draws what this one would have drawn."""
        return {"mean_rewards": dict(self.mean_rewards),
                "num_drawn": {str(k): v for k, v in self.num_drawn.items()},
                "num_draws": {str(k): v for k, v in self.num_draws.items()}}

    def load_state_dict(self, state: Mapping) -> None:
        """Also takes what eval.py --difficulty writes, which holds mean_rewards only."""
        self.mean_rewards = {str(k): float(v) for k, v in state["mean_rewards"].items()}
        for name in ("num_drawn", "num_draws"):
            getattr(self, name).update({int(k): v for k, v in state.get(name, {}).items()})
