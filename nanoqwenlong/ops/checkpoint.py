"""Training state in and out. docs/nothing_lost.md has the whole story.

A checkpoint is a directory step_000020: a Hugging Face directory with the master weights, optimizer-*.safetensors (each
rank's own rows of AdamW's state), state.json (the rest, see run.py) and manifest.json (size and SHA-256 of every other
file). It gets its name when all of it is on the disk. Only then an older one is removed.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .. import parallel
from ..errors import CheckpointError
from ..pretrained import weights
from ..pretrained.digest import file_digest
from .files import sync

FORMAT = 1                              # raise it if older readers would misread a checkpoint


def name_of(step: int) -> str:
    return f"step_{step:06d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def all_of(directory: Path) -> list[Path]:
    """The checkpoints in a directory, the oldest first."""
    return sorted((path for path in directory.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name)), key=step_of)


def save(final: Path, model, tokenizer, optimizer, state: dict) -> None:
    """Write a checkpoint. On return it is on the disk, under its name. All ranks call it. If one raises an OSError, all
    do, older checkpoints are unchanged, and this one is complete or not there."""
    partial = final.with_name(f".partial-{final.name}")
    first, failed = parallel.rank() == 0, "cannot write a checkpoint"
    parallel.on_all_ranks(lambda: first and _begin(partial, model), failed)
    parallel.on_all_ranks(lambda: model.save_pretrained(partial), failed)      # it raises after its last gather
    entries = parallel.on_all_ranks(lambda: _write_files(partial, tokenizer, model, optimizer, state), failed)
    files = {name: entry for of_rank in entries for name, entry in of_rank.items()}
    parallel.on_all_ranks(lambda: first and _seal(partial, final, files), failed)


def _begin(partial: Path, model) -> None:
    _remove(partial)
    partial.mkdir(parents=True)
    needed = 3 * sum(parameter.nbytes for parameter in model.parameters())     # weights, and two moments of each
    if (free := shutil.disk_usage(partial).free) < needed:
        raise OSError(errno.ENOSPC, f"the disk is full: a checkpoint needs {needed:,} bytes, {free:,} are free")


def _write_files(partial: Path, tokenizer, model, optimizer, state: dict) -> dict:
    """The manifest's entries of the files that this rank writes and syncs. The first also syncs the weights."""
    tensors, first_rows = {}, {}                               # {"parameter/key": rows}, and the number of the first
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():          # none if it was never updated
            rows = parallel.local(value)
            if not parallel.is_replica(value) and (value.ndim == 0 or len(rows)):
                tensors[f"{name}/{key}"] = rows
                first_rows[f"{name}/{key}"] = parallel.rows(value).start
    paths = [partial / f"optimizer-{parallel.rank():05d}-of-{parallel.size():05d}.safetensors"]
    weights.write_file(paths[0], tensors, {"rows": json.dumps(first_rows, sort_keys=True)})
    if parallel.rank() == 0:
        tokenizer.save_pretrained(partial)
        state = {"format": FORMAT, "world_size": parallel.size(), "torch": torch.__version__, **state}
        weights.write_json(partial / "state.json", state)
        paths += [p for p in partial.iterdir() if not p.name.startswith(("optimizer-", "."))]  # .tmp: being written
    for path in paths:
        sync(path)
    return {path.name: _entry(path) for path in paths}


def _entry(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _seal(partial: Path, final: Path, files: dict) -> None:
    (partial / "manifest.json").write_text(manifest_text(files), encoding="utf-8")
    sync(partial / "manifest.json")
    sync(partial)
    _remove(final)                                             # a damaged one that was passed over
    partial.rename(final)
    sync(final.parent)
    sync(final.parent.parent)                                  # it holds the name of checkpoints/


def manifest_text(files: dict) -> str:
    text = json.dumps({"format": FORMAT, "files": files}, indent=1, sort_keys=True) + "\n"
    return text + sha256(text.encode()).hexdigest() + "\n"


def set_aside(directory: Path, newer_than: Path | None) -> None:
    """Rename checkpoints that were passed over to spoilt_step_..., so that they no longer count."""
    for path in all_of(directory) if parallel.rank() == 0 else []:
        if newer_than is None or step_of(path) > step_of(newer_than):
            spoilt = path.with_name(f"spoilt_{path.name}")
            _remove(spoilt)
            path.rename(spoilt)


def prune(directory: Path, keep: int, ends: Collection[int] = ()) -> None:
    """Remove all checkpoints but the `keep` newest and those of the steps in `ends`, and unfinished directories."""
    if parallel.rank() == 0:
        for path in all_of(directory)[:-keep]:
            if step_of(path) not in ends:
                _remove(path)
        for path in [*directory.glob(".partial-*"), *directory.glob(".removed-*")]:
            _delete(path)


def _remove(directory: Path) -> None:
    """Remove a directory. It loses its name first, because half a checkpoint must not look like one."""
    if os.path.lexists(directory):
        doomed = directory.with_name(f".removed-{directory.name}")
        _delete(doomed)
        directory.rename(doomed)
        _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a directory, or a link or file in its place. What a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def newest(directory: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint (None: there is none), and a sentence about each newer one. All ranks call it."""
    complaints = []
    for name in reversed(parallel.gather([path.name for path in all_of(directory)])[0]):
        problems = verify(directory / name)
        if not problems:
            return directory / name, complaints
        complaints.append(f"{directory / name}: {problems[0]}")
    return None, complaints


def verify(directory: Path) -> list[str]:
    """The problems of a checkpoint, a sentence each. [] if it is intact. All ranks call it and share the work."""
    return list(dict.fromkeys(problem for problems in parallel.gather(_problems(directory)) for problem in problems))


def _problems(directory: Path) -> list[str]:
    """The problems of the manifest and of this rank's share of the files."""
    problems, name = [], "manifest.json"
    try:
        content = (directory / name).read_text(encoding="utf-8", errors="replace")
        text, last_line = content[:-65], content[-65:]
        if last_line != sha256(text.encode()).hexdigest() + "\n":
            return [f"{name} is damaged: its last line is not the SHA-256 of the others"]
        files = json.loads(text)["files"]
        names = sorted(path.name for path in directory.glob("*.safetensors*"))
        problems = [f"{name} is not in the manifest" for name in names if name not in files]
        for name in sorted(files)[parallel.rank()::parallel.size()]:
            entry, expected, path = _entry(directory / name), files[name], directory / name
            if entry["bytes"] != expected["bytes"]:
                problems.append(f"{name} has {entry['bytes']} bytes, the manifest says {expected['bytes']}")
            elif entry != expected:
                problems.append(f"{name} has another SHA-256 than the manifest says")
            elif name == "state.json" and (step := weights.read_json(path).get("step")) != step_of(directory):
                problems.append(f"{name} is of step {step}")
    except OSError as error:
        problems.append(f"{name} cannot be read: {error.strerror}")
    return problems


def read_state(directory: Path) -> dict:
    state = weights.read_json(directory / "state.json")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{directory} has format {state.get('format')}, this code reads {FORMAT}: "
                              "resume it with the version that wrote it, or start again with --model")
    return state


def load_optimizer(directory: Path, model, optimizer) -> None:
    """Load the optimizer's state, written by any number of ranks: each rank reads its own rows of all files."""
    paths = sorted(directory.glob("optimizer-*.safetensors"))
    if not paths or f"{len(paths):05d}" != paths[0].stem[-5:]:
        raise CheckpointError(f"{directory} lacks optimizer files: it has {len(paths)}")
    parameters, rows_left = dict(model.named_parameters()), {}  # {"parameter/key": number of rows yet to be read}
    for path in paths:
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
        first_rows = json.loads(file.metadata()["rows"])
        for name in sorted(file.keys()):
            parameter_name, key = name.rsplit("/", 1)
            if parameter_name not in parameters:
                raise CheckpointError(f"{path} holds the optimizer state of {parameter_name}, which this model lacks")
            parameter, piece = parameters[parameter_name], file.get_slice(name)
            state = optimizer.state[parameter]
            if key == "step":                                  # a scalar
                state[key] = torch.as_tensor(piece[...]).to(parameter.device)
                continue
            if key not in state:
                state[key] = torch.zeros_like(parameter)
                rows_left[name] = len(parallel.local(parameter))
            target, start, first = parallel.local(state[key]).detach(), parallel.rows(parameter).start, first_rows[name]
            low, high = max(start, first), min(start + len(target), first + piece.get_shape()[0])
            if low < high:
                target[low - start:high - start].copy_(piece[low - first:high - first])
                rows_left[name] -= high - low
    for name in filter(rows_left.get, rows_left):
        raise CheckpointError(f"{directory}: rows of {name} are in none of its optimizer files")
