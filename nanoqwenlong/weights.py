"""Hugging Face model directories, in and out: config.json, safetensors, and every sentence of refusal.

Nothing is ever read through pickle and no code of a model directory is ever run: config.json is read as JSON, refused
if it is not a model we know, and only then normalised by transformers (old and new spellings of rope, dtype, ...).
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
INDEX = "model.safetensors.index.json"


class ModelError(ValueError):
    """A model directory that cannot be used; the message names the file or tensor and what is wrong with it."""


@dataclass(frozen=True)
class ModelConfig:
    """The part of config.json that decides what is computed, under Hugging Face's names.

    >>> c = ModelConfig.from_json({"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4,
    ...                            "num_key_value_heads": 2, "head_dim": 32, "rope_theta": 1e4}, "config.json")
    >>> c.head_dim, c.rope_theta, c.qk_norm, c.qkv_bias
    (32, 10000.0, True, False)
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    initializer_range: float
    qkv_bias: bool                      # Qwen2
    o_bias: bool
    qk_norm: bool                       # Qwen3
    source: dict = field(repr=False)    # config.json as it was read; written back as it is, but for the dtype

    @staticmethod
    def from_json(source: dict, where: str) -> "ModelConfig":
        """Raises ModelError (prefixed with `where`) for a model that our forward would not compute exactly."""
        kind = source.get("model_type")
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            raise ModelError(f"{where}: model_type is {kind!r}; this project runs {' and '.join(ARCHITECTURES)}")
        named = source.get("architectures") or [ARCHITECTURES[kind]]
        if named != [ARCHITECTURES[kind]]:
            raise ModelError(f"{where}: architectures is {named}; only {ARCHITECTURES[kind]} can be trained here")
        from transformers import AutoConfig      # imported here: it takes seconds, and --help should not
        try:
            hf = AutoConfig.for_model(**{k: v for k, v in source.items() if k != "auto_map"})
        except Exception as error:               # transformers validates with many exception types
            raise ModelError(f"{where}: transformers refuses it: {' '.join(str(error).split())}") from None
        rope = hf.rope_parameters or {}
        if rope.get("rope_type", "default") != "default":
            raise ModelError(f"{where}: rope type {rope['rope_type']!r} is not supported; only 'default' is")
        for name, value in (("rope_theta", rope.get("rope_theta")), ("rms_norm_eps", hf.rms_norm_eps)):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ModelError(f"{where}: {name} is {value!r}; it must be a positive number")
        if source.get("quantization_config"):
            raise ModelError(f"{where}: the weights are quantised (quantization_config); give plain ones")
        if getattr(hf, "use_sliding_window", False):
            raise ModelError(f"{where}: use_sliding_window is true; only full attention is supported")
        if hf.hidden_act != "silu":
            raise ModelError(f"{where}: hidden_act is {hf.hidden_act!r}; only 'silu' is supported")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads"):
            if getattr(hf, name) < 1:
                raise ModelError(f"{where}: {name} is {getattr(hf, name)}; it must be at least 1")
        H, K = hf.num_attention_heads, hf.num_key_value_heads
        if H % K:
            raise ModelError(f"{where}: num_attention_heads ({H}) is not a multiple of num_key_value_heads ({K})")
        attention_bias = bool(getattr(hf, "attention_bias", False))
        return ModelConfig(
            vocab_size=hf.vocab_size, hidden_size=hf.hidden_size, intermediate_size=hf.intermediate_size,
            num_hidden_layers=hf.num_hidden_layers, num_attention_heads=H, num_key_value_heads=K,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // H, rms_norm_eps=hf.rms_norm_eps,
            rope_theta=float(rope["rope_theta"]), tie_word_embeddings=bool(hf.tie_word_embeddings),
            initializer_range=hf.initializer_range, qkv_bias=kind == "qwen2" or attention_bias,
            o_bias=kind == "qwen3" and attention_bias, qk_norm=kind == "qwen3", source=source)


def read_config(directory: str | Path) -> ModelConfig:
    """The directory's config.json. Raises ModelError, or FileNotFoundError if there is no such file."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a model directory: it has no config.json")
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


def read_tensors(directory: str | Path, expected: dict[str, torch.Size], optional: tuple[str, ...] = (),
                 rows: dict[str, slice] | None = None, check_finite: bool = False):
    """Yields (name, tensor) for every name in `expected`, once all names and shapes have been checked; of a tensor that
    is named in `rows`, these rows only.

    Raises ModelError for a missing, extra, misshapen or non-float tensor, for a name in two shards, for an index that
    points outside the directory, and for a directory that holds only pickle files. Names in `optional` may be there.
    check_finite: also for one that holds NaN or infinity."""
    directory = Path(directory)
    found = {}                                                                  # name -> open file
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
    for name in sorted(expected.keys() - found.keys()):
        raise ModelError(f"{directory} lacks the tensor {name} (shape {tuple(expected[name])}) that config.json needs")
    for name in sorted(found.keys() - expected.keys() - set(optional)):
        raise ModelError(f"{directory} holds the tensor {name}, for which config.json has no place")
    for name, shape in expected.items():
        piece = found[name].get_slice(name)
        if tuple(piece.get_shape()) != tuple(shape):
            raise ModelError(f"{directory}: {name} has shape {tuple(piece.get_shape())}, config.json asks for "
                             f"{tuple(shape)}")
        if piece.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ModelError(f"{directory}: {name} is stored as {piece.get_dtype()}; weights must be floating point")
    for name in expected:
        tensor = found[name].get_slice(name)[rows[name]] if rows and name in rows else found[name].get_tensor(name)
        if check_finite and not tensor.isfinite().all():
            raise ModelError(f"{directory}: {name} holds NaN or infinity; the weights are damaged")
        yield name, tensor


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
          max_shard_bytes: int = 5 * 10**9, fetch: Callable = lambda tensor: tensor, writes: bool = True) -> None:
    """config.json and the tensors, in one file or (beyond `max_shard_bytes`) in shards with an index.

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
    for file_name, part in zip(names, parts):
        fetched = {name: fetch(tensor.detach()) for name, tensor in part.items()}
        if writes and error is None:
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
                                       "weight_map": {name: file for file, part in zip(names, parts) for name in part}})


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
