"""Models by their name on the Hugging Face hub, such as Qwen/Qwen2.5-0.5B-Instruct."""

import errno
import re
from contextlib import suppress
from pathlib import Path

from .. import parallel
from .weights import INDEX, read_index

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")                # owner/name
WANTED = ["*.json", "*.jinja", "*.txt", "*.safetensors"]       # no pickles, nothing in subdirectories


def directory(name: str) -> str:
    """The directory of the model with this name. A path that exists stands for itself, and so does all that is no
    owner/name. Other names are looked up in the Hugging Face cache and, if the model is not there, downloaded.

    All ranks call this. The first rank downloads. Then the others find the files in the cache, or download them if
    their host has another cache. Raises FileNotFoundError if the model cannot be had."""
    if Path(name).exists() or not REPOSITORY.fullmatch(name):
        return name
    first, what = parallel.rank() == 0, f"model {name}"
    place = parallel.on_all_ranks(lambda: _snapshot(name) if first else "", what)[0]
    return parallel.on_all_ranks(lambda: place if first else _snapshot(name), what)[parallel.rank()]


def _snapshot(name: str) -> str:
    from huggingface_hub import HfApi, snapshot_download       # imported here: it takes a quarter of a second
    options = dict(allow_patterns=WANTED, ignore_patterns=["*/*"])
    try:
        with suppress(OSError, ValueError):                    # ModelError: a shard is missing
            cached = snapshot_download(name, local_files_only=True, **options)
            if is_complete(Path(cached)):
                return cached
        HfApi().model_info(name, timeout=10)                   # snapshot_download waits forever for a silent server
        return snapshot_download(name, **options)
    except Exception as error:                                 # httpx and huggingface_hub raise many kinds
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileNotFoundError(errno.ENOENT, "there is no such directory, no complete copy is in the Hugging Face "
                                f"cache, and the download failed: {why}") from None


def is_complete(snapshot: Path) -> bool:
    """Whether a directory has all files of a model. A download that was interrupted leaves some out."""
    shards = read_index(snapshot).values() if (snapshot / INDEX).is_file() else ["model.safetensors"]
    return all((snapshot / name).is_file() for name in ("config.json", "tokenizer.json", *shards))
