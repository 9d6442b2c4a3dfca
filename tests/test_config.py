"""Flags, presets, --help; exit codes, and the directory of a run."""

from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Literal

import pytest

import eval as eval_script
import sample
import train_rl
import train_sft
from nanoqwenlong.errors import ConfigError, DataError, ModelError, OutOfBlocks
from nanoqwenlong.ops import exits, flags
from nanoqwenlong.ops.flags import parse
from nanoqwenlong.ops.settings import Settings, fixed, free, free_names


@dataclass(frozen=True)
class Config:
    preset: str = ""
    name: str = "run"                   # a word about the name
    runs_dir: str = "runs"
    steps: int = fixed(10, least=-9)
    learning_rate: float = fixed(1e-3, least=-9)
    data: tuple[str, ...] = ()
    ends: tuple[int, ...] = (1, 2)
    dry_run: bool = False
    shuffle: bool = True
    source: Literal["near", "far"] = "near"


PRESETS = {"tiny": {"steps": 3, "learning_rate": 0.5, "ends": (7, 8)}, "big": {"steps": 1000}}
PRESETS["huge"] = {**PRESETS["tiny"], "steps": 10**6, "dry_run": True, "name": "n" * 60, "runs_dir": "r" * 60}


def read(words: str) -> Config:
    return parse(Config, words.split(), PRESETS)


@pytest.mark.parametrize("words, field, value", [
    ("", "steps", 10),
    ("--steps 7", "steps", 7),
    ("--steps=7", "steps", 7),
    ("--steps -7", "steps", -7),
    ("--steps=-7", "steps", -7),
    ("--learning-rate 2e-6", "learning_rate", 2e-6),
    ("--learning_rate=2e-6", "learning_rate", 2e-6),
    ("--learning-rate -1", "learning_rate", -1.0),
    ("--name 5", "name", "5"),
    ("--name=a=b", "name", "a=b"),
    ("--name a=b=c", "name", "a=b=c"),
    ("--name=--steps", "name", "--steps"),
    ("--name=", "name", ""),
    ("--data a.jsonl b=c.jsonl", "data", ("a.jsonl", "b=c.jsonl")),
    ("--data=a.jsonl --steps 1", "data", ("a.jsonl",)),
    ("--ends 20000 60000", "ends", (20000, 60000)),
    ("--ends -1", "ends", (-1,)),
    ("--dry-run", "dry_run", True),
    ("--dry-run --steps 1", "dry_run", True),
    ("--dry_run false", "dry_run", False),
    ("--shuffle=False", "shuffle", False),
    ("--shuffle TRUE", "shuffle", True),
    ("--source far", "source", "far"),
])
def test_a_flag_sets_a_field_of_its_type_and_no_other(words, field, value):
    found = read(words)
    assert getattr(found, field) == value and type(getattr(found, field)) is type(value)
    changed = {name for name in vars(found) if getattr(found, name) != getattr(Config(), name)}
    assert changed <= {field, "steps"}


@pytest.mark.parametrize("words, named", [
    ("--step 7", ["--step", "did you mean --steps?"]),
    ("--leaning-rate=3", ["--leaning-rate", "did you mean --learning-rate?"]),
    ("--zzz", ["--zzz", "did you mean --"]),
    ("--", ["did you mean --"]),
    ("--steps", ["--steps", "int", "nothing"]),
    ("--steps --dry-run", ["--steps", "int", "nothing"]),
    ("--name", ["--name", "str"]),
    ("--data", ["--data"]),
    ("--data --dry-run", ["--data"]),
    ("--steps 1 2", ["--steps", "1 2"]),
    ("--steps many", ["--steps", "int", "'many'"]),
    ("--steps 1.5", ["--steps", "int", "'1.5'"]),
    ("--steps=", ["--steps", "int"]),
    ("--learning-rate fast", ["--learning-rate", "float", "'fast'"]),
    ("--ends 1 two", ["--ends", "int", "'1 two'"]),
    ("--dry-run maybe", ["--dry-run", "bool", "'maybe'"]),
    ("--source middle", ["--source", "near, far", "middle"]),
    ("--source near far", ["--source", "near, far", "near far"]),
    ("--source", ["--source", "near, far", "nothing"]),
    ("--steps 1 --steps 2", ["--steps", "twice"]),
    ("--learning-rate 1 --learning_rate=1", ["learning", "rate", "twice"]),
    ("7 --steps 1", ["'7'", "before any flag"]),
    ("-x", ["'-x'"]),
    ("--preset vast", ["--preset", "vast", "tiny", "big"]),
])
def test_a_flag_that_cannot_be_used_is_named(words, named):
    with pytest.raises(ConfigError) as error:
        read(words)
    assert all(name in str(error.value) for name in named) and "\n" not in str(error.value), str(error.value)


def test_flags_win_over_presets_and_presets_over_defaults_in_any_order():
    for words in ("--preset tiny --steps 5", "--steps 5 --preset tiny"):
        found = read(words)
        assert (found.preset, found.steps, found.learning_rate, found.ends, found.name) == (
            "tiny", 5, 0.5, (7, 8), "run")
    assert read("--preset=big").steps == 1000 and read("").steps == 10


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        read("").steps = 3


@pytest.mark.parametrize("words", ["--help", "-h", "--nonsense 3 --help"])
def test_help_is_the_source_with_its_comments_and_the_presets(words, capsys):
    with pytest.raises(SystemExit) as stop:
        read(words)
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert 'name: str = "run"                   # a word about the name' in shown and __doc__.strip() in shown
    presets = shown[shown.index("\n--preset"):].split("\n\n")
    assert [" ".join(text.split()) for text in presets] == [
        "--preset tiny: --steps 3 --learning-rate 0.5 --ends 7 8", "--preset big: --steps 1000",
        f"--preset huge: as tiny, and --steps 1000000 --dry-run --name {'n' * 60} --runs-dir {'r' * 60}"]
    assert [line.split()[0] for line in presets[2].splitlines()] == ["--preset", "--name", "--runs-dir"]


@dataclass(frozen=True)
class Short(Settings):
    name: str = free("short")           # another default
    rate: float = fixed(1.0, least=0.5)  # with a comment
                                        # that goes on
    chance: float = 0.5                 # at least 0


def test_help_shows_inherited_settings_once_with_the_subclass_first():
    lines = flags.manual(Short, {}).splitlines()
    for name in Short.__dataclass_fields__:
        assert sum(line.startswith(f"    {name}: ") for line in lines) == 1, name
    assert '    name: str = free("short")           # another default' in lines
    assert lines.index("class Short(Settings):") < lines.index("class Settings(Common):")
    assert sum("that goes on" in line for line in lines) == 1 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("words, said", [
    ("--rate 0.4", "--rate must be at least 0.5, got 0.4"), ("--rate nan", "--rate must be at least 0.5, got nan"),
    ("--rate inf", "--rate must be a finite number of at least 0.5, got inf"), ("--seed -1", "--seed must be at least"),
    ("--chance -0.1", "--chance must be at least 0, got -0.1"), ("--save-every 0", "--save-every must be at least 1"),
    ("--keep 0", "--keep must be at least 1"), ("--timeout-minutes 0", "--timeout-minutes must be at least 1e-09")])
def test_a_number_out_of_range_is_refused(words, said):
    with pytest.raises(ConfigError) as error:
        parse(Short, words.split())
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("numbers", [(), (1, 2), (3,), (2, 2), (3, 2), (0, 1)])
def test_numbers_that_should_rise(numbers):
    cfg = Config(ends=numbers)
    if numbers in ((), (1, 2), (3,)):
        flags.rising(cfg, "ends")
    else:
        with pytest.raises(ConfigError, match="--ends should rise from 1 or more, got "):
            flags.rising(cfg, "ends")


@pytest.mark.parametrize("value, words", [((20000, 60000), ["20000", "60000"]), (True, []), (False, ["False"])])
def test_the_words_of_one_flag(value, words):
    assert flags.flag_words("phase_lengths", value) == ["--phase-lengths", *words]


@pytest.mark.parametrize("script", [train_rl, train_sft, eval_script, sample], ids=lambda script: script.__name__)
def test_another_default_leaves_a_shared_setting_free_or_fixed(script):
    shared = free_names(Settings)
    assert free_names(script.Config) & Settings.__dataclass_fields__.keys() == (
        shared & script.Config.__dataclass_fields__.keys() if issubclass(script.Config, Settings) else {
            "device", "threads"})


def test_the_resolved_config_as_json():
    assert flags.as_json(read("--preset tiny --data a b --name ü")) == {
        "preset": "tiny", "name": "ü", "runs_dir": "runs", "steps": 3, "learning_rate": 0.5, "data": ["a", "b"],
        "ends": [7, 8], "dry_run": False, "shuffle": True, "source": "near"}


@pytest.mark.parametrize("words", ["", "--preset tiny --data a b --name ü", "--steps=7 --dry-run --shuffle false"])
def test_flags_of_a_config_give_it_again(words):
    cfg = read(words)
    assert replace(parse(Config, flags.flags(cfg)), preset=cfg.preset) == cfg


# The life of a run

@pytest.mark.parametrize("error, code", [
    (None, 0),
    (DataError("d.jsonl:3: it is bad"), 65),
    (ModelError("config.json: it is bad"), 65),
    (FileNotFoundError("d.jsonl is not there"), 66),
    (OSError(28, "No space left on device"), 74),
    (PermissionError(13, "Permission denied"), 74),
    (ConfigError("--steps is bad"), 78),
    (OutOfBlocks("raise --kv-blocks"), 78),
    (KeyboardInterrupt(), 130),
])
def test_what_a_user_can_mend_is_one_sentence_and_a_code(error, code, capsys):
    def main(cfg):
        if error:
            raise error
        assert cfg.steps == 4

    assert exits.start(main, Config, PRESETS, ["--steps", "4"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.strip() == ("interrupted" if code == 130 else getattr(error, "strerror", None) or str(error or ""))


def test_bad_flags_exit_78_before_main_and_help_exits_0(capsys):
    assert exits.start(pytest.fail, Config, PRESETS, ["--step", "4"]) == 78
    assert "did you mean --steps?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        exits.start(pytest.fail, Config, PRESETS, ["--help"])
    assert stop.value.code == 0


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, AssertionError])
def test_a_bug_of_ours_keeps_its_traceback(error):
    def main(cfg):
        raise error("ours")

    with pytest.raises(error):
        exits.start(main, Config, PRESETS, [])
