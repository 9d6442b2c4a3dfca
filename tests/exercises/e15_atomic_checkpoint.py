"""An atomic checkpoint"""

import os
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

from hypothesis import strategies as st

FILE = "nanoqwenlong/ops/checkpoint.py"
WRITE = ("_seal", "_remove")
TESTS = ["tests/test_checkpoint.py", "-k", "no_power_loss_loses or prune_keeps or set_aside_counts"]
TRAIN = None

CASES = st.fixed_dictionaries({"damaged": st.booleans(), "rest": st.booleans(), "number": st.integers(1, 3)})
NEW, OLD, REST = ".partial-step_000020", "step_000020", ".removed-step_000020"
LISTED = {"file-0": {"bytes": 3, "sha256": "x"}}


def watched(real, name, run, moments):
    """A function of os that also notes the moment after it: what it has synced, and the files that are there."""
    def call(what, *more, **how):
        node = os.fstat(what).st_ino if name == "fsync" else None
        result = real(what, *more, **how)
        synced = [str(path.relative_to(run)) for path in (run, *run.rglob("*")) if path.stat().st_ino == node]
        moments.append((synced, files_below(run)))
        return result
    return call


def files_below(run):
    return {str(path.relative_to(run)): path.read_text() for path in run.rglob("*") if path.is_file()}


@cache
def answer(m, damaged, rest, number):
    """Seal a checkpoint in a new directory, and say what held. `damaged`: there is an older directory of that name.
    `rest`: an earlier attempt to remove it has left something."""
    moments = []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        run = Path(directory) / "run"
        for name in (NEW, *[OLD] * damaged, *[REST] * rest):
            (run / "checkpoints" / name).mkdir(parents=True)
            for i in range(number):
                (run / "checkpoints" / name / f"file-{i}").write_text(name)
        for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir"):
            stack.enter_context(patch.object(os, name, watched(getattr(os, name), name, run, moments)))
        m._seal(run / "checkpoints" / NEW, run / "checkpoints" / OLD, LISTED)
        left = {path: text for path, text in files_below(run).items() if damaged or REST not in path}
    old = {f"file-{i}": OLD for i in range(number)} if damaged else {}
    new = {f"file-{i}": NEW for i in range(number)} | {"manifest.json": m.manifest_text(LISTED)}
    named = [{path.rpartition("/")[2]: text for path, text in files.items() if f"/{OLD}/" in path}
             for _, files in moments]                                          # what has the final name, at each moment
    kept = named.index(new) if new in named else len(moments)
    gone = next((i for i, files in enumerate(named) if files != old), len(moments))

    def synced(path, first, last):
        return any(path in paths for paths, _ in moments[first:last])

    def ready(path, last):
        """Whether a path was synced before that moment, when the manifest was whole."""
        return any(path in paths and files.get(manifest) == new["manifest.json"] for paths, files in moments[:last])

    manifest, names = f"checkpoints/{NEW}/manifest.json", f"checkpoints/{NEW}"
    return {"manifest": ready(manifest, kept), "names": ready(names, kept),
            "ready before the old one goes": ready(manifest, gone) and ready(names, gone),
            "name": synced("checkpoints", kept, None), "directory of the name": synced(".", kept, None),
            "whole": all(files in (old, {}, new) for files in named), "left": left}


def synced_before_named(m, damaged, rest, number):
    """The manifest and the directory's names are on the disk before the checkpoint gets its name"""
    held = answer(m, damaged, rest, number)
    assert held["manifest"] and held["names"]


def named_for_good(m, damaged, rest, number):
    """After it has its name, the directories above are synced, so that a power loss cannot take the name away"""
    held = answer(m, damaged, rest, number)
    assert held["name"] and held["directory of the name"]


def never_half(m, damaged, rest, number):
    """An older directory of that name loses it before any of it is deleted. Half a checkpoint must not look whole"""
    assert answer(m, damaged, rest, number)["whole"]


def the_new_one_is_ready_before_the_old_one_goes(m, rest, number):
    """The new checkpoint is completely on the disk before the old one loses its name"""
    assert answer(m, True, rest, number)["ready before the old one goes"]


def only_the_new_one_is_left(m, damaged, rest, number):
    """At the end only the new checkpoint is there, complete, whatever an earlier attempt has left"""
    left = answer(m, damaged, rest, number)["left"]
    expected = {f"checkpoints/{OLD}/file-{i}": NEW for i in range(number)}
    assert left == {**expected, f"checkpoints/{OLD}/manifest.json": m.manifest_text(LISTED)}


LAWS = (synced_before_named, named_for_good, never_half, the_new_one_is_ready_before_the_old_one_goes,
        only_the_new_one_is_left)
WRONG = (
    ("the checkpoint gets its name before its manifest is on the disk", "    sync(partial / \"manifest.json\")\n", ""),
    ("the names in the new directory are never synced", "    sync(partial)\n    _remove(final)", "    _remove(final)"),
    ("the directory that holds the new name is never synced", "    sync(final.parent)\n", ""),
    ("the old directory is deleted under its own name", "        directory.rename(doomed)\n        _delete(doomed)",
     "        _delete(directory)"),
    ("the old checkpoint is removed before the new one is complete",
     "    (partial / \"manifest.json\").write_text(",
     "    _remove(final)\n    (partial / \"manifest.json\").write_text("))
