"""Hugging Face model directories: config.json and safetensors, read, checked and written. No pickle, no code is run.

Experts are stored one by one (`experts.7.gate_proj.weight`, ...) or fused as here and in transformers 5:
`experts.gate_up_proj` (E, 2 I, C), `experts.down_proj` (E, C, I). Both layouts are read and written.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .. import parallel
from ..errors import ModelError
from .config import ModelConfig, require

INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


def read_config(directory: str | Path) -> ModelConfig:
    """The directory's config.json. Raises ModelError, or FileNotFoundError if there is no such file."""
    path = Path(directory) / "config.json"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"model directory {directory} is not there")
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a model directory: it has no config.json")
    return ModelConfig.from_json(read_json(path), str(path))


def read_json(path: Path) -> dict:
    """The JSON object in this file. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable as JSON: {error}") from None
    require(isinstance(content, dict), f"{path} should hold a JSON object, it holds a {type(content).__name__}")
    return content


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
    rows = {name: parallel.rows(parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, tensor in read_tensors(stored, rows, check_finite):
            parallel.local(parameters[name]).copy_(tensor)


def allocate(model, dtype: torch.dtype, device: str | torch.device, prepare: Callable | None = None) -> nn.Module:
    """The same model with unfilled memory for its weights in `dtype`, after `prepare(model)`: parallel.shard, say."""
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


class Stored(NamedTuple):
    """The tensors of a model directory, checked against config.json and not read yet."""
    directory: Path
    shapes: dict[str, torch.Size]               # by the names of a model's parameters
    files: dict                                 # {name in the files: its open file}
    apart: dict[str, tuple[str, ...]]           # {fused experts that are stored one by one: names of their parts}


def read_tensors(stored: Stored, rows: dict[str, slice] | None = None, check_finite: bool = False
                 ) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that is stored, experts fused, of a name in `rows` only those rows. Raises ModelError."""
    for name, shape in stored.shapes.items():
        wanted = (rows or {}).get(name, slice(0, None))
        if parts := stored.apart.get(name):
            experts = [torch.cat([stored.files[part.format(e)].get_tensor(part.format(e)) for part in parts])
                       for e in range(shape[0])[wanted]]
            tensor = torch.stack(experts) if experts else torch.empty(0, *shape[1:])           # more ranks than experts
        else:
            tensor = stored.files[name].get_slice(name)[wanted]
        require(not check_finite or tensor.isfinite().all(), f"{stored.directory}: {name} holds NaN or infinity")
        yield name, tensor


def find_tensors(directory: str | Path, expected: dict[str, torch.Size], optional: tuple[str, ...] = ()) -> Stored:
    """Where the tensors are. Raises ModelError for a missing, extra (not in `optional`), misshapen or non-float one."""
    directory = Path(directory)
    files = open_files(directory)
    apart = {name: parts for name in expected if name not in files and (parts := experts_apart(name))}
    shapes = {name: shape for name, shape in expected.items() if name not in apart}            # in the files
    for name, parts in apart.items():
        E, N, *C = expected[name]
        for e in range(min(E, len(files) + 1)):                                # so many that one must be missing
            shapes |= {part.format(e): torch.Size([N // len(parts), *C]) for part in parts}
    for name in sorted(shapes.keys() - files.keys()):
        raise ModelError(f"{directory} lacks the tensor {name} (shape {tuple(shapes[name])}) that config.json needs")
    for name in sorted(files.keys() - shapes.keys() - set(optional)):
        if name.endswith("rotary_emb.inv_freq"):               # in old Llamas: rope's frequencies, which are computed
            continue
        twice = re.sub(r"\.experts\.\d+\..+", ".experts.gate_up_proj", name) in shapes.keys() - {name}
        why = "beside fused experts; it should be there once" if twice else "but config.json has no place for it"
        raise ModelError(f"{directory} holds {name}, {why}")
    for name, shape in shapes.items():
        tensor = files[name].get_slice(name)
        found, wanted, dtype = tuple(tensor.get_shape()), tuple(shape), tensor.get_dtype()
        require(found == wanted, f"{directory}: {name} has shape {found}, config.json asks for {wanted}")
        require(dtype in FLOATS, f"{directory}: {name} is stored as {dtype}; weights must be floating point")
    return Stored(directory, expected, files, apart)


def open_files(directory: Path) -> dict:
    """{tensor name: its open safetensors file}. Raises ModelError if a file and the index contradict each other."""
    is_single = (directory / "model.safetensors").is_file()
    listed = {} if is_single else read_index(directory)
    files = {}
    for file_name in ["model.safetensors"] if is_single else dict.fromkeys(listed.values()):
        path = directory / file_name
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from None
        names = file.keys()
        files |= dict.fromkeys(names, file)
        for name in names:
            require(is_single or listed.get(name) == file_name, f"{path} holds {name}, but not in {INDEX}")
    for name in sorted(listed.keys() - files.keys()):
        raise ModelError(f"{INDEX} says that {listed[name]} holds {name}, but it does not")
    return files


def read_index(directory: Path) -> dict[str, str]:
    """{tensor name: file name} as the index says. Every file is there, in this directory. Raises ModelError."""
    path = directory / INDEX
    if not path.is_file():
        for other in sorted(directory.iterdir()):
            require(other.suffix not in (".bin", ".pt", ".pth", ".pkl", ".ckpt"), f"{directory} holds only pickled "
                    f"weights ({other.name}). A pickle can run code: convert it with transformers' save_pretrained")
        raise FileNotFoundError(f"{directory} holds neither model.safetensors nor {INDEX}")
    listed = read_json(path).get("weight_map")
    require(isinstance(listed, dict) and all(isinstance(entry, str) for entry in listed.values()),
            f"{path}: weight_map should map tensor names to file names")
    for name, entry in listed.items():
        file = directory / entry.replace("\0", "/")
        is_plain = file.name == entry and "\\" not in entry     # a link is fine: those of a cache lead to ../../blobs
        require(is_plain and file.suffix == ".safetensors" and file.is_file(),
                f"{path}: {name} is said to be in {entry!r}; it must be a .safetensors file in the same directory")
    return listed


def experts_apart(name: str) -> tuple[str, ...]:
    """The names of one expert's parts of a fused tensor, top to bottom, with {} for its number. () for other names.

    >>> experts_apart("layers.3.mlp.experts.gate_up_proj"), experts_apart("layers.3.mlp.gate.weight")
    (('layers.3.mlp.experts.{}.gate_proj.weight', 'layers.3.mlp.experts.{}.up_proj.weight'), ())
    """
    match = re.fullmatch(r"(.+\.experts)\.(gate_up|down)_proj", name)
    return tuple(f"{match[1]}.{{}}.{part}_proj.weight" for part in match[2].split("_")) if match else ()


def write(directory: str | Path, tensors: dict[str, torch.Tensor], config: ModelConfig,
          max_shard_bytes: int = 5 * 10**9, fused_experts: bool = False) -> None:
    """Writes config.json and the tensors, experts one by one unless fused_experts. Beyond `max_shard_bytes` they are
    split into shards with an index. All ranks call this. Rank 0 writes, and raises its OSError after all tensors have
    been fetched, or the other ranks would wait forever."""
    directory = Path(directory)
    shards = split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda tensor: tensor.nbytes, filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes)
    weight_map, problem = {}, None
    for file_name, names in shards.filename_to_tensors.items():
        whole = {name: parallel.full(tensors[name].detach()) for name in names}
        if parallel.rank() > 0 or problem:
            continue
        whole = whole if fused_experts else take_apart(whole)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in ("model.safetensors", INDEX) if not weight_map else ():  # an earlier save may have another form
                (directory / name).unlink(missing_ok=True)
            write_file(directory / file_name, whole)
            weight_map |= dict.fromkeys(whole, file_name)
        except OSError as error:
            problem = error
    if problem:
        raise problem
    if parallel.rank() > 0:
        return
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    dtype_keys = {"torch_dtype", "dtype"} & config.source.keys() or {"dtype"}  # transformers 4, 5
    write_json(directory / "config.json", config.source | dict.fromkeys(dtype_keys, dtype))
    if shards.is_sharded:
        write_json(directory / INDEX, {"metadata": shards.metadata, "weight_map": weight_map})


def take_apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, with fused experts one by one."""
    result = {}
    for name, tensor in tensors.items():
        parts = experts_apart(name)
        for e, expert in enumerate(tensor if parts else ()):
            result |= {part.format(e): piece for part, piece in zip(parts, expert.chunk(len(parts)))}
        if not parts:
            result[name] = tensor
    return result


def write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes one safetensors file, with the umask's permissions. Give one entry of metadata: several are unordered."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
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
