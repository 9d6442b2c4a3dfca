"""What the README says is true: its map, its commands, its table."""

import re
import shlex
from pathlib import Path

import pytest

import eval as eval_script
import sample
import train_rl
import train_sft
from nanoqwenlong.ops import flags

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"train_sft.py": train_sft, "train_rl.py": train_rl, "eval.py": eval_script, "sample.py": sample}
WRITTEN = [README, (ROOT / "docs/data.md").read_text(encoding="utf-8"),
           *(module.__doc__ for module in SCRIPTS.values())]
COMMANDS = sorted({line.strip().split("   ")[0].split("#")[0] for text in WRITTEN
                   for line in text.replace("\\\n", " ").splitlines()
                   if re.match(r"\s*(python|torchrun( --\S+)+) (\w+\.py)", line)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_in_the_prose_has_flags_that_exist(command):
    words = shlex.split(command)
    script, *argv = words[next(place for place, word in enumerate(words) if word.endswith(".py")):]
    module = SCRIPTS[script]
    flags.parse(module.Config, argv, getattr(module, "PRESETS", {}))
    for word in argv:
        if word.startswith(("examples/", "assets/")):
            assert (ROOT / word).exists(), word


def test_files_and_targets_that_the_readme_names_exist():
    examples = ["examples/notes.txt", "examples/licence_qa.jsonl", "LICENSE"]
    for path in re.findall(r"\]\(([\w./-]+)\)", README) + examples:
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_modules_of_the_map_are_the_modules_there_are():
    named = set(re.findall(r"^  (\w+) +\S|  (\w+)  +\S", README.split("nanoqwenlong/\n")[1].split("kernels/")[0],
                           re.MULTILINE))
    modules = {path.stem for path in (ROOT / "nanoqwenlong").glob("*.py")} - {"__init__"}
    assert modules <= {name for pair in named for name in pair}
