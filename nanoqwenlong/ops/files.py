"""Files that are written whole or not at all, and the SHA-256 of the files that decide a run's results."""

import os
from pathlib import Path

from .. import parallel
from ..pretrained.digest import file_digest
from ..pretrained.weights import write_json

ROOT = Path(__file__).resolve().parents[2]


def sync(path: Path) -> None:
    """Return when a file's bytes, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put(path: Path, content: dict | str) -> None:
    """Write a file of JSON or text, whole or not at all."""
    partial = path.with_name(f".{path.name}.{parallel.rank()}.partial")       # several ranks may write exit.json
    partial.unlink(missing_ok=True)                            # it may be a link to another file
    if isinstance(content, str):
        partial.write_text(content, encoding="utf-8")
    else:
        write_json(partial, content)
    sync(partial)
    partial.replace(path)


def inputs(config) -> dict[str, str]:
    """{path: sha256} of the files that every start of a run reads again: data, difficulty, reference model, judge."""
    paths = [*config.data, *getattr(config, "heldout", ()), getattr(config, "difficulty", "")]
    directories = [getattr(config, "judge", "")]
    if getattr(config, "kl_coef", 0) or getattr(config, "measure_kl", False):
        directories.append(config.model)
    for directory in filter(None, directories):
        for pattern in ("config.json", "*.safetensors"):
            paths += map(str, sorted(Path(directory).glob(pattern)))
    return {path: file_digest(Path(path)) for path in paths if Path(path).is_file()}


def code(script: Path) -> dict[str, str]:
    """{path below the project: sha256} of the source that decides results: the script, the package, the kernels."""
    paths = [script.resolve(), *(ROOT / "nanoqwenlong").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
    return {str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name:
            file_digest(path) for path in sorted(paths)}


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """The files that changed, were added or removed: three by name, and how many more. "" if there are none."""
    names = [path + (" (removed)" if path not in now else " (added)" if path not in before else "")
             for path in sorted(before.keys() | now.keys()) if before.get(path) != now.get(path)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
