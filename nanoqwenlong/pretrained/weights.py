"""Hugging Face model directories: config.json and safetensors, read, checked and written. Nothing is read as a pickle,
and no code of a model directory is run.

Releases hold the experts of a mixture one by one (`experts.7.gate_proj.weight`, ...). transformers 5 and this project
fuse them: `experts.gate_up_proj` (E, 2 I, C), `experts.down_proj` (E, C, I). Both layouts are read and written.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .. import parallel
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
    """The JSON object in this file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} should hold a JSON object, it holds a {type(content).__name__}")
    return content


# Models in memory

def read_into(model: nn.Module, directory: str | Path, dtype: torch.dtype, device: str | torch.device,
              prepare: Callable | None, check_finite: bool) -> None:
    """Reads the directory's tensors into a model without memory. All checks come before memory is taken."""
    parallel.require_device(device)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}           # tied weights once
    optional = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    stored = find_tensors(directory, shapes, optional)
    model.fused_experts = any(map(experts_apart, stored.files))
    allocate(model, dtype, device, prepare)
    parameters = dict(model.named_parameters())
    rows = {name: parallel.rows(parameter) for name, parameter in parameters.items() if parallel.is_sharded(parameter)}
    with torch.no_grad():
        for name, tensor in read_tensors(stored, rows, check_finite):
            parallel.local(parameters[name]).copy_(tensor)


def allocate(model, dtype: torch.dtype, device: str | torch.device, prepare: Callable | None = None) -> nn.Module:
    """The same model with memory for its weights, in `dtype` and unfilled, taken where it is used: there is never a
    second copy. `prepare(model)` comes first: parallel.shard, say."""
    model.to(dtype)
    if prepare:
        prepare(model)
    model.to_empty(device="cpu" if model.compute_device else device)
    model.tie()                                                                # to_empty made two tensors of one
    return model


def fill_random(model: nn.Module, std: float, seed: int) -> None:
    """Matrices from N(0, std^2), norms 1, biases 0, as transformers does it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std, generator=generator)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)


# Reading

class Stored(NamedTuple):
    """The tensors of a model directory, checked against config.json and not read yet."""

    directory: Path
    shapes: dict[str, torch.Size]               # by the names of a model's parameters
    files: dict                                 # {name in the files: its open file}
    apart: dict[str, tuple[str, ...]]           # {fused experts that are stored one by one: names of their parts}


def read_tensors(stored: Stored, rows: dict[str, slice] | None = None, check_finite: bool = False
                 ) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that is stored, experts fused. For a name in `rows` only those rows are read. Raises
    ModelError for NaN and infinity with check_finite."""
    for name, shape in stored.shapes.items():
        wanted = (rows or {}).get(name, slice(None))
        if parts := stored.apart.get(name):
            experts = []
            for e in range(shape[0])[wanted]:
                pieces = [stored.files[part.format(e)].get_tensor(part.format(e)) for part in parts]
                experts.append(torch.cat(pieces))
            tensor = torch.stack(experts) if experts else torch.empty(0, *shape[1:])           # more ranks than experts
        elif wanted == slice(None):
            tensor = stored.files[name].get_tensor(name)
        else:
            tensor = stored.files[name].get_slice(name)[wanted]
        if check_finite and not tensor.isfinite().all():
            raise ModelError(f"{stored.directory}: {name} holds NaN or infinity; the weights are damaged")
        yield name, tensor


def find_tensors(directory: str | Path, expected: dict[str, torch.Size], optional: tuple[str, ...] = ()) -> Stored:
    """Where the tensors of these names and shapes are, after all checks. Names in `optional` may also be there.

    Raises ModelError for a missing, extra, misshapen or non-float tensor, for a name in two shards, for an index that
    points outside the directory, and for a directory that holds only pickle files."""
    directory = Path(directory)
    files = open_files(directory)
    apart = {name: parts for name in expected if name not in files and (parts := experts_apart(name))}
    shapes = {name: shape for name, shape in expected.items() if name not in apart}            # in the files
    for name, parts in apart.items():
        E, N, *C = expected[name]
        if E > len(files):                                                     # before so many names are made
            raise ModelError(f"{directory} lacks the tensor {parts[0].format(E - 1)}, though config.json speaks of {E} "
                             "experts")
        shapes |= {part.format(e): torch.Size([N // len(parts), *C]) for e in range(E) for part in parts}

    for name in sorted(shapes.keys() - files.keys()):
        raise ModelError(f"{directory} lacks the tensor {name} (shape {tuple(shapes[name])}) that config.json needs")
    of_fused = {part for name in shapes for part in experts_apart(name)}
    for name in sorted(files.keys() - shapes.keys() - set(optional)):
        if re.sub(r"(?<=\.experts\.)\d+", "{}", name) in of_fused:
            raise ModelError(f"{directory} holds {name} beside fused experts; a layer's experts should be there once")
        raise ModelError(f"{directory} holds the tensor {name}, for which config.json has no place")
    for name, shape in shapes.items():
        tensor = files[name].get_slice(name)
        if tuple(tensor.get_shape()) != tuple(shape):
            raise ModelError(f"{directory}: {name} has shape {tuple(tensor.get_shape())}, config.json asks for "
                             f"{tuple(shape)}")
        if tensor.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ModelError(f"{directory}: {name} is stored as {tensor.get_dtype()}; weights must be floating point")
    return Stored(directory, expected, files, apart)


def open_files(directory: Path) -> dict:
    """{tensor name: its open safetensors file} of the whole directory. Raises ModelError if a file and the index
    contradict each other."""
    files = {}
    for path, names in shards(directory).items():
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from None
        present = file.keys()
        for name in present:
            if names is not None and name not in names:
                raise ModelError(f"{path} holds {name}, which {INDEX} does not list there")
        for name in sorted((names or set()) - set(present)):
            raise ModelError(f"{INDEX} says that {path.name} holds {name}, but it does not")
        files |= dict.fromkeys(present, file)
    return files


def shards(directory: Path) -> dict[Path, set[str] | None]:
    """The safetensors files, each with the names the index lists for it (None: a single file without an index)."""
    if (directory / "model.safetensors").is_file():
        return {directory / "model.safetensors": None}
    if not (directory / INDEX).is_file():
        for path in sorted(directory.iterdir()):
            if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
                raise ModelError(f"{directory} holds only pickled weights ({path.name}). A pickle can run code: "
                                 "convert it with transformers' save_pretrained")
        raise FileNotFoundError(f"{directory} holds neither model.safetensors nor {INDEX}")
    entries = read_json(directory / INDEX).get("weight_map")
    if not isinstance(entries, dict) or not all(isinstance(entry, str) for entry in entries.values()):
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


def experts_apart(name: str) -> tuple[str, ...]:
    """The names of one expert's parts of a fused tensor, top to bottom, with {} for its number. () for other names.

    >>> experts_apart("layers.3.mlp.experts.gate_up_proj"), experts_apart("layers.3.mlp.gate.weight")
    (('layers.3.mlp.experts.{}.gate_proj.weight', 'layers.3.mlp.experts.{}.up_proj.weight'), ())
    """
    match = re.fullmatch(r"(.+\.experts)\.(gate_up|down)_proj", name)
    return tuple(f"{match[1]}.{{}}.{part}_proj.weight" for part in match[2].split("_")) if match else ()


# Writing

def write(directory: str | Path, tensors: dict[str, torch.Tensor], config: ModelConfig,
          max_shard_bytes: int = 5 * 10**9, fused_experts: bool = False) -> None:
    """Writes config.json and the tensors, experts one by one unless fused_experts. Beyond `max_shard_bytes` they are
    split into shards with an index.

    All ranks call this and fetch the tensors together, a file's worth at a time. Rank 0 writes. It raises its OSError
    after all has been fetched, or the other ranks would wait forever."""
    directory = Path(directory)
    files: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if files[-1] and sum(t.nbytes for t in files[-1].values()) + tensor.nbytes > max_shard_bytes:
            files.append({})
        files[-1][name] = tensor
    weight_map, problem = {}, None
    for number, shard in enumerate(files, start=1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        whole = {name: parallel.full(tensor.detach()) for name, tensor in shard.items()}
        if parallel.rank() > 0 or problem:
            continue
        whole = whole if fused_experts else take_apart(whole)
        weight_map |= dict.fromkeys(whole, file_name)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in ("model.safetensors", INDEX) if number == 1 else ():   # an earlier save may have another form
                (directory / name).unlink(missing_ok=True)
            write_file(directory / file_name, {name: tensor.contiguous() for name, tensor in whole.items()})
        except OSError as error:
            problem = error
    if problem:
        raise problem
    if parallel.rank() > 0:
        return
    dtype_key = "torch_dtype" if "torch_dtype" in config.source else "dtype"   # transformers 4, 5
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(directory / "config.json", {**config.source, dtype_key: dtype})
    if len(files) > 1:
        total_size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(directory / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def take_apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, with fused experts one by one."""
    result = {}
    for name, tensor in tensors.items():
        parts = experts_apart(name)
        if not parts:
            result[name] = tensor
            continue
        for e, expert in enumerate(tensor):
            for part, piece in zip(parts, expert.chunk(len(parts))):
                result[part.format(e)] = piece
    return result


def write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one safetensors file, readable by whom the umask allows (safetensors lets only its owner read it). Give
    one entry of metadata at most, because safetensors orders several at random."""
    try:
        save_file(tensors, path, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON in transformers' form: sorted keys, two spaces, a last newline."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
