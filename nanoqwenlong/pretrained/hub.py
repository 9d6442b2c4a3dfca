"""Models by their name on the Hugging Face hub, such as Qwen/Qwen2.5-0.5B-Instruct."""

import errno
import re
from contextlib import suppress
from pathlib import Path

from .. import parallel
from .weights import INDEX, read_index

WANTED = ["*.json", "*.jinja", "*.txt", "*.safetensors"]       # no pickles, nothing in subdirectories


def directory(name: str) -> str:
    """The directory of the model with this name: a path that exists, or else the snapshot of owner/name in the Hugging
    Face cache. If the model is not there, it is downloaded. Any other name stays as it is.

    All ranks call this. The others look after the first rank has downloaded. Raises FileNotFoundError if that fails."""
    if Path(name).exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return name
    first, what = parallel.rank() == 0, f"model {name}"
    place = parallel.on_all_ranks(lambda: _snapshot(name) if first else "", what)[0]
    return parallel.on_all_ranks(lambda: place if first else _snapshot(name), what)[parallel.rank()]


def _snapshot(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download       # imported here: it takes a quarter of a second
    options = dict(allow_patterns=WANTED, ignore_patterns=["*/*"])
    try:
        with suppress(OSError, ValueError):                    # ModelError: a shard is missing
            cached = Path(snapshot_download(name, local_files_only=True, **options))
            shards = read_index(cached).values() if (cached / INDEX).is_file() else ["model.safetensors"]
            needed = ("config.json", "tokenizer.json", *shards)
            if all((cached / file).is_file() for file in needed):   # an interrupted download leaves some out
                return str(cached)
        HfApi().model_info(name, timeout=10)                   # snapshot_download waits forever for a silent server
        return snapshot_download(name, **options)
    except Exception as error:                                 # httpx and huggingface_hub raise many kinds
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(errno.ENOENT, "there is no such directory, no complete copy is in the Hugging Face "
                                f"cache, and the download failed: {why}") from None
