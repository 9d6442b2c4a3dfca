"""The life of a run: its directory, its exit code, and one clear sentence instead of a traceback."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from . import config as configuration
from .config import ConfigError
from .curriculum import CurriculumError
from .generate import SamplingError
from .kvcache import OutOfBlocks
from .log import Log
from .optim import NonFinite
from .records import DataError
from .weights import ModelError

DONE, BAD_DATA, MISSING_INPUT, INTERNAL, IO_ERROR, BAD_CONFIG = 0, 65, 66, 70, 74, 78
EXIT_CODES = {ConfigError: BAD_CONFIG, DataError: BAD_DATA, ModelError: BAD_DATA, FileNotFoundError: MISSING_INPUT,
              CurriculumError: BAD_CONFIG, SamplingError: BAD_CONFIG, OutOfBlocks: BAD_CONFIG, NonFinite: INTERNAL,
              OSError: IO_ERROR}


def start(main: Callable, config_class, presets: dict[str, dict], argv: list[str]) -> int:
    """Parse the flags, call main(config), return the exit code. What a user can mend is told in one sentence."""
    try:
        main(configuration.parse(config_class, argv, presets))
        return DONE
    except tuple(EXIT_CODES) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(told, file=sys.stderr)
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def open_directory(config) -> Path | None:
    """RUNS_DIR/NAME, with the resolved config.json in it; None for a dry run. One that holds a run is refused."""
    if config.dry_run:
        return None
    if config.name in ("", ".", "..") or Path(config.name).name != config.name:
        raise ConfigError(f"--name {config.name!r} should be a plain name; --runs-dir says where the run is kept")
    directory = Path(config.runs_dir) / config.name
    if (directory / "metrics.jsonl").exists() or (directory / "checkpoints").exists():
        raise ConfigError(f"{directory} already holds a run; choose another --name, or remove it first")
    directory.mkdir(parents=True, exist_ok=True)
    configuration.save(config, directory / "config.json")
    return directory


def save_checkpoint(logger: Log, step: int, model, tokenizer) -> None:
    """checkpoints/step_NNNNNN of the log's directory (none in a dry run): a Hugging Face directory, which has that name
    only once it is whole."""
    if logger.directory is None:
        return
    final = logger.directory / "checkpoints" / f"step_{step:06d}"
    partial = final.with_name(f".partial-{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(final)
    logger.say(f"saved {final}")
