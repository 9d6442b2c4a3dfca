"""How a script starts and ends: its exit code, and one sentence for every error that a user can repair."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .. import errors, parallel
from . import flags
from .console import tell, with_exit_code
from .presets import SOURCES

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")           # a run finishes its step after these


def start(main: Callable, config_class, presets: dict[str, dict], argv: list[str], leave: Callable = int) -> int:
    """Parse the flags, call main(config) and return leave(exit code). A user's error prints one sentence, a bug raises.
    The signal handlers of a run stay in place until `leave` returns."""
    handlers = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, SIGNALS)}
    try:
        return leave(_call(main, config_class, presets, argv))
    except Exception:
        if leave is int:
            raise
        sys.excepthook(*sys.exc_info())
        return leave(errors.INTERNAL)
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


@with_exit_code
def _call(main: Callable, config_class, presets: dict[str, dict], argv: list[str]) -> int:
    try:
        main(flags.parse(config_class, argv, presets))
        parallel.stop()
        return errors.DONE
    except BaseException as raised:
        error = parallel.lost_ranks(raised) or raised
        if not isinstance(error, errors.UserError | OSError | KeyboardInterrupt):
            raise
        # Other errors are the same on all ranks, and the first one reports them.
        of_this_rank = isinstance(error, errors.OutOfMemory | errors.LostRanks | errors.SamplingError | OSError) and (
            not isinstance(error, errors.Elsewhere | FileNotFoundError))
        if parallel.rank() == 0 or of_this_rank:
            tell(sentence(error), sys.stderr)
            if parallel.is_launched():
                tell("torchrun now reports this exit with a traceback of its own. That is expected.", sys.stderr)
        return errors.exit_code(error)


def exit_process(code: int) -> NoReturn:
    """Exit a script without the interpreter's shutdown. There a signal would kill it, because Python's handlers are
    gone, and gloo threads crashed one finished run in thirty (SIGABRT)."""
    os._exit(code)


def sentence(error: BaseException) -> str:
    """The sentence that reports an error. If a released model is missing, it says how to download it."""
    if " assets/nano-" in str(error) and not os.path.exists("assets"):
        return "assets/ is not here: run the scripts in the directory that holds them, or give --model"
    text = errors.reason(error)
    for source in SOURCES.values():
        place = f"models/{source.split('/')[1]}"
        if isinstance(error, FileNotFoundError) and place in text.replace(":", "").split():
            text += f"; to download it: hf download {source} --local-dir {place}"
    return text


def memory_sentence(config, step: int, part: str, longest: int) -> str:
    """The sentence that reports too little memory, with the next flag that saves some. part, longest: see Run.part."""
    if not part:
        return f"out of memory: give fewer --kv-blocks than {config.kv_blocks}, or --offload, or use more ranks"
    blocks, tokens = max(config.kv_blocks // 2, -(-longest // 16)), max(1, longest, config.max_tokens // 2)
    samples = part in ("sample", "evaluate")
    advice = [(samples and blocks < config.kv_blocks, f"resume with --kv-blocks {blocks}"),
              (not samples and not config.checkpointing, "resume with --checkpointing"),
              (not samples and tokens < config.max_tokens, f"resume with --max-tokens {tokens}"),
              (not samples and not config.offload, "resume with --offload"),
              (True, f"start again under another --name with --max-prompt-tokens {longest * 3 // 4}")]
    text = next(text for applies, text in advice if applies)
    return f"out of memory in step {step} ({part}; the longest sequence has {longest} tokens): {text}"
