"""Training state in and out, so that no moment of a run is one in which it can be lost.

A checkpoint is a directory step_000020 with

    config.json, model.safetensors, tokenizer files    a Hugging Face directory: the master weights
    optimizer-00000-of-00002.safetensors, ...          AdamW's state, each rank's own rows
    state.json                                         what else the run is made of: see run.py
    manifest.json                                      size and sha256 of every file above, and of itself

It is written as .partial-step_000020, every file is synced to the disk, the manifest last, then the directory; only
then does it get its name, and only when the name is on the disk too is an older checkpoint removed. So a directory
with that name is whole, and if a disk spoils it later the manifest tells. Nothing is read through pickle.

Random numbers are no part of it: every draw of this project is a function of names (seed, step, example, sample).
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .. import parallel
from ..errors import ModelError
from ..pretrained import weights
from ..pretrained.digest import file_digest

FORMAT = 1                              # raised when a reader of the old one would go wrong
MOMENTS = ("exp_avg", "exp_avg_sq")

from ..errors import CheckpointError


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def all_of(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the oldest first."""
    return sorted((path for path in directory.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name)), key=step_of)


# Writing

def save(final: Path, model, tokenizer, optimizer, state: dict) -> None:
    """All ranks call it. On return the checkpoint is on the disk, under its name. An OSError comes to all ranks; then
    older checkpoints are as they were, and this one is there whole (the very last sync failed) or not at all."""
    partial, first = final.with_name(f".partial-{final.name}"), parallel.rank() == 0
    parallel.on_all_ranks(lambda: first and _begin(partial, model), "cannot begin a checkpoint")
    failed = None
    try:
        model.save_pretrained(partial)                                         # in company: all ranks talk
    except OSError as error:
        failed = error
    lists = parallel.on_all_ranks(lambda: _write_own(partial, failed, tokenizer, model, optimizer, state, first),
                                  "cannot write a checkpoint")
    files = {name: entry for own in lists for name, entry in own.items()}
    parallel.on_all_ranks(lambda: first and _seal(partial, final, files), "cannot finish a checkpoint")


def _begin(partial: Path, model) -> None:
    _remove(partial)
    partial.mkdir(parents=True)
    needed = 3 * sum(parameter.nbytes for parameter in model.parameters())     # weights, and two moments of each
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the disk is full: a checkpoint needs {needed:,} bytes, {free:,} are free; "
                                    "make room, older checkpoints are untouched", str(partial))


def _write_own(partial: Path, failed: OSError | None, tokenizer, model, optimizer, state: dict, first: bool) -> dict:
    """What this rank writes, on the disk -> {file name: its entry in the manifest}."""
    if failed:
        raise failed
    tensors, rows = optimizer_tensors(model, optimizer)
    name = f"optimizer-{parallel.rank():05d}-of-{parallel.size():05d}.safetensors"
    weights.write_file(partial / name, tensors, {"rows": json.dumps(rows, sort_keys=True)})
    names = [name]
    if first:
        tokenizer.save_pretrained(partial)
        state = {"format": FORMAT, "world_size": parallel.size(), "torch": torch.__version__, **state}
        weights.write_json(partial / "state.json", state)
        own = [path.name for path in partial.iterdir() if not path.name.startswith(("optimizer-", "."))]
        names = [name, *own]                                                  # .tmp...: another rank is writing
    found = {}
    for name in sorted(names):
        sync(partial / name)
        found[name] = {"bytes": (partial / name).stat().st_size, "sha256": file_digest(partial / name)}
    return found


def _seal(partial: Path, final: Path, files: dict) -> None:
    (partial / "manifest.json").write_text(manifest_text(files), encoding="utf-8")
    sync(partial / "manifest.json")
    sync(partial)
    _remove(final)                                                             # a spoilt one that was passed over
    partial.rename(final)
    sync(final.parent)
    sync(final.parent.parent)                                                 # where checkpoints/ itself is named


def set_aside(directory: Path, newer_than: Path | None) -> None:
    """Checkpoints that are not what was written get another name, so that they count as none any more."""
    if parallel.rank() == 0:
        for path in all_of(directory):
            if newer_than is None or step_of(path) > step_of(newer_than):
                _remove(path.with_name(f"spoilt_{path.name}"))
                path.rename(path.with_name(f"spoilt_{path.name}"))


def prune(directory: Path, keep: int, ends: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints and those of the steps in `ends`, and what was never quite
    written or removed."""
    if parallel.rank() == 0:
        for path in all_of(directory)[:-keep]:
            if step_of(path) not in ends:
                _remove(path)
        for path in [*directory.glob(".partial-*"), *directory.glob(".removed-*")]:
            shutil.rmtree(path, ignore_errors=True)


def _remove(directory: Path) -> None:
    """A directory that is being removed does not keep its name: half of it is no checkpoint."""
    if directory.exists():
        doomed = directory.with_name(f".removed-{directory.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sync(path: Path) -> None:
    """A file's bytes, or a directory's names, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest_text(files: dict) -> str:
    """The manifest; its last line is the sha256 of the lines before it."""
    text = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n"
    return text + sha256(text.encode()).hexdigest() + "\n"


def optimizer_tensors(model, optimizer) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """This rank's rows of the state of every parameter that has one, and the number of each tensor's first row. What
    another rank holds as well is left to it."""
    tensors, first_rows = {}, {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if not parallel.is_replica(value) and (value.ndim == 0 or len(parallel.local(value))):
                tensors[f"{name}/{key}"] = parallel.local(value).contiguous()
                first_rows[f"{name}/{key}"] = parallel.rows(value).start or 0
    return tensors, first_rows


# Reading

def newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is what was written, and a sentence about each newer one that is not. All ranks call
    it, each checks a part of the files."""
    complaints = []
    for path in reversed(parallel.gather([str(path) for path in all_of(directory)])[0]):
        problems = verify(Path(path)) or _misnamed(Path(path))
        if not problems:
            return Path(path), complaints
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        complaints.append(f"{path}: {problems[0]}{more}")
    return None, complaints


def _misnamed(directory: Path) -> list[str]:
    try:
        step = weights.read_json(directory / "state.json").get("step")
    except (ModelError, OSError) as error:
        return [str(error)]
    return [] if isinstance(step, int) and name_of(step) == directory.name else [f"state.json is of step {step}"]


def verify(directory: Path) -> list[str]:
    """What is wrong with a checkpoint, a sentence each; nothing: []. All ranks call it."""
    return list(dict.fromkeys(problem for found in parallel.gather(_problems(directory)) for problem in found))


def _problems(directory: Path) -> list[str]:
    """Of the manifest, and of this rank's share of the files."""
    try:
        content = (directory / "manifest.json").read_text(encoding="utf-8")
        text, own = content[:-65], content[-65:-1]
        if content != f"{text}{sha256(text.encode()).hexdigest()}\n":
            return [f"manifest.json is damaged: its last line, {own[:12]}..., is not the sha256 of the others"]
    except FileNotFoundError:
        return ["manifest.json is missing"]
    except (ValueError, OSError) as error:
        return [f"manifest.json cannot be read: {error}"]
    files = json.loads(text).get("files")
    if not isinstance(files, dict):
        return ["manifest.json lists no files"]
    extra = sorted(path.name for path in directory.glob("*.safetensors*") if path.name not in files)
    share = sorted(files)[parallel.rank()::parallel.size()]
    return [f"{name} is not in the manifest" for name in extra] + [
        problem for name in share if (problem := _compare(directory / name, files[name]))]


def _compare(path: Path, entry: dict) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{path.name} has {size} bytes, the manifest says {entry['bytes']}"
        found = file_digest(path)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if found == entry["sha256"] else (
        f"{path.name} has sha256 {found[:12]}..., the manifest says {entry['sha256'][:12]}...")


def read_state(directory: Path) -> dict:
    """state.json of a verified checkpoint."""
    state = weights.read_json(directory / "state.json")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{directory} has format {state.get('format')}, this code reads {FORMAT}: go on with the "
                              "version that wrote it, or start anew from it with --model")
    return state


def load_optimizer(directory: Path, model, optimizer) -> None:
    """Fill in the optimizer's state, on any number of ranks: each reads its own rows of all files. A parameter that was
    never updated has none."""
    missing = {}                                                               # tensor name -> rows yet to be read
    parameters = dict(model.named_parameters())
    for name, key, first, piece in _pieces(directory):
        if name not in parameters:
            raise CheckpointError(f"{directory} holds the optimizer state of {name}, which this model lacks")
        parameter, state = parameters[name], optimizer.state[parameters[name]]
        if key not in state:
            state[key] = torch.zeros_like(parameter) if key in MOMENTS else torch.zeros((), dtype=torch.float32)
            missing[f"{name}/{key}"] = parallel.local(state[key]).shape[0] if state[key].ndim else 1
        target = parallel.local(state[key]).detach()
        if target.ndim == 0:
            target.copy_(piece[...])
            missing[f"{name}/{key}"] = 0
            continue
        start, (count, *_) = parallel.rows(state[key]).start, piece.get_shape()
        low, high = max(start, first), min(start + len(target), first + count)
        if low < high:
            target[low - start:high - start].copy_(piece[low - first:high - first])
            missing[f"{name}/{key}"] -= high - low
    if lacking := [name for name, rows in missing.items() if rows]:
        raise CheckpointError(f"{directory}: rows of {lacking[0]} are in none of its optimizer files")


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
        if "rows" not in (file.metadata() or {}):
            raise CheckpointError(f"{path} does not say which rows it holds")
        first_rows = json.loads(file.metadata()["rows"])
        for name in sorted(file.keys()):
            yield *name.rsplit("/", 1), first_rows[name], file.get_slice(name)
