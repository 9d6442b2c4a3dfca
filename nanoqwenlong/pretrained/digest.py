"""SHA-256 of files and of model directories, in hexadecimal."""

import errno
from hashlib import sha256
from pathlib import Path

from .tokenizer import FILES


def file_digest(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_digests(directory: Path) -> dict[str, str]:
    """{file name: SHA-256} of config.json, weights and tokenizer. Raises FileNotFoundError for no such directory."""
    if not directory.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the model's directory is not there", str(directory))
    names = {"config.json", *FILES}
    paths = [path for path in sorted(directory.iterdir()) if path.name in names or path.suffix == ".safetensors"]
    return {path.name: file_digest(path) for path in paths if path.is_file()}
