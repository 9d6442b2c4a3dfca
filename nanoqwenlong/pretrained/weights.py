"""Hugging Face model directories, in and out: config.json, safetensors, and the sentences that refuse them.

Nothing is ever read through pickle and no code of a model directory is ever run.

The experts of a mixture lie in files one by one, as they are released (`experts.7.gate_proj.weight`, ...), or fused, as
transformers 5 and this project hold them: `experts.gate_up_proj` (E, 2 I, C) and `experts.down_proj` (E, C, I). Both
are read, and written.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import ModelError
from .config import ModelConfig

INDEX = "model.safetensors.index.json"


def read_config(directory: str | Path) -> ModelConfig:
    """The directory's config.json. Raises ModelError, or FileNotFoundError if there is no such file."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a model directory: it has no config.json" if path.parent.is_dir()
                                else f"model directory {directory} is not there")
    return ModelConfig.from_json(read_json(path), str(path))


def read_json(path: Path) -> dict:
    """A JSON object, or a ModelError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} should hold a JSON object, it holds a {type(content).__name__}")
    return content


class Found(NamedTuple):
    """Tensors of a model directory that are what its config.json asks for, and have not been read yet."""

    directory: Path
    shapes: dict[str, torch.Size]               # under the names of a model's parameters
    files: dict                                 # {name in the files: its open file}
    apart: dict[str, tuple[str, ...]]           # of fused experts that lie one by one, the names of their parts

    @property
    def fused_experts(self) -> bool:
        """Whether experts are stored fused."""
        return any(map(experts_apart, self.files))


def read_tensors(found: Found, rows: dict[str, slice] | None = None, check_finite: bool = False):
    """Yields (name, tensor) for all that was found; of a tensor that is named in `rows`, these rows only. Experts that
    lie in the files one by one come fused. check_finite: raises ModelError for one that holds NaN or infinity."""
    for name, shape in found.shapes.items():
        if parts := found.apart.get(name):
            experts = range(shape[0])[rows[name]] if rows and name in rows else range(shape[0])
            pieces = [torch.cat([found.files[part.format(e)].get_tensor(part.format(e)) for part in parts])
                      for e in experts]
            tensor = torch.stack(pieces) if pieces else torch.empty(0, *shape[1:])             # more ranks than experts
        else:
            file = found.files[name]
            tensor = file.get_slice(name)[rows[name]] if rows and name in rows else file.get_tensor(name)
        if check_finite and not tensor.isfinite().all():
            raise ModelError(f"{found.directory}: {name} holds NaN or infinity; the weights are damaged")
        yield name, tensor


def find_tensors(directory: str | Path, expected: dict[str, torch.Size], optional: tuple[str, ...] = ()) -> Found:
    """Where the tensors of these names and shapes lie, once all have been checked.

    Raises ModelError for a missing, extra, misshapen or non-float tensor, for a name in two shards, for an index that
    points outside the directory, and for a directory that holds only pickle files. Names in `optional` may be there."""
    directory, found = Path(directory), {}
    for path, names in shards(directory).items():
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from None
        for name in file.keys():
            if names is not None and name not in names:
                raise ModelError(f"{path} holds {name}, which {INDEX} does not list there")
            found[name] = file
        for name in sorted((names or set()) - set(file.keys())):
            raise ModelError(f"{INDEX} says that {path.name} holds {name}, but it does not")
    apart = {name: parts for name in expected if name not in found and (parts := experts_apart(name))}
    stored = {name: shape for name, shape in expected.items() if name not in apart}
    for name, parts in apart.items():
        E, N, *C = expected[name]
        if E > len(found):                                                     # before so many names are made
            raise ModelError(f"{directory} lacks the tensor {parts[0].format(E - 1)}, though config.json speaks of {E} "
                             "experts")
        stored |= {part.format(e): torch.Size([N // len(parts), *C]) for e in range(E) for part in parts}
    for name in sorted(stored.keys() - found.keys()):
        raise ModelError(f"{directory} lacks the tensor {name} (shape {tuple(stored[name])}) that config.json needs")
    twice = {part for name in stored for part in experts_apart(name)}          # of experts that are there fused
    for name in sorted(found.keys() - stored.keys() - set(optional)):
        if re.sub(r"(?<=\.experts\.)\d+", "{}", name) in twice:
            raise ModelError(f"{directory} holds {name} beside fused experts; a layer's experts should be there once")
        raise ModelError(f"{directory} holds the tensor {name}, for which config.json has no place")
    for name, shape in stored.items():
        piece = found[name].get_slice(name)
        if tuple(piece.get_shape()) != tuple(shape):
            raise ModelError(f"{directory}: {name} has shape {tuple(piece.get_shape())}, config.json asks for "
                             f"{tuple(shape)}")
        if piece.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ModelError(f"{directory}: {name} is stored as {piece.get_dtype()}; weights must be floating point")
    return Found(directory, expected, found, apart)


def experts_apart(name: str) -> tuple[str, ...]:
    """The names of one expert's parts of a fused tensor, top to bottom, with {} for its number; none for other names.

    >>> experts_apart("model.layers.3.mlp.experts.gate_up_proj")
    ('model.layers.3.mlp.experts.{}.gate_proj.weight', 'model.layers.3.mlp.experts.{}.up_proj.weight')
    >>> experts_apart("model.layers.3.mlp.gate.weight")
    ()
    """
    found = re.fullmatch(r"(.+\.experts)\.(gate_up|down)_proj", name)
    return tuple(f"{found[1]}.{{}}.{part}_proj.weight" for part in found[2].split("_")) if found else ()


def take_apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, fused experts one by one."""
    found = {}
    for name, tensor in tensors.items():
        if parts := experts_apart(name):
            found |= {part.format(e): piece for e, expert in enumerate(tensor)
                      for part, piece in zip(parts, expert.chunk(len(parts)))}
        else:
            found[name] = tensor
    return found


def shards(directory: Path) -> dict[Path, set[str] | None]:
    """The safetensors files to read, each with the names the index puts there (None: a single file, no index)."""
    if (directory / "model.safetensors").is_file():
        return {directory / "model.safetensors": None}
    if not (directory / INDEX).is_file():
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for p in directory.glob(pattern)]
        if pickles:
            raise ModelError(f"{directory} holds only pickled weights ({sorted(pickles)[0]}); reading a pickle can run "
                             "code, so it is refused: convert it with transformers' save_pretrained")
        raise FileNotFoundError(f"{directory} holds neither model.safetensors nor {INDEX}")
    entries = read_json(directory / INDEX).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
        raise ModelError(f"{directory / INDEX}: weight_map should map tensor names to file names")
    files: dict[Path, set[str]] = {}
    for name, entry in entries.items():
        path = directory / entry.replace("\0", "/")
        inside = path.name == entry and "\\" not in entry and path.resolve().parent == directory.resolve()
        if not inside or path.suffix != ".safetensors":
            raise ModelError(f"{directory / INDEX}: {name} is said to be in {entry!r}; an entry must be the plain name "
                             "of a .safetensors file in the same directory")
        if not path.is_file():
            raise ModelError(f"{directory / INDEX}: {name} is said to be in {entry}, which is not there")
        files.setdefault(path, set()).add(name)
    return files


def write(directory: str | Path, tensors: dict[str, torch.Tensor], config: ModelConfig,
          max_shard_bytes: int = 5 * 10**9, fetch: Callable = lambda tensor: tensor, writes: bool = True,
          fused_experts: bool = False) -> None:
    """config.json and the tensors, in one file or (beyond `max_shard_bytes`) in shards with an index; experts one by
    one unless `fused_experts`.

    `fetch(tensor)` gives what is to be written of it, a file's worth at a time. With several processes it may need all
    of them: each then calls this, one of them `writes`. An error of writing is kept until all is fetched, so that no
    process waits for another's in vain."""
    directory, error = Path(directory), None
    parts: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if parts[-1] and sum(t.nbytes for t in parts[-1].values()) + tensor.nbytes > max_shard_bytes:
            parts.append({})
        parts[-1][name] = tensor
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else "model.safetensors"
             for number in range(1, len(parts) + 1)]
    weight_map = {}
    for file_name, part in zip(names, parts):
        fetched = {name: fetch(tensor.detach()) for name, tensor in part.items()}
        if writes and error is None:
            fetched = fetched if fused_experts else take_apart(fetched)
            weight_map |= dict.fromkeys(fetched, file_name)
            try:
                directory.mkdir(parents=True, exist_ok=True)
                for stale in (directory / "model.safetensors", directory / INDEX) if part is parts[0] else ():
                    stale.unlink(missing_ok=True)                              # of an earlier save in another form
                write_file(directory / file_name, {name: tensor.contiguous() for name, tensor in fetched.items()})
            except OSError as problem:
                error = problem
    if error:
        raise error
    if writes:
        dtype_key = "torch_dtype" if "torch_dtype" in config.source else "dtype"        # transformers 4, 5
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        write_json(directory / "config.json", {**config.source, dtype_key: dtype})
    if writes and len(parts) > 1:
        write_json(directory / INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                                       "weight_map": weight_map})


def write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, readable by whom the umask allows (safetensors itself keeps it to its owner). Of metadata
    one entry: safetensors writes several in any order, and the same tensors should be the same bytes."""
    try:
        save_file(tensors, path, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: Path, content: dict) -> None:
    """In the form transformers writes: sorted keys, two spaces, a last newline."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
