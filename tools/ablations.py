"""The tables and the picture of recipes/ablations.sh, from the files that its runs left behind:

    python -m tools.ablations runs/ablations                 writes table.md and ablations.png there
    python -m tools.ablations runs/ablations --models 0      the models of seed 0 that the table is about

A run is named KIND-SEED. What is compared with what, and under which name, stands in STUDIES. A cell is the mean over
the seeds and their standard deviation; one seed of a kind that others have lacks is an error, not a smaller mean.
"""

import argparse
import json
import sys
from itertools import accumulate
from pathlib import Path
from statistics import mean, stdev

from tools.plot import PALETTE, label_of, moving_average, read_metrics, style

# The study of a table: {name of a row: (kind of run, which of its checkpoints)}. "end": the last; "tokens", "seconds":
# the one at which it had used as many as the phased run from the same model.
STARTS = {"base": ("base", "end"), "short SFT": ("short", "end"), "long SFT": ("long", "end"),
          "RL from base": ("rl_base", "end"), "RL from short SFT": ("rl_short", "end"),
          "RL from long SFT": ("rl_long", "end")}
CURRICULA = {"phases, retrospective sampling": ("rl_base", "end"), "phases alone": ("no_retro", "end"),
             "one stage, equal tokens": ("single", "tokens"), "one stage, equal time": ("single", "seconds")}
JUDGES = {"warm-up": ("other_words", "end"), "RL with the rule": ("rule", "end"),
          "RL with rule and judge": ("hybrid", "end")}
TASKS = {"warm-up": ("three_tasks", "end"), "GRPO": ("grpo", "end"), "TMN-Reweight": ("tmn", "end")}
STUDIES = {"lookups": {**STARTS, **CURRICULA}, "judge": JUDGES, "tasks": TASKS}
