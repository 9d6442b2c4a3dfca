"""An atomic checkpoint"""

import tempfile
from pathlib import Path

from hypothesis import strategies as st

FILE = "nanoqwenlong/ops/checkpoint.py"
WRITE = ("_seal", "_remove")
TESTS = ["tests/test_checkpoint.py", "-k", "flipped_bit or prune_keeps or set_aside_counts or ordered"]
TRAIN = None

CASES = st.fixed_dictionaries({"damaged": st.booleans(), "rest": st.booleans(), "number": st.integers(1, 3)})


def record(m, damaged, rest, number):
    """Seal a checkpoint in a new directory. Returns what was done in order, and the files at the end. `damaged`: there
    is an older directory of the same name. `rest`: an earlier attempt to remove it has left something."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory) / "checkpoints"
        return seal(m, top, damaged, rest, number), {str(path.relative_to(top)): path.read_text() for path in
                                                     top.rglob("*") if path.is_file()}


def seal(m, top, damaged, rest, number):
    partial, final = top / ".partial-step_000020", top / "step_000020"
    for directory in (partial, *[final] * damaged, *[top / ".removed-step_000020"] * rest):
        directory.mkdir(parents=True)
        for i in range(number):
            (directory / f"file-{i}").write_text(directory.name)
    done, sync, rename, write = [], m.sync, Path.rename, Path.write_text
    m.sync = lambda path: done.append(("sync", str(path.relative_to(top.parent))))
    m._delete = lambda path, delete=m._delete: (done.append(("delete", path.name)), delete(path))
    Path.rename = lambda self, to: (done.append(("rename", self.name, Path(to).name)), rename(self, to))[1]
    Path.write_text = lambda self, *text, **how: (done.append(("write", self.name)), write(self, *text, **how))[1]
    try:
        m._seal(partial, final, {"file-0": {"bytes": 3, "sha256": "x"}})
    finally:
        m.sync, Path.rename, Path.write_text = sync, rename, write
        m._delete = m._delete.__defaults__[0]
    return done


def answer(m, damaged, rest, number):
    return record(m, damaged, rest, number)


def place(done, *event):
    assert event in done, f"this never happened: {' '.join(event)}"
    return done.index(event)


NEW = ("rename", ".partial-step_000020", "step_000020")


def synced_before_named(m, damaged, rest, number):
    """The manifest and the directory's names are on the disk before the checkpoint gets its name"""
    done, _ = record(m, damaged, rest, number)
    written, named = place(done, "write", "manifest.json"), place(done, *NEW)
    manifest = place(done, "sync", "checkpoints/.partial-step_000020/manifest.json")
    assert written < manifest < place(done, "sync", "checkpoints/.partial-step_000020") < named


def named_for_good(m, damaged, rest, number):
    """After it has its name, the directories above are synced, so that a power loss cannot take the name away"""
    done, _ = record(m, damaged, rest, number)
    assert place(done, *NEW) < place(done, "sync", "checkpoints") and ("sync", ".") in done[place(done, *NEW):]


def old_one_loses_its_name_first(m, rest, number):
    """An older directory of that name is renamed before any of it is deleted. Half a checkpoint must not look whole"""
    done, _ = record(m, True, rest, number)
    gone = place(done, "rename", "step_000020", ".removed-step_000020")
    assert gone < place(done, *NEW) and ("delete", ".removed-step_000020") in done[gone:]
    assert ("delete", "step_000020") not in done


def the_new_one_is_ready_before_the_old_one_goes(m, number):
    """The new checkpoint is completely on the disk before the old one loses its name"""
    done, _ = record(m, True, False, number)
    ready = place(done, "sync", "checkpoints/.partial-step_000020")
    assert ready < place(done, "rename", "step_000020", ".removed-step_000020")


def only_the_new_one_is_left(m, damaged, rest, number):
    """At the end only the new checkpoint is there, complete, whatever an earlier attempt has left"""
    _, files = record(m, damaged, rest, number)
    if not damaged:                                                            # then nothing had to be removed
        files = {name: text for name, text in files.items() if not name.startswith(".removed")}
    assert files.keys() == {"step_000020/manifest.json", *(f"step_000020/file-{i}" for i in range(number))}
    assert files["step_000020/file-0"] == ".partial-step_000020"


LAWS = (synced_before_named, named_for_good, old_one_loses_its_name_first,
        the_new_one_is_ready_before_the_old_one_goes, only_the_new_one_is_left)
WRONG = (
    ("the checkpoint gets its name before its manifest is on the disk", "    sync(partial / \"manifest.json\")\n", ""),
    ("the names in the new directory are never synced", "    sync(partial)\n    _remove(final)", "    _remove(final)"),
    ("the directory that holds the new name is never synced", "    sync(final.parent)\n", ""),
    ("the old directory is deleted under its own name", "        directory.rename(doomed)\n        _delete(doomed)",
     "        _delete(directory)"),
    ("the old checkpoint is removed before the new one is complete",
     "    (partial / \"manifest.json\").write_text(",
     "    _remove(final)\n    (partial / \"manifest.json\").write_text("))
