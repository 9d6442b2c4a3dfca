"""Every error a user may meet: one sentence says what is wrong, where, and what to do. Exit codes follow sysexits.h."""

DONE, BAD_DATA, MISSING_INPUT, UNAVAILABLE, INTERNAL, IO_ERROR, STOPPED, BAD_CONFIG, INTERRUPTED = (
    0, 65, 66, 69, 70, 74, 75, 78, 130)


class UserError(Exception):
    """The base of all errors below. Scripts print its message without a traceback."""
    exit_code = INTERNAL


class ConfigError(UserError, ValueError):
    """A setting that is unknown, out of range, or in conflict with another one. The message names the flag."""
    exit_code = BAD_CONFIG


class CurriculumError(ConfigError):
    """Phases or a sampler that cannot work. The message names the setting to change."""


class SamplingError(ConfigError):
    """Sampling settings that cannot work. The message names them."""


class NaNLogits(SamplingError):
    """The model's logits are NaN."""
    exit_code = INTERNAL


class OutOfBlocks(UserError, RuntimeError):
    """The KV cache has too few blocks for even one answer."""
    exit_code = BAD_CONFIG


class DeviceError(ConfigError):
    """The device does not exist or cannot compute."""


class DataError(UserError, ValueError):
    """Invalid data. The message names the file, the line and the field."""
    exit_code = BAD_DATA


class ModelError(UserError, ValueError):
    """An invalid model directory. The message names the file or tensor and what is wrong with it."""
    exit_code = BAD_DATA


class JudgeUnavailable(UserError, RuntimeError):
    """The judge left too many answers without a verdict. The message says what it did instead."""
    exit_code = UNAVAILABLE


class NonFinite(UserError, ArithmeticError):
    """The loss or gradient was NaN or infinite several times in a row."""


class OutOfMemory(UserError, RuntimeError):
    """Memory ran out. The message says where, and what to change."""


class LostRanks(UserError, RuntimeError):
    """Another rank died or did not answer in time. The message says which, where that is known."""


class Stopped(UserError):
    """A signal stopped the run and everything is saved. The same command resumes it."""
    exit_code = STOPPED


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be read. The message names the file."""
    exit_code = IO_ERROR


class Elsewhere(UserError, OSError):
    """An I/O error on another rank, which reports it itself."""
    exit_code = IO_ERROR


def exit_code(error: BaseException | None) -> int:
    """The exit code of a script that ended with this error (None: it ended well)."""
    if error is None:
        return DONE
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, OSError):
        return MISSING_INPUT if isinstance(error, FileNotFoundError) else IO_ERROR
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else INTERNAL


def reason(error: BaseException) -> str:
    """What went wrong, and with which file. Of an OSError it leaves out the number."""
    if not getattr(error, "strerror", None):
        return str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
    return (f"{error.filename}: " if error.filename else "") + error.strerror


def choose(table: dict, name: str, what: str):
    """The entry of a lookup table. Raises ConfigError that lists the valid names."""
    if name not in table:
        raise ConfigError(f"{what} {name!r} is unknown: choose one of {', '.join(table)}")
    return table[name]
