"""Mixtures of tasks: what --task says, and the examples that are left then."""

import random
from collections.abc import Mapping, Sequence
from math import inf, nan

from ..errors import ConfigError, DataError
from ..records import Example
from ..reward.tasks import TASKS


def shares(words: Sequence[str]) -> dict[str, float]:
    """{task: share} from the words of --task. A share is 1 if it is left out. Raises ConfigError.

    >>> shares(["qa=2", "f1"])
    {'qa': 2.0, 'f1': 1.0}
    """
    result = {}
    for word in words:
        task, equals, share = word.partition("=")
        if task not in TASKS:
            raise ConfigError(f"--task {word}: there is no task {task!r}; known are {', '.join(TASKS)}")
        if task in result:
            raise ConfigError(f"--task {word}: {task} is named twice")
        try:
            result[task] = float(share) if equals else 1.0
        except ValueError:
            result[task] = nan
        if not 0 < result[task] < inf:
            raise ConfigError(f"--task {word}: a share is a number above 0, as in {task}=2")
    return result


def mix(examples: Sequence[Example], shares: Mapping[str, float], seed: int) -> list[Example]:
    """Only the examples of these tasks, in these proportions and in the old order.

    The task with the fewest examples for its share keeps all of them. The others lose some, chosen by the seed.
    Raises DataError for a task without examples."""
    places = {task: [i for i, example in enumerate(examples) if example.task == task] for task in shares}
    for task in shares:
        if not places[task]:
            raise DataError(f"--task {task}: none of the {len(examples)} examples is of this task")
    unit = min(len(places[task]) / share for task, share in shares.items())
    chosen = []
    for task, share in shares.items():
        random.Random(f"{seed}/mix/{task}").shuffle(places[task])
        chosen += places[task][:max(1, round(unit * share))]
    return [examples[i] for i in sorted(chosen)]
