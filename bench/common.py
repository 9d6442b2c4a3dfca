"""What the comparisons share: a random model, one process per side, turns, one table and one JSON line.

A side is a function that loads its model and inputs, warms up on a few tokens, and returns its functions by name. Each
side has its own process, so its peak memory is its own. The sides take turns, so whatever else slows the machine slows
all of them.
"""

import datetime
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median as middle

import torch

from nanoqwenlong.errors import ConfigError
from nanoqwenlong.ops.flags import at_least
from nanoqwenlong.pretrained.weights import read_config
from nanoqwenlong.records import Completion, Group

MB = 2**20
PRELOADED = ["torch", "transformers.models.qwen2.modeling_qwen2", "transformers.generation.utils"]


def random_model(directory: str | Path, cfg) -> None:
    """Writes transformers' own Qwen2 of the shape in `cfg`, untied. Biases are random too, so that mistakes in them
    show. Weights are wide enough (cfg.initializer_range) that greedy answers do not repeat one token."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    at_least(cfg, hidden=2, layers=1, heads=1, kv_heads=1, intermediate=1, vocab=2, initializer_range=0)
    if cfg.hidden % (2 * cfg.heads) or cfg.heads % cfg.kv_heads:
        raise ConfigError(f"--hidden {cfg.hidden} must be an even multiple of --heads {cfg.heads}, and that a multiple "
                          f"of --kv-heads {cfg.kv_heads}")
    quiet()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=cfg.vocab, hidden_size=cfg.hidden, intermediate_size=cfg.intermediate, num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads, num_key_value_heads=cfg.kv_heads, max_position_embeddings=2**17,
        initializer_range=cfg.initializer_range, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=cfg.initializer_range)
    model.save_pretrained(directory)


@contextmanager
def model_of(cfg) -> Iterator[tuple]:
    """(directory, cfg, its shape in words): the model of `--model`, with cfg.vocab set to its vocabulary, or a random
    one in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        if cfg.model:
            config = read_config(cfg.model)
            yield cfg.model, replace(cfg, vocab=config.vocab_size), f"{Path(cfg.model).name}, {shape_of(config)}"
        else:
            random_model(directory, cfg)
            yield directory, cfg, shape_of(read_config(directory))


def shape_of(config) -> str:
    return f"hidden {config.hidden_size}, {config.num_hidden_layers} layers"


def transformers_model(directory: str):
    """A model as transformers runs it fastest on a CPU. Without an end token nothing stops early."""
    from transformers import AutoModelForCausalLM
    quiet()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    return model


def quiet() -> None:
    """Turns off transformers' progress bars, and the notes of transformers and TRL on later renames."""
    from transformers.utils import logging
    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def random_ids(cfg, *shape: int, seed: int = 0) -> list:
    """Token ids as nested lists, the same in every process. Id 0 is left out, because it is padding elsewhere."""
    return torch.randint(1, cfg.vocab, shape, generator=torch.Generator().manual_seed(seed)).tolist()


def random_group(cfg, group_size: int, prompt: int, answer: int) -> tuple[Group, torch.Tensor]:
    """A group of random answers to a random prompt, and an advantage (G,) for each."""
    answers = random_ids(cfg, group_size, answer, seed=1)
    completions = tuple(Completion(tuple(ids), (0.0,) * answer, "length") for ids in answers)
    advantages = torch.randn(group_size, generator=torch.Generator().manual_seed(2))
    return Group(0, tuple(random_ids(cfg, prompt)), completions), advantages


def policy_gradient(group: Group, advantages: torch.Tensor) -> Callable:
    """For group_pass.backward: -sum_i A_i sum_t logprob_it / num_tokens, whose gradient is GRPO's when the policy that
    learns is the one that answered."""
    lengths = torch.tensor([len(completion.ids) for completion in group.completions])

    def loss(rows, logprobs, entropy):
        rows = list(rows)
        return -(advantages[rows].repeat_interleave(lengths[rows]) * logprobs).sum() / group.num_tokens
    return loss


@contextmanager
def processes(sides: dict[str, tuple]) -> Iterator[dict[str, Callable]]:
    """{name: (set_up, *arguments)} -> {name: ask}. Each side has its own process until the block ends.

    ask(function, *arguments) waits for one call and returns its outcome with seconds, cpu_seconds and peak_bytes."""
    context = multiprocessing.get_context("forkserver")       # children of a clean process with imports only
    context.set_forkserver_preload(PRELOADED)
    pipes, workers = {}, []
    try:
        for name, (set_up, *arguments) in sides.items():
            pipes[name], theirs = context.Pipe()
            workers.append(context.Process(target=serve, args=(theirs, set_up, arguments), daemon=True))
            workers[-1].start()
            theirs.close()
            receive(pipes[name], name)                        # wait until it is ready: sides load in turn
        yield {name: partial(ask, pipe, name) for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            pipe.close()                                      # ends serve
        for worker in workers:
            worker.join(timeout=5)
            worker.terminate()


def serve(pipe, set_up: Callable, arguments: list) -> None:
    """The life of a side: set up, then one call after another until the pipe closes."""
    torch.set_num_threads(1)
    try:
        functions = set_up(*arguments)
        base = memory("VmRSS")
        pipe.send({})
        while True:
            name, *arguments = pipe.recv()
            forget_peak()
            start, cpu_start = time.perf_counter(), time.process_time()
            outcome = functions[name](*arguments)
            measured = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start,
                        "peak_bytes": memory("VmHWM") - base}
            pipe.send({**measured, **(outcome or {})})        # a side may time itself in its outcome
    except (EOFError, BrokenPipeError):
        pass                                                  # the pipe is closed
    except Exception:
        pipe.send(traceback.format_exc())


def ask(pipe, name: str, function: str, *arguments) -> dict:
    pipe.send((function, *arguments))
    return receive(pipe, name)


def receive(pipe, name: str) -> dict:
    try:
        outcome = pipe.recv()
    except EOFError:
        raise SystemExit(f"the process of {name!r} ended; if memory ran out, try a smaller shape") from None
    if isinstance(outcome, str):
        raise SystemExit(f"{name!r} failed:\n{outcome}")
    return outcome


def memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the peak since forget_peak. Without /proc both are the peak since the
    process began, which is still right for one kind of run per process."""
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def take_turns(asks: dict[str, Callable], rounds: int) -> tuple[dict[str, dict], dict[str, dict]]:
    """Calls each side's `run` once a round. Returns {name: {"median", "seconds", "cpu_seconds", "peak_mb" (the
    highest)}}, and the outcomes of the last round."""
    runs = {name: [] for name in asks}
    for _ in range(rounds):
        for name, ask in asks.items():
            runs[name].append(ask("run"))
    results = {name: {"median": middle([run["seconds"] for run in found]),
                      "seconds": [run["seconds"] for run in found],
                      "cpu_seconds": [run["cpu_seconds"] for run in found],
                      "peak_mb": max(run["peak_bytes"] for run in found) / MB} for name, found in runs.items()}
    return results, {name: found[-1] for name, found in runs.items()}


def largest_difference(one: Path, other: Path) -> float:
    """The largest |a - b| / |b| over the tensors of two files, with Euclidean norms. NaN if any tensor has one."""
    from safetensors.torch import load_file
    one, other = load_file(one), load_file(other)
    if one.keys() != other.keys():
        raise SystemExit(f"the sides have different parameters: {sorted(one.keys() ^ other.keys())}")
    return float(torch.stack([(one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-30)
                              for name in one]).max())


def product_rate() -> float:
    """Operations per CPU second of a float32 matrix product of 1,024 x 1,024 by 1,024 x 1,024."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: torch.mm(a, a))


def copy_rate() -> float:
    """Bytes copied per CPU second, in a tensor that does not fit into a cache."""
    source, target = torch.ones(2**26), torch.empty(2**26)
    return source.nbytes / cpu_seconds(lambda: target.copy_(source))


def cpu_seconds(call: Callable) -> float:
    """The median of seven calls."""
    seconds = []
    for _ in range(8):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return middle(seconds[1:])


def table(rows: list[list]) -> str:
    """Rows of cells as aligned columns: the first to the left, the others to the right. The first row is the head."""
    rows = [[cell if isinstance(cell, str) else f"{cell:.3g}" if cell < 1000 else f"{cell:.0f}" for cell in row]
            for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def report(bench: str, cfg, results: dict[str, dict], check: dict, **more) -> None:
    """Prints the table (every side beside "ours"), the check, and the JSON line. If the check failed, ends the program
    with a sentence, because the ratio of two different computations means nothing."""
    of = {"time": lambda side: side["median"], "cpu": lambda side: middle(side["cpu_seconds"]),
          "memory": lambda side: max(side["peak_mb"], 1e-9)}
    ratios = {name: {what: value(side) / value(results["ours"]) for what, value in of.items()}
              for name, side in results.items()}
    rows = [["", "median s", "fastest", "slowest", "cpu s", "peak MB", "x our time", "x our cpu", "x our memory"]]
    for name, side in results.items():
        rows.append([name, side["median"], min(side["seconds"]), max(side["seconds"]), of["cpu"](side), side["peak_mb"],
                     *(f"{ratio:.2f}" for ratio in ratios[name].values())])
    print(table(rows))
    print("check:", ", ".join(f"{what} {value}" for what, value in check.items()))
    json_line(bench, cfg, results=results, ratios=ratios, check=check, **more)
    if not check["passed"]:
        raise SystemExit("the sides did not compute the same, so the ratios above mean nothing")


def json_line(bench: str, cfg, packages: tuple[str, ...] = (), **found) -> None:
    """Prints everything once more for programs, with versions and without anything about the machine."""
    versions = {package: version(package) for package in ("torch", "transformers", *packages)}
    print(json.dumps({"bench": bench, "versions": versions, "date": datetime.date.today().isoformat(),
                      "config": asdict(cfg), **rounded(found)}))


def rounded(value):
    """Numbers of a nested structure with five significant digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
