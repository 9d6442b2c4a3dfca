"""Training state in and out, so that a run can never be lost.

A checkpoint is a directory step_000020 with

    config.json, model.safetensors, tokenizer files    a Hugging Face directory: the master weights
    optimizer-00000-of-00002.safetensors, ...          AdamW's state, each rank's own rows
    state.json                                         the rest of the run's state: see run.py
    manifest.json                                      size and SHA-256 of every file above, and of itself

It is written as .partial-step_000020. Every file is synced to the disk, the manifest last, then the directory. Only
then it gets its name. Only when the name is on the disk, too, an older checkpoint is removed. So a directory with that
name is complete. If a disk damages it later, the manifest shows it. Nothing is read through pickle.

No random state is saved: every draw of this project is a function of names (seed, step, example, sample).
"""

import errno
import json
import re
import shutil
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .. import parallel
from ..errors import CheckpointError, ModelError
from ..pretrained import weights
from ..pretrained.digest import file_digest
from .files import sync

FORMAT = 1                              # raise it if older readers would misread a checkpoint
MOMENTS = ("exp_avg", "exp_avg_sq")


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def all_of(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the oldest first."""
    return sorted((path for path in directory.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name)), key=step_of)


# Writing

def save(final: Path, model, tokenizer, optimizer, state: dict) -> None:
    """Write a checkpoint. On return it is on the disk, under its name. All ranks call it.

    An OSError is raised on all ranks. Then older checkpoints are unchanged, and this one is complete (if only the very
    last sync failed) or not there."""
    partial, first = final.with_name(f".partial-{final.name}"), parallel.rank() == 0
    # 1. An empty directory
    parallel.on_all_ranks(lambda: first and _begin(partial, model), "cannot begin a checkpoint")
    # 2. The weights. All ranks gather them, so an error has to wait until the others are done
    weights_error = None
    try:
        model.save_pretrained(partial)
    except OSError as error:
        weights_error = error
    # 3. The other files of each rank
    lists = parallel.on_all_ranks(
        lambda: _write_files(partial, weights_error, tokenizer, model, optimizer, state if first else None),
        "cannot write a checkpoint")
    files = {name: entry for entries in lists for name, entry in entries.items()}
    # 4. The manifest and the name
    parallel.on_all_ranks(lambda: first and _seal(partial, final, files), "cannot finish a checkpoint")


def _begin(partial: Path, model) -> None:
    _remove(partial)
    partial.mkdir(parents=True)
    needed = 3 * sum(parameter.nbytes for parameter in model.parameters())     # weights, and two moments of each
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the disk is full: a checkpoint needs {needed:,} bytes, {free:,} are free; "
                                    "make room, older checkpoints are untouched", str(partial))


def _write_files(partial: Path, weights_error: OSError | None, tokenizer, model, optimizer, state: dict | None) -> dict:
    """Write and sync this rank's files. Returns their entries in the manifest. state: only on the first rank."""
    if weights_error:
        raise weights_error
    tensors, first_rows = optimizer_tensors(model, optimizer)
    name = f"optimizer-{parallel.rank():05d}-of-{parallel.size():05d}.safetensors"
    weights.write_file(partial / name, tensors, {"rows": json.dumps(first_rows, sort_keys=True)})
    names = [name]
    if state is not None:
        tokenizer.save_pretrained(partial)
        state = {"format": FORMAT, "world_size": parallel.size(), "torch": torch.__version__, **state}
        weights.write_json(partial / "state.json", state)
        names += [path.name for path in partial.iterdir()      # .tmp...: another rank is writing
                  if not path.name.startswith(("optimizer-", "."))]
    for name in names:
        sync(partial / name)
    return {name: _entry(partial / name) for name in sorted(names)}


def _entry(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _seal(partial: Path, final: Path, files: dict) -> None:
    (partial / "manifest.json").write_text(manifest_text(files), encoding="utf-8")
    sync(partial / "manifest.json")
    sync(partial)
    _remove(final)                                             # a damaged one that was passed over
    partial.rename(final)
    sync(final.parent)
    sync(final.parent.parent)                                  # this has the name of checkpoints/ itself


def set_aside(directory: Path, newer_than: Path | None) -> None:
    """Rename checkpoints that were passed over to spoilt_step_..., so that they no longer count."""
    if parallel.rank() == 0:
        for path in all_of(directory):
            if newer_than is None or step_of(path) > step_of(newer_than):
                _remove(path.with_name(f"spoilt_{path.name}"))
                path.rename(path.with_name(f"spoilt_{path.name}"))


def prune(directory: Path, keep: int, ends: Collection[int] = ()) -> None:
    """Remove all checkpoints but the `keep` newest and those of the steps in `ends`, and unfinished directories."""
    if parallel.rank() == 0:
        for path in all_of(directory)[:-keep]:
            if step_of(path) not in ends:
                _remove(path)
        for path in [*directory.glob(".partial-*"), *directory.glob(".removed-*")]:
            shutil.rmtree(path, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Remove a directory. It loses its name first, because half a checkpoint must not look like one."""
    if directory.exists():
        doomed = directory.with_name(f".removed-{directory.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def manifest_text(files: dict) -> str:
    """The manifest. Its last line is the SHA-256 of the lines before it."""
    text = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n"
    return text + sha256(text.encode()).hexdigest() + "\n"


def optimizer_tensors(model, optimizer) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """This rank's rows of the optimizer state: {"parameter/key": rows}, and the number of each tensor's first row.

    Parameters that were never updated have no state. Rows that a replica on an earlier rank writes are left out."""
    tensors, first_rows = {}, {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not parallel.is_replica(value) and (value.ndim == 0 or len(parallel.local(value))):
                tensors[f"{name}/{key}"] = parallel.local(value).contiguous()
                first_rows[f"{name}/{key}"] = parallel.rows(value).start or 0
    return tensors, first_rows


# Reading

def newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is intact (None: there is none), and a sentence about each newer one that is damaged.
    All ranks call it, and each checks a part of the files."""
    complaints = []
    for path in reversed(parallel.gather([str(path) for path in all_of(directory)])[0]):
        problems = verify(Path(path)) or _step_problems(Path(path))
        if not problems:
            return Path(path), complaints
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        complaints.append(f"{path}: {problems[0]}{more}")
    return None, complaints


def _step_problems(directory: Path) -> list[str]:
    """Whether state.json belongs to another step than the directory's name says."""
    try:
        step = weights.read_json(directory / "state.json").get("step")
    except (ModelError, OSError) as error:
        return [str(error)]
    return [] if isinstance(step, int) and name_of(step) == directory.name else [f"state.json is of step {step}"]


def verify(directory: Path) -> list[str]:
    """The problems of a checkpoint, a sentence each. [] if it is intact. All ranks call it."""
    return list(dict.fromkeys(problem for problems in parallel.gather(_problems(directory)) for problem in problems))


def _problems(directory: Path) -> list[str]:
    """The problems of the manifest and of this rank's share of the files."""
    try:
        content = (directory / "manifest.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ["manifest.json is missing"]
    except (ValueError, OSError) as error:
        return [f"manifest.json cannot be read: {error}"]
    text, digest = content[:-65], content[-65:-1]
    if content != f"{text}{sha256(text.encode()).hexdigest()}\n":
        return [f"manifest.json is damaged: its last line, {digest[:12]}..., is not the sha256 of the others"]
    files = json.loads(text).get("files")
    if not isinstance(files, dict):
        return ["manifest.json lists no files"]
    problems = [f"{path.name} is not in the manifest" for path in sorted(directory.glob("*.safetensors*"))
                if path.name not in files]
    for name in sorted(files)[parallel.rank()::parallel.size()]:
        try:
            entry, expected = _entry(directory / name), files[name]
            if entry["bytes"] != expected["bytes"]:
                problems.append(f"{name} has {entry['bytes']} bytes, the manifest says {expected['bytes']}")
            elif entry != expected:
                problems.append(f"{name} has sha256 {entry['sha256'][:12]}..., the manifest says "
                                f"{expected['sha256'][:12]}...")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    return problems


def read_state(directory: Path) -> dict:
    """state.json of an intact checkpoint."""
    state = weights.read_json(directory / "state.json")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{directory} has format {state.get('format')}, this code reads {FORMAT}: resume it with "
                              "the version that wrote it, or start again from its weights with --model")
    return state


def load_optimizer(directory: Path, model, optimizer) -> None:
    """Load the optimizer's state, written by any number of ranks: each rank reads its own rows of all files."""
    rows_left = {}                                             # {"parameter/key": rows yet to be read}
    parameters = dict(model.named_parameters())
    for name, key, first, piece in _pieces(directory):
        if name not in parameters:
            raise CheckpointError(f"{directory} holds the optimizer state of {name}, which this model lacks")
        parameter, state = parameters[name], optimizer.state[parameters[name]]
        if key not in state:
            state[key] = torch.zeros_like(parameter) if key in MOMENTS else torch.zeros((), dtype=torch.float32)
            rows_left[f"{name}/{key}"] = parallel.local(state[key]).shape[0] if state[key].ndim else 1
        target = parallel.local(state[key]).detach()
        if target.ndim == 0:
            target.copy_(piece[...])
            rows_left[f"{name}/{key}"] = 0
            continue
        start, (count, *_) = parallel.rows(state[key]).start, piece.get_shape()
        low, high = max(start, first), min(start + len(target), first + count)
        if low < high:
            target[low - start:high - start].copy_(piece[low - first:high - first])
            rows_left[f"{name}/{key}"] -= high - low
    for name, rows in rows_left.items():
        if rows:
            raise CheckpointError(f"{directory}: rows of {name} are in none of its optimizer files")


def _pieces(directory: Path) -> Iterator[tuple]:
    """(parameter, "exp_avg" or the like, number of its first row, rows in the file) of all optimizer files."""
    paths = sorted(directory.glob("optimizer-*.safetensors"))
    if not paths or f"{len(paths):05d}" != paths[0].stem[-5:]:
        raise CheckpointError(f"{directory} lacks optimizer files: it has {len(paths)}")
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
        first_rows = json.loads(file.metadata()["rows"])
        for name in sorted(file.keys()):
            yield *name.rsplit("/", 1), first_rows[name], file.get_slice(name)
