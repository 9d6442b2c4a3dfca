"""Checkpoints: what a power loss, a full disk and a spoilt file leave of them, and how other numbers of ranks read
them."""

import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_scripts import metrics, start, without_times, write_rows
from tiny_qwen import tiny_qwen

import train_sft
from nanoqwenlong import errors, optim, parallel, toy
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import checkpoint
from nanoqwenlong.pretrained import weights

SIZES = dict(vocab_size=11, hidden_size=9, intermediate_size=7, num_hidden_layers=1, num_attention_heads=3,
             num_key_value_heads=1, head_dim=2)                 # odd, and rows fewer than ranks
TOKENIZER = SimpleNamespace(save_pretrained=lambda directory: (directory / "tokenizer.json").write_text('{"a": 0}\n'))


def trained(seed: int = 0, layers=1, prepare=None, **changes):
    """A tiny model after one step of AdamW, and its optimizer. lm_head had no gradient, so it has no state."""
    model = tiny_qwen(dtype=torch.float32, seed=seed, **{**SIZES, **changes})
    if prepare:
        prepare(model)
    optimizer = optim.adamw(model, 1e-2, 0.1)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * seed + number))
        if name != "lm_head.weight":
            parameter.grad = torch.zeros_like(parameter)
            parallel.local(parameter.grad).copy_(whole[parallel.rows(parameter)])
    optimizer.step()
    return model, optimizer


def write_checkpoint(directory: Path, step: int, **state) -> Path:
    path = directory / checkpoint.name_of(step)
    checkpoint.save(path, *(pair := trained(step))[:1], TOKENIZER, pair[1], {"step": step, "states": {}, **state})
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> list[str]:
    """Flags of a run of train_sft.py that takes 60 ms: 20,000 weights, four examples, a checkpoint after each step."""
    directory = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "CONFIG", {**toy.CONFIG, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                                      "num_attention_heads": 1, "num_key_value_heads": 1})
        for part in toy.new_model(0):
            part.save_pretrained(directory / "model")
    write_rows(directory / "rows.jsonl", toy.examples(4, toy.SHORT, 0))
    return ["--model", str(directory / "model"), "--data", str(directory / "rows.jsonl"), "--batch-size", "2",
            "--eval-every", "0", "--save-every", "1", "--print-every", "100", "--warmup-steps", "2"]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(directory: Path) -> tuple:
    """What equal runs have in common to the bit: the last checkpoint's tensors and state, and metrics without times."""
    last = checkpoint.all_of(directory / "checkpoints")[-1]
    assert checkpoint.verify(last) == []
    state = json.loads((last / "state.json").read_text())
    for name in ("seconds", "logs", "config"):
        del state[name]
    state["inputs"] = sorted(state["inputs"].values())
    tensors = {f"{path.name}/{name}": tensor.numpy().tobytes() for path in sorted(last.glob("*.safetensors"))
               for name, tensor in load_file(path).items()}
    assert tensors.keys() & {"model.safetensors/lm_head.weight"} and any("exp_avg_sq" in name for name in tensors)
    return tensors, state, without_times(metrics(directory))


# Power loss

class Disk:
    """Stands between a writer and the tree below `root` and records what it does to it, so that afterwards every
    state can be made in which a power loss could leave the disk.

    ops: ("data", file, bytes), ("names", folder, [(name, node before, node after)]), ("sync", node), ("told", step)."""

    def __init__(self, root: Path, monkeypatch):
        self.root, self.ops, self.names, self.stamps, self.written = root, [], {}, {}, {}
        self.nodes = {root.stat().st_ino: 0}                    # of inodes; the root is node 0
        self.folders, self.num_nodes = {0}, 1
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            monkeypatch.setattr(os, name, self.watched(name, getattr(os, name)))
        save = checkpoint.save

        def told(final, *args):
            save(final, *args)
            self.look()
            self.written[final.name] = frozenset(contents(final).items())
            self.ops.append(("told", final.name, None))
        monkeypatch.setattr(checkpoint, "save", told)

    def watched(self, name, real):
        def call(*args, **kwargs):
            self.look()
            result = real(*args, **kwargs)
            self.look()
            if name == "fsync" and (node := self.nodes.get(os.fstat(args[0]).st_ino)) is not None:
                self.ops.append(("sync", node, None))
            return result
        return call

    def look(self) -> None:
        """What has changed since the last look."""
        names, nodes, fresh, todo = {}, {self.root.stat().st_ino: 0}, [], [(self.root, 0)]
        for folder, parent in todo:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                info = entry.stat()
                node = self.nodes.get(info.st_ino)
                if node is None:
                    node, self.num_nodes = self.num_nodes, self.num_nodes + 1
                nodes[info.st_ino] = names[parent, entry.name] = node
                if entry.is_dir():
                    self.folders.add(node)
                    todo.append((entry.path, node))
                elif self.stamps.get(node) != (info.st_size, info.st_mtime_ns):
                    self.stamps[node] = info.st_size, info.st_mtime_ns
                    fresh.append(("data", node, Path(entry.path).read_bytes()))
        for key, node in names.items():
            if self.names.get(key) != node:
                moved = [(name, node, None) for (folder, name), old in self.names.items()
                         if old == node and (folder, name) not in names]
                self.ops.append(("names", key[0], [*moved, (key[1], self.names.get(key), node)]))
        for key, node in self.names.items():
            if key not in names and node not in names.values():
                self.ops.append(("names", key[0], [(key[1], node, None)]))
        self.ops += fresh
        self.names, self.nodes = names, nodes

    def states(self, each: int, seed: int = 0):
        """(how many ops were done, tree) of states after a power loss, `each` or fewer of them for each number of ops.
        A tree is a set of (name, bytes or tree). What was synced is as it was then; of the rest every change of a name
        is there or not (if it can be without those left out), and a file's bytes are new, old, cut, or zeros from some
        place on."""
        rng = random.Random(seed)
        names, pending, durable, latest = {}, {}, {}, {}
        for done, (kind, node, what) in enumerate(self.ops, start=1):
            if kind == "data":
                latest[node] = what
            elif kind == "names":
                pending.setdefault(node, []).append(what)
            elif kind == "sync" and node in self.folders:
                self.apply(names.setdefault(node, {}), pending.pop(node, []))
            elif kind == "sync":
                durable[node] = latest[node]
            changes = [(folder, i) for folder, list_ in pending.items() for i in range(len(list_))]
            dirty = [file for file, data in latest.items() if durable.get(file) != data]
            plans = [(set(changes), {}), (set(), {file: durable.get(file, b"") for file in dirty})]
            plans += [(set(changes) - {change}, {}) for change in changes] + [({change}, {}) for change in changes]
            plans += [(set(changes), {file: self.damaged(latest[file], durable.get(file, b""), rng)}) for file in dirty]
            rng.shuffle(plans)
            for place in range(each if dirty else min(each, 2 ** len(changes))):
                kept, data = plans[place] if place < len(plans) else (
                    {change for change in changes if rng.random() < (0.5, 0.8, 0.95, 1)[place % 4]},
                    {file: self.damaged(latest[file], durable.get(file, b""), rng) for file in dirty
                     if rng.random() < (0.2, 0.5, 0.8)[place % 3]})
                yield done, self.tree(names, pending, kept, {**latest, **data})

    @staticmethod
    def damaged(new: bytes, old: bytes, rng) -> bytes:
        place = rng.randint(0, len(new))
        zeros = bytes(len(new) - place)
        return rng.choice([old, *2 * [new[:place], new[:place] + zeros], new[:place] + old[place:]])

    @staticmethod
    def apply(entries: dict, list_, views=None) -> None:
        for change in list_:
            if all(entries.get(name) == before for name, before, _ in change) and not (
                    views and len(change) == 1 and change[0][2] is None and views.get(change[0][1])):   # rmdir: empty
                for name, _, after in change:
                    entries.pop(name, None)
                    if after is not None:
                        entries[name] = after

    def tree(self, names, pending, kept, data) -> frozenset:
        views = {}
        for folder in sorted(self.folders, reverse=True):                      # inner folders have higher numbers
            views[folder] = dict(names.get(folder, {}))
            there = [change for i, change in enumerate(pending.get(folder, [])) if (folder, i) in kept]
            self.apply(views[folder], there, views)

        def grow(node):
            return (frozenset((name, grow(child)) for name, child in views[node].items()) if node in self.folders
                    else data.get(node, b""))
        return grow(0)


def plant(tree, directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, item in tree:
        (directory / name).write_bytes(item) if isinstance(item, bytes) else plant(item, directory / name)


def judge(disk: Disk, tmp: Path, each: int, inside=("checkpoints",), go_on: int = 0) -> Counter:
    """Count what checkpoint.newest makes of the states: `garbage` was accepted, a good one `missed`, one whose save had
    returned and that nobody had begun to remove `lost`, `none` left. After every `go_on`-th state one more is saved."""
    counts, verdicts, seen = Counter(), {}, set()
    returned, removed = [set()], [set()]                                       # after so many ops
    for kind, node, what in disk.ops:
        returned.append(returned[-1] | ({node} if kind == "told" else set()))
        gone = {name for name, before, after in what if after is None} if kind == "names" else set()
        removed.append(removed[-1] | gone)
    for done, tree in disk.states(each):
        if (done, tree) in seen:
            continue
        seen.add((done, tree))
        for name in inside:
            tree = dict(tree).get(name, frozenset())
        if (visible := frozenset(item for item in tree if item[0].startswith("step_"))) not in verdicts:
            stage = tmp / "stage"
            plant(visible, stage)
            found, complaints = checkpoint.newest(stage)
            assert [line.split(": ")[0] for line in complaints] == [
                str(path) for path in reversed(checkpoint.all_of(stage)) if not found or path.name > found.name]
            verdicts[visible] = found and found.name
            shutil.rmtree(stage)
        found, good = verdicts[visible], {name for name, files in visible if files == disk.written.get(name)}
        alive = returned[done] - removed[done]
        counts["states"] += 1
        counts["garbage"] += found is not None and found not in good
        counts["missed"] += bool(good) and (found or "") < max(good)
        counts["lost"] += not alive <= good or bool(returned[done]) and (found or "") < max(returned[done])
        counts["none"] += bool(returned[done]) and found is None
        if go_on and counts["states"] % go_on == 0:
            plant(tree, tmp / "stage")
            path = write_checkpoint(tmp / "stage", 9)
            checkpoint.prune(tmp / "stage", keep=1)
            assert checkpoint.newest(tmp / "stage") == (path, []) and list((tmp / "stage").iterdir()) == [path]
            shutil.rmtree(tmp / "stage")
            counts["gone on"] += 1
    return counts


def recorded(tmp: Path, monkeypatch, num_saves: int = 4) -> Disk:
    """Four checkpoints are saved, of which two are kept."""
    (tmp / "run").mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(tmp / "run", patch)
        for step in range(1, num_saves + 1):
            write_checkpoint(tmp / "run/checkpoints", step)
            checkpoint.prune(tmp / "run/checkpoints", keep=2)
            disk.look()
    return disk


def test_no_power_loss_loses_a_checkpoint_or_passes_off_garbage(tmp_path, monkeypatch):
    counts = judge(recorded(tmp_path, monkeypatch), tmp_path, each=400, go_on=600)
    assert counts["states"] >= 10_000 and counts["gone on"] >= 15
    assert not (counts["garbage"] or counts["missed"] or counts["lost"] or counts["none"]), counts


@pytest.mark.full
def test_no_power_loss_in_a_hundred_thousand_does(tmp_path, monkeypatch):
    counts = judge(recorded(tmp_path, monkeypatch, 6), tmp_path, each=2700, go_on=5000)
    assert counts["states"] >= 100_000
    assert not (counts["garbage"] or counts["missed"] or counts["lost"] or counts["none"]), counts


@pytest.mark.parametrize("skipped, found", [("files", "lost"), ("folders", "lost"), ("both", "lost"),
                                            ("both, and no sha256", "garbage"), ("the order", "lost")])
def test_the_power_loss_model_sees_what_is_left_out(tmp_path, monkeypatch, skipped, found):
    """Negative controls: without syncs it finds losses, without sha256 garbage, with prune before save losses too."""
    sync, save = checkpoint.sync, checkpoint.save
    if skipped == "the order":
        def save_late(final, *args):
            checkpoint.prune(final.parent, keep=1)
            for path in checkpoint.all_of(final.parent):
                checkpoint._remove(path)
            save(final, *args)
        monkeypatch.setattr(checkpoint, "save", save_late)
    else:
        monkeypatch.setattr(checkpoint, "sync", lambda path: None if skipped.startswith("both") or path.is_dir() == (
            skipped == "folders") else sync(path))
    if "sha256" in skipped:
        monkeypatch.setattr(checkpoint, "_problems", lambda path: [] if (path / "manifest.json").exists() else ["no"])
    counts = judge(recorded(tmp_path, monkeypatch), tmp_path, each=5)
    assert counts[found] > 20 and (found == "garbage" or not counts["garbage"]), counts


def test_a_power_loss_leaves_a_whole_run_its_checkpoints(in_tmp, small, monkeypatch):
    """The run's own directory is new, too, and so is the one it is in."""
    with monkeypatch.context() as patch:
        disk = Disk(in_tmp, patch)
        assert start(train_sft, *small, "--steps", 2, "--runs-dir", "new/runs") == 0
        disk.look()
    (in_tmp / "stages").mkdir()
    counts = judge(disk, in_tmp / "stages", each=5, inside=("new", "runs", "sft", "checkpoints"))
    assert counts["states"] > 300 and not (counts["garbage"] or counts["lost"] or counts["none"]), counts


# A disk that is full, or fails

def failing(patch, root: Path, at: int | None = None, code: int = errno.ENOSPC) -> list[str]:
    """A list that grows by every operation on files below `root`. Operation `at` fails, a write after half of it."""
    done = []

    def hit(what, path) -> bool:
        if not isinstance(path, str | os.PathLike) or not str(Path(path).absolute()).startswith(str(root)) or (
                what in ("mkdir", "unlink") and Path(path).exists() == (what == "mkdir")):              # not even tried
            return False
        done.append(f"{what} {Path(path).name}")
        return len(done) - 1 == at

    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))

    def replaced(owner, name, path_of=lambda *args: args[0]):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            return refuse(path) if hit(name, path := path_of(*args)) else real(*args, **kwargs)
        patch.setattr(owner, name, call)

    def opened(path, mode="r", *args, **kwargs):
        if set(mode) & set("wa+") and hit("open" if "+" in mode else "write", path):
            return refuse(path) if "+" in mode else HalfWritten(real_open(path, mode, *args, **kwargs))
        return real_open(path, mode, *args, **kwargs)

    class HalfWritten:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[:len(content) // 2])
            refuse(self.file.name)

    def save_half(tensors, path, **kwargs):
        save_file(tensors, path, **kwargs)
        if hit("save_file", path):
            os.truncate(path, Path(path).stat().st_size // 2)
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")

    real_open = builtins.open
    for name in ("rename", "replace", "unlink", "mkdir", "chmod", "truncate"):
        replaced(os, name)
    replaced(os, "fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
    patch.setattr(builtins, "open", opened)
    patch.setattr(io, "open", opened)
    patch.setattr(weights, "save_file", save_half)
    return done


@pytest.fixture
def two_steps(in_tmp, small) -> tuple[list[str], Path, tuple]:
    """Flags of a run of three steps, its directory after two, and what it should have become after the third."""
    assert start(train_sft, *small, "--steps", 3, "--name", "undisturbed") == 0
    assert start(train_sft, *small, "--steps", 2) == 0
    return [*small, "--steps", "3"], in_tmp / "runs/sft", outcome(in_tmp / "runs/undisturbed")


def fails_well(case, in_tmp, two_steps, capsys, monkeypatch, at: int, code: int, operation: str) -> None:
    """The third step of a run with operation `at` failing, and the start after it."""
    flags, directory, expected = two_steps
    shutil.rmtree(directory)
    shutil.copytree(in_tmp / "kept", directory)
    before = contents(directory / "checkpoints/step_000002")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        failing(patch, directory, at, code)
        ended = start(train_sft, *flags)
    error = capsys.readouterr().err
    if operation.endswith(".exit.json.0.partial"):
        assert ended == errors.DONE and error == "", case                         # what can be done without
    else:
        assert ended == errors.IO_ERROR and error.count("\n") == 1 and os.strerror(code) in error, (case, error)
        told = json.loads((directory / "exit.json").read_text())
        assert told["code"] == 74 and os.strerror(code) in told["reason"] and told["checkpoint"], case
    assert contents(directory / "checkpoints/step_000002") == before, case
    assert all(checkpoint.verify(path) == [] for path in checkpoint.all_of(directory / "checkpoints")), case
    assert start(train_sft, *flags) == 0 and outcome(directory) == expected, case
    assert {path.name for path in (directory / "checkpoints").iterdir()} <= {
        "step_000001", "step_000002", "step_000003"}, case


CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)


def operations_of(in_tmp, two_steps, monkeypatch) -> list[str]:
    flags, directory, expected = two_steps
    shutil.copytree(directory, in_tmp / "kept")
    with monkeypatch.context() as patch:
        operations = failing(patch, directory)
        assert start(train_sft, *flags) == 0
    assert outcome(directory) == expected
    return operations


def test_a_full_or_failing_disk_costs_one_step(in_tmp, two_steps, monkeypatch, capsys):
    operations = operations_of(in_tmp, two_steps, monkeypatch)
    chosen = range(0, len(operations), len(operations) // 18)
    assert len({operations[at] for at in chosen}) >= 15 and len({operations[at].split()[0] for at in chosen}) >= 4
    for number, at in enumerate(chosen):
        code = CODES[number % 4]
        case = f"operation {at} ({operations[at]}), {errno.errorcode[code]}"
        fails_well(case, in_tmp, two_steps, capsys, monkeypatch, at, code, operations[at])


@pytest.mark.full
def test_every_operation_may_fail_in_every_way(in_tmp, two_steps, monkeypatch, capsys):
    operations = operations_of(in_tmp, two_steps, monkeypatch)
    assert len({operation.split()[0] for operation in operations}) >= 8
    for at, operation in enumerate(operations):
        for code in CODES:
            case = f"operation {at} ({operation}), {errno.errorcode[code]}"
            fails_well(case, in_tmp, two_steps, capsys, monkeypatch, at, code, operation)


def begin(work, **streams) -> int:
    """work(), which returns the exit code, in a forked process: its number. streams: stderr="file", say."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(100)
            for name, path in streams.items():
                setattr(sys, name, open(path, "w"))
            code = work()
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return pid


def end(pid: int) -> int:
    """The exit code of a forked process, once there is one; the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work, **streams) -> int:
    return end(begin(work, **streams))


@pytest.mark.parametrize("limit, part", [(60_000, "model.safetensors"), (150_000, "optimizer-"), (20_000, "model")])
def test_a_limit_of_the_system_ends_a_run_in_one_sentence(in_tmp, two_steps, limit, part):
    flags, directory, expected = two_steps

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return start(train_sft, *flags)
    before = contents(directory / "checkpoints/step_000002")
    assert in_child(limited, stderr="told") == errors.IO_ERROR
    told = Path("told").read_text()
    assert told.count("\n") == 1 and part in told and "too large" in told
    assert contents(directory / "checkpoints/step_000002") == before
    assert checkpoint.newest(directory / "checkpoints") == (directory / "checkpoints/step_000002", [])
    assert start(train_sft, *flags) == 0 and outcome(directory) == expected


def test_free_space_is_looked_at_first_and_told(in_tmp, two_steps, monkeypatch, capsys):
    flags, directory, expected = two_steps
    needed = 3 * 4 * 19_808                                     # weights and two moments in float32
    before = contents(directory / "checkpoints/step_000002")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1000))
        assert start(train_sft, *flags) == errors.IO_ERROR
        error = capsys.readouterr().err
        assert f"needs {needed:,} bytes, {needed - 1000:,} are free" in error
        assert error.count("\n") == 1
        assert contents(directory / "checkpoints/step_000002") == before and not list(directory.rglob("step_000003"))
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
        assert start(train_sft, *flags) == 0
    assert outcome(directory) == expected


# Spoilt files

def flip(path: Path, rng) -> str:
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bit {place} of {path.name}"


def test_every_flipped_bit_cut_and_stray_file_is_noticed_and_named(tmp_path):
    good, bad = (write_checkpoint(tmp_path / "checkpoints", step) for step in (1, 2))
    rng, files, tried = random.Random(0), contents(bad), Counter()

    def judged(case, name):
        found, complaints = checkpoint.newest(tmp_path / "checkpoints")
        assert found == good and len(complaints) == 1, case
        assert complaints[0].startswith(f"{bad}: {name} "), (case, complaints)
        assert name == "manifest.json" or ("bytes, the" in complaints[0]) == case.startswith(("cut", "extended")), case
        assert checkpoint.verify(bad) == [complaints[0].removeprefix(f"{bad}: ")]
        for path in bad.iterdir():
            path.unlink()
        for each, data in files.items():
            (bad / each).write_bytes(data)
        tried[case.split()[0]] += 1
    for number in range(400):
        name = sorted(files)[number % len(files)]
        judged(flip(bad / name, rng), name)
    for number in range(56):
        name = sorted(files)[number % len(files)]
        os.truncate(bad / name, place := rng.randrange(len(files[name])) if number >= len(files) else 0)
        judged(f"cut {name} at {place}", name)
    for name in files:
        for more in (b"\n", b"\0", b"\0" * 4096, files[name]):
            (bad / name).write_bytes(files[name] + more)
            judged(f"extended {name} by {more[:10]}", name)
        (bad / name).unlink()
        judged(f"deleted {name}", name)
        (bad / name).write_bytes(rng.randbytes(len(files[name])))
        judged(f"replaced {name}", name)
    for name in ("model-00002-of-00002.safetensors", "optimizer-00001-of-00002.safetensors",
                 "model.safetensors.index.json"):
        (bad / name).write_bytes(b"")
        judged(f"stray {name}", name)
    (bad / ".DS_Store").write_bytes(b"")                              # a file that is never read does no harm
    assert checkpoint.newest(tmp_path / "checkpoints") == (bad, [])
    (bad / ".DS_Store").unlink()
    text = files["manifest.json"].decode()
    digest = sha256(files["state.json"]).hexdigest()
    for old, new in ((digest, sha256(b"").hexdigest()), ("state.json", "slate.json"), ('"format": 1', '"format": 2'),
                     ('"bytes": ', '"bytes": 1')):
        (bad / "manifest.json").write_text(text.replace(old, new, 1))
        judged(f"edited {old} in the manifest", "manifest.json")
    (bad / "manifest.json").write_text(checkpoint.manifest_text(      # by somebody who knew how
        {name: {**entry, "sha256": digest} for name, entry in json.loads(text[:-65])["files"].items()}))
    assert len(checkpoint.verify(bad)) == len(files) - 2
    assert tried["bit"] == 400 and tried["cut"] == 56 and tried["deleted"] == len(files) == 6
    shutil.rmtree(bad)
    bad.write_text("")
    assert checkpoint.newest(tmp_path / "checkpoints")[0] == good     # not even a directory


@pytest.mark.parametrize("what", ["flip", "delete", "stray", "manifest"])
def test_a_run_passes_over_a_spoilt_checkpoint_says_so_and_keeps_it(in_tmp, two_steps, capsys, what):
    flags, directory, expected = two_steps
    bad = directory / "checkpoints/step_000002"
    name = {"flip": "model.safetensors", "delete": "tokenizer.json", "stray": "optimizer-00009-of-00009.safetensors",
            "manifest": "manifest.json"}[what]
    if what == "flip":
        flip(bad / name, random.Random(0))
    elif what == "delete":
        (bad / name).unlink()
    else:
        (bad / name).write_text("{}")
    kept = contents(bad)
    capsys.readouterr()
    assert start(train_sft, *flags) == 0 and outcome(directory) == expected
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"passed over {bad.relative_to(in_tmp)}: {name} ")
    assert f"resuming from {directory.relative_to(in_tmp)}/checkpoints/step_000001" in said
    assert contents(directory / "checkpoints/spoilt_step_000002") == kept


def test_without_one_that_verifies_the_run_ends_and_deletes_nothing(in_tmp, two_steps, capsys):
    flags, directory, _ = two_steps
    for path in checkpoint.all_of(directory / "checkpoints"):
        flip(path / "model.safetensors", random.Random(0))
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    before = [path.read_bytes() for path in files]
    capsys.readouterr()
    assert start(train_sft, *flags) == errors.IO_ERROR
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "no checkpoint of" in told.err and "--name" in told.err
    assert [line.split(": ")[0] for line in told.out.splitlines()] == [
        f"passed over runs/sft/checkpoints/step_00000{step}" for step in (2, 1)]
    assert before == [path.read_bytes() for path in files]


# Other numbers of ranks

def on_ranks(num: int, work) -> None:
    """work() on so many forked ranks, which talk over gloo."""
    meeting = f"file://{Path('meeting').absolute()}-{time.monotonic_ns()}"

    def rank(number):
        dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=num, timeout=timedelta(seconds=60))
        work()
        dist.destroy_process_group()
        return 0
    pids = [begin(lambda: rank(number)) for number in range(num)]
    assert [end(pid) for pid in pids] == [0] * num


WORLDS = {"one": (1, 0), "two": (2, 0), "four": (4, 0), "hsdp": (4, 2)}        # ranks, replicas


def sharded(replicas: int):
    return lambda model: parallel.shard(model, model.model.layers, torch.float32, replicas=replicas)


def all_of_it(model, optimizer) -> dict[str, torch.Tensor] | None:
    """Weights and optimizer state in one piece, on rank 0."""
    found = {name: parallel.full(parameter.detach()) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{name}/{key}": parallel.full(value) for key, value in optimizer.state.get(parameter, {}).items()}
    return found if parallel.rank() == 0 else None


def check_resharding(tmp: Path, worlds) -> None:
    for writer in worlds:
        def write():
            model, optimizer = trained(prepare=sharded(WORLDS[writer][1]))
            checkpoint.save(tmp / writer / "step_000001", model, TOKENIZER, optimizer, {"step": 1})
            if (expected := all_of_it(model, optimizer)) is not None:
                save_file({name: tensor.contiguous() for name, tensor in expected.items()}, tmp / f"{writer}.expected")
        on_ranks(WORLDS[writer][0], write)
        assert len(list((tmp / writer / "step_000001").glob("optimizer-*"))) == WORLDS[writer][0]
    for reader in worlds:
        def read():
            for writer in worlds:
                path = tmp / writer / "step_000001"
                assert checkpoint.newest(tmp / writer) == (path, [])
                model = Qwen.from_pretrained(path, torch.float32, "cpu", sharded(WORLDS[reader][1]))
                assert parallel.size() == 1 or all(parallel.is_sharded(p) for p in model.parameters())
                optimizer = optim.adamw(model, 1e-2, 0.1)
                checkpoint.load_optimizer(path, model, optimizer)
                assert not optimizer.state.get(model.lm_head.weight)           # it had no gradient
                found, expected = all_of_it(model, optimizer), load_file(tmp / f"{writer}.expected")
                if found is not None:
                    assert found.keys() == expected.keys() and len(found) > 40, (writer, found.keys() ^ expected.keys())
                    assert all(tensor.equal(expected[name]) for name, tensor in found.items()), writer
        on_ranks(WORLDS[reader][0], read)
    first, *others = (load_file(tmp / f"{world}.expected") for world in worlds)
    assert all(tensor.equal(first[name]) for other in others for name, tensor in other.items())


def test_what_two_ranks_write_one_reads_and_the_reverse(in_tmp):
    check_resharding(in_tmp, ["one", "two"])


@pytest.mark.full
def test_any_number_of_ranks_reads_what_any_number_wrote(in_tmp):
    check_resharding(in_tmp, list(WORLDS))


def test_state_of_an_optimizer_that_was_not_fused(tmp_path):
    """Older versions used torch's foreach AdamW. Its step is a tensor on the CPU wherever the weights are; the fused
    one needs it beside them. Both go on to the same weights, up to float32's rounding."""
    model, fused = trained(1)
    groups = [{name: group[name] for name in ("params", "weight_decay")} for group in fused.param_groups]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=True)
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    plain.step()
    assert {state["step"].device.type for state in plain.state.values()} == {"cpu"}
    checkpoint.save(tmp_path / "step_000001", model, TOKENIZER, plain, {"step": 1})
    resumed = Qwen.from_pretrained(tmp_path / "step_000001")
    optimizer = optim.adamw(resumed, 1e-2, 0.1)
    checkpoint.load_optimizer(tmp_path / "step_000001", resumed, optimizer)
    for parameter, twin in zip(model.parameters(), resumed.parameters(), strict=True):
        twin.grad = gradients[parameter]
    plain.step()
    optimizer.step()
    for parameter, twin in zip(model.parameters(), resumed.parameters(), strict=True):
        assert (parameter - twin).abs().max() <= 4 * torch.finfo(torch.float32).eps * parameter.abs().max()
        assert optimizer.state[twin].get("step") == plain.state[parameter].get("step")
    elsewhere = Qwen.from_pretrained(tmp_path / "step_000001").to("meta")
    optimizer = optim.adamw(elsewhere, 1e-2, 0.1)
    checkpoint.load_optimizer(tmp_path / "step_000001", elsewhere, optimizer)
    assert {value.device.type for state in optimizer.state.values() for value in state.values()} == {"meta"}


def split_by_hand(path: Path) -> None:
    """One rank's optimizer file becomes those of two, cut after the third row."""
    whole = load_file(path / "optimizer-00000-of-00001.safetensors")
    (path / "optimizer-00000-of-00001.safetensors").unlink()
    for number in range(2):
        part = {name: tensor if tensor.ndim == 0 else (tensor[:3], tensor[3:])[number].contiguous()
                for name, tensor in whole.items() if number == 0 or tensor.ndim and len(tensor) > 3}
        rows = {name: 3 * number if tensor.ndim else 0 for name, tensor in part.items()}
        weights.write_file(path / f"optimizer-0000{number}-of-00002.safetensors", part, {"rows": json.dumps(rows)})


def test_optimizer_state_that_does_not_fit_is_refused_in_one_sentence(tmp_path):
    model, trained_optimizer = trained(1)
    expected = all_of_it(model, trained_optimizer)

    def load(path, model=model):
        optimizer = optim.adamw(model, 1e-2, 0.1)
        checkpoint.load_optimizer(path, model, optimizer)
        return all_of_it(model, optimizer)
    path = write_checkpoint(tmp_path, 1)
    assert all(tensor.equal(expected[name]) for name, tensor in load(path).items())
    os.rename(path / "optimizer-00000-of-00001.safetensors", tmp_path / "elsewhere")
    with pytest.raises(errors.CheckpointError, match="step_000001 lacks"):
        load(path)
    os.rename(tmp_path / "elsewhere", path / "optimizer-00000-of-00001.safetensors")
    split_by_hand(path)
    assert all(tensor.equal(expected[name]) for name, tensor in load(path).items())
    for number in range(2):
        os.rename(path / f"optimizer-0000{number}-of-00002.safetensors", tmp_path / "elsewhere")
        with pytest.raises(errors.CheckpointError, match="step_000001"):
            load(path)
        os.rename(tmp_path / "elsewhere", path / f"optimizer-0000{number}-of-00002.safetensors")
    second = path / "optimizer-00001-of-00002.safetensors"
    part = load_file(second)
    rows = {name: 3 for name in part}
    dropped = part.pop("model.embed_tokens.weight/exp_avg_sq")
    weights.write_file(second, part, {"rows": json.dumps(rows)})
    with pytest.raises(errors.CheckpointError, match="rows of model.embed_tokens.weight/exp_avg_sq are in none"):
        load(path)
    weights.write_file(second, {**part, "model.embed_tokens.weight/exp_avg_sq": dropped[1:].contiguous()},
                       {"rows": json.dumps({**rows, "model.embed_tokens.weight/exp_avg_sq": 4})})
    with pytest.raises(errors.CheckpointError, match="rows of model.embed_tokens.weight/exp_avg_sq are in none"):
        load(path)
    part |= {"model.embed_tokens.weight/exp_avg_sq": dropped, "model.extra/exp_avg": 0 * dropped}
    weights.write_file(second, part, {"rows": json.dumps({**rows, "model.extra/exp_avg": 0})})
    with pytest.raises(errors.CheckpointError, match="optimizer state of model.extra, which this model lacks"):
        load(path)
    second.write_bytes(b"{}")
    with pytest.raises(errors.CheckpointError, match="optimizer-00001-of-00002.safetensors is not a readable"):
        load(path)


# The directory of checkpoints

def folders(directory: Path, *names) -> list[str]:
    for name in names:
        (directory / name).mkdir()
        (directory / name / "file").write_text(name)
    return sorted(path.name for path in directory.iterdir())


def test_checkpoints_are_ordered_by_their_step(tmp_path):
    folders(tmp_path, "step_1000000", "step_999999", "step_000002", "step_10000000", "step_00001", "step_x", "steps",
            ".partial-step_000004", ".removed-step_000003", "spoilt_step_000005", "step_000006.bak")
    assert [path.name for path in checkpoint.all_of(tmp_path)] == ["step_000002", "step_999999", "step_1000000",
                                                                  "step_10000000"]
    assert [checkpoint.name_of(step) for step in (7, 999999, 1000000)] == ["step_000007", "step_999999", "step_1000000"]
    assert checkpoint.all_of(tmp_path / "nowhere") == [] and checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_prune_keeps_the_newest_and_the_ends_and_clears_what_was_never_finished(tmp_path):
    steps = [f"step_{step:06d}" for step in (1, 2, 3, 4, 5)]
    folders(tmp_path, *steps, ".partial-step_000006", ".removed-step_000000", "spoilt_step_000002")
    checkpoint.prune(tmp_path, keep=5)
    assert folders(tmp_path) == ["spoilt_step_000002", *steps]
    checkpoint.prune(tmp_path, keep=2, ends={2, 5})
    assert folders(tmp_path) == ["spoilt_step_000002", "step_000002", "step_000004", "step_000005"]
    checkpoint.prune(tmp_path, keep=2)
    assert folders(tmp_path) == ["spoilt_step_000002", "step_000004", "step_000005"]


def test_what_is_set_aside_counts_no_more_but_stays(tmp_path):
    folders(tmp_path, "step_000001", "step_000002", "step_000003", "spoilt_step_000003")
    checkpoint.set_aside(tmp_path, tmp_path / "step_000001")
    assert folders(tmp_path) == ["spoilt_step_000002", "spoilt_step_000003", "step_000001"]
    assert (tmp_path / "spoilt_step_000003/file").read_text() == "step_000003"
    checkpoint.set_aside(tmp_path, None)
    assert checkpoint.all_of(tmp_path) == [] and len(folders(tmp_path)) == 3


def test_another_format_is_refused(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path, 3)
    assert checkpoint.read_state(path)["step"] == 3 and checkpoint.read_state(path)["world_size"] == 1
    for content in ('{"format": 2}', "{}", '{"format": "1"}'):
        (path / "state.json").write_text(content)
        with pytest.raises(errors.CheckpointError, match="step_000003 has format .*, this code reads 1: "):
            checkpoint.read_state(path)
