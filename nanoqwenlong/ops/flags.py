"""A commented frozen dataclass is the manual: its fields become flags, its source is the --help text.

For `learning_rate: float = 1e-6`, `--learning-rate 2e-6` and `--learning_rate=2e-6` both set it. `--data A B`
fills a tuple. `--dry-run` alone sets a bool. A preset is a dictionary of values that replace the defaults. Flags win
over presets.
"""

import difflib
import inspect
import json
import re
import sys
import textwrap
import typing
from dataclasses import asdict, fields, is_dataclass

from ..errors import BAD_CONFIG, ConfigError
from .console import say, tell


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(config_class, argv: list[str], presets: dict[str, dict] = {}):
    """An instance of `config_class` from command-line words. `--help` prints the manual and exits. Raises ConfigError
    for an unknown flag, one that is given twice, and a value that is missing, wrong or too small."""
    if "--help" in argv or "-h" in argv:
        say(manual(config_class, presets))
        raise SystemExit(0)
    hints = typing.get_type_hints(config_class)
    given = {name: read_value(name, hints[name], words) for name, words in split_flags(argv, hints).items()}
    preset = given.get("preset", "")
    if preset and preset not in presets:
        raise ConfigError(f"--preset {preset}: there is no such preset; choose one of {', '.join(presets)}")
    config = config_class(**{**presets.get(preset, {}), **given})
    numbers = [field for field in fields(config) if hints[field.name] in (int, float)]
    at_least(config, **{field.name: field.metadata.get("least", 0) for field in numbers})
    return config


def check(config_class, argv: list[str], presets: dict[str, dict] = {}) -> None:
    """Before the slow imports of a script: a wrong flag or --help ends it at once. Afterwards, a missing package and
    Ctrl-C are reported in one sentence."""
    def report(kind, error, traceback):
        if issubclass(kind, ModuleNotFoundError):
            tell(f"{sys.executable} has no package {error.name}: use .venv/bin/python, which `make` makes, or install "
                 "what README.md says", sys.stderr)
        elif kind is KeyboardInterrupt:
            tell("interrupted", sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)
    sys.excepthook = report
    try:
        parse(config_class, argv, presets)
    except ConfigError as error:
        tell(str(error), sys.stderr)
        sys.exit(BAD_CONFIG)


def split_flags(argv: list[str], known) -> dict[str, list[str]]:
    """{"data": ["a.jsonl", "b.jsonl"]} from ["--data", "a.jsonl", "b.jsonl"]."""
    words_of, name = {}, None
    for word in argv:
        if word.startswith("--"):
            flag, has_value, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            if name not in known:
                nearest, = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ConfigError(f"unknown flag --{flag}; did you mean {flag_of(nearest)}?")
            if name in words_of:
                raise ConfigError(f"--{flag} is given twice; keep one")
            words_of[name] = [value] if has_value else []
        elif name is None:
            raise ConfigError(f"{word!r} stands before any flag; flags look like --name value (see --help)")
        else:
            words_of[name].append(word)
    return words_of


def read_value(name: str, hint, words: list[str]):
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        kind, expected = {word: word for word in args}.__getitem__, f"one of {', '.join(args)}"
    elif hint is bool:
        words = words or ["true"]
        kind, expected = (lambda word: {"true": True, "false": False}[word.lower()]), "true or false (bool)"
    elif origin is tuple:
        kind, expected = args[0], f"one or more values of type {args[0].__name__}"
    else:
        kind, expected = hint, f"one value of type {hint.__name__}"
    try:
        values = tuple(map(kind, words))
    except (ValueError, KeyError):
        values = ()
    if not values or len(values) > 1 and origin is not tuple:
        raise ConfigError(f"{flag_of(name)} takes {expected}, got {repr(' '.join(words)) if words else 'nothing'}")
    return values if origin is tuple else values[0]


def at_least(config, **minimums: float) -> None:
    """Raises ConfigError for the first setting that is below its minimum, infinite or NaN."""
    for name, minimum in minimums.items():
        value = getattr(config, name)
        if not minimum <= value < float("inf"):
            finite = "a finite number of " if value == float("inf") else ""
            raise ConfigError(f"{flag_of(name)} must be {finite}at least {minimum}, got {value}")


def rising(config, name: str) -> None:
    """Raises ConfigError unless the numbers of a setting rise and the first is at least 1. It may have no numbers."""
    numbers = getattr(config, name)
    if list(numbers) != sorted(set(numbers)) or min(numbers, default=1) < 1:
        raise ConfigError(f"{flag_of(name)} should rise from 1 or more, got {numbers}")


def manual(config_class, presets: dict[str, dict]) -> str:
    """The text of --help: the script's docstring, the source of its settings and of those that it inherits, and the
    presets. A preset that extends an earlier one shows what it adds."""
    paragraphs, shown = [(inspect.getmodule(config_class).__doc__ or "").strip()], set()
    for base in filter(is_dataclass, config_class.__mro__):
        blocks = re.split(r"\n(?=    \S)", inspect.getsource(base).rstrip())   # a field and the rest of its comment
        paragraphs.append("\n".join(block for block in blocks if block.strip().partition(":")[0] not in shown))
        shown |= base.__annotations__.keys()                   # a subclass gives these another default
    for place, (name, values) in enumerate(presets.items()):
        base = next((other for other in list(presets)[:place] if presets[other].keys() <= values.keys()), None)
        text = f"--preset {name}:  {f'as {base}, and  ' if base else ''}"
        for key, value in values.items():
            if base is None or presets[base].get(key) != value:
                text += "\0".join(flag_words(key, value)) + "  "     # \0: a flag and its value stay on one line
        text = textwrap.fill(text, 120, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        paragraphs.append(text.replace("\0", " "))
    return "\n\n".join(paragraphs)


def flags(config) -> list[str]:
    """The words that give this configuration again, without naming a preset."""
    names = [field.name for field in fields(config) if getattr(config, field.name) != field.default]
    return [word for name in names if name != "preset" for word in flag_words(name, getattr(config, name))]


def flag_words(name: str, value) -> list[str]:
    if value is True:
        return [flag_of(name)]
    return [flag_of(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]


def as_json(config) -> dict:
    return json.loads(json.dumps(asdict(config)))
