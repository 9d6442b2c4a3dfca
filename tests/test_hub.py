"""Hugging Face cache snapshots and hub ids: found in a cache that the tests build, with a network that is not there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import sample
import torch
from conftest import ROOT
from huggingface_hub import constants
from ranks import ranks
from safetensors.torch import load_file

import eval as evaluation
import train_rl
import train_sft
from nanoqwenlong import build
from nanoqwenlong.errors import ConfigError, ModelError
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained import hub, weights

NAME, REVISION = "Nano/Qwen2.5-tiny", "0a1b" * 10


def add_snapshot(cache: Path, directory: Path, name: str = NAME, revision: str = REVISION) -> Path:
    """Puts a model into a cache as huggingface_hub does: blobs under their hashes, a snapshot of links, refs/main."""
    place = cache / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / revision
    for path in (snapshot, place / "blobs", place / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        blob = place / "blobs" / f"{revision[:8]}{path.name.encode().hex()}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (place / "refs/main").write_text(revision)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def snapshot(cache, toy_directory) -> Path:
    return add_snapshot(cache, toy_directory)


# Hugging Face cache snapshots: links to ../../blobs

@pytest.mark.parametrize("shard_bytes", [10**9, 200_000])
def test_a_snapshot_of_links_loads_as_the_plain_directory_does(shard_bytes, cache, toy_directory):
    model = Qwen.from_pretrained(toy_directory)
    shutil.copytree(toy_directory, "plain")
    weights.write("plain", dict(model.state_dict()), model.config, max_shard_bytes=shard_bytes)
    assert len(list(Path("plain").glob("*.safetensors"))) == (1 if shard_bytes == 10**9 else 4)
    other = Qwen.from_pretrained(add_snapshot(cache, Path("plain")))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_an_index_may_name_links_but_no_paths(cache, toy_directory):
    """What a link leads to does not matter. A path in the index is refused, even to the same file."""
    model = Qwen.from_pretrained(toy_directory)
    shutil.copytree(toy_directory, "plain")
    weights.write("plain", dict(model.state_dict()), model.config, max_shard_bytes=200_000)
    snapshot = add_snapshot(cache, Path("plain"))
    index = json.loads((snapshot / weights.INDEX).read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    path = os.readlink(snapshot / first)
    (snapshot / weights.INDEX).unlink()
    changed = {name: path if file == first else file for name, file in index["weight_map"].items()}
    (snapshot / weights.INDEX).write_text(json.dumps({**index, "weight_map": changed}))
    with pytest.raises(ModelError, match="it must be a .safetensors file in the same directory"):
        Qwen.from_pretrained(snapshot)


def test_a_link_whose_blob_is_gone_is_named(snapshot):
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        Qwen.from_pretrained(snapshot)


# Hub ids

def test_a_hub_id_stands_for_its_snapshot_in_the_cache(snapshot):
    assert hub.directory(NAME) == str(snapshot)


def test_a_directory_of_that_name_wins(snapshot):
    Path(NAME).mkdir(parents=True)
    assert hub.directory(NAME) == NAME


@pytest.mark.parametrize("path", ["no-such", "./a/b", "../a/b", "/a/b", "a/b/c", "a/", "~/b", "a b/c", "http://a/b", "",
                                  "new", "a/b/", ".a/b", "a//b"])
def test_what_is_no_hub_id_stays_as_it_is(path, cache):
    assert hub.directory(path) == path


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json", "everything"])
def test_an_incomplete_or_missing_copy_is_one_sentence(lost, snapshot):
    """Without a network. With one, the rest would be downloaded."""
    shutil.rmtree(snapshot.parents[1]) if lost == "everything" else (snapshot / lost).unlink()
    with pytest.raises(FileNotFoundError) as error:
        hub.directory(NAME)
    said = exits.sentence(error.value)
    assert NAME in said and "no complete copy is in the Hugging Face cache" in said and "\n" not in said
    assert "offline mode" in said


def test_a_shard_that_is_missing_makes_a_copy_incomplete(cache, toy_directory):
    model = Qwen.from_pretrained(toy_directory)
    shutil.copytree(toy_directory, "plain")
    weights.write("plain", dict(model.state_dict()), model.config, max_shard_bytes=200_000)
    snapshot = add_snapshot(cache, Path("plain"))
    assert hub.directory(NAME) == str(snapshot)
    (snapshot / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no complete copy"):
        hub.directory(NAME)


class Network:
    """A hub with one model. It notes who downloads."""

    def __init__(self, monkeypatch, cache: Path, source: Path | None):
        self.calls, self.source, self.cache = [], source, cache
        self.snapshot_download = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, name, timeout=None):
        assert timeout and timeout <= 30, "a server that says nothing would be waited for, for ever"
        if self.source is None:
            raise RuntimeError("Repository Not Found\nfor url: https://x")

    def download(self, name, local_files_only=False, **options):
        if not local_files_only:
            self.calls.append(options)
            shutil.rmtree(self.cache, ignore_errors=True)
            add_snapshot(self.cache, self.source, name)
        return self.snapshot_download(name, local_files_only=True)


@pytest.mark.parametrize("partly", [False, True])
def test_with_a_network_it_is_downloaded_once_and_without_pickles(partly, cache, toy_directory, monkeypatch):
    if partly:
        (add_snapshot(cache, toy_directory) / "model.safetensors").unlink()
    network = Network(monkeypatch, cache, toy_directory)
    places = {hub.directory(NAME), hub.directory(NAME)}
    assert places == {str(cache / "models--Nano--Qwen2.5-tiny/snapshots" / REVISION)} and len(network.calls) == 1
    wanted = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "merges.txt", "pytorch_model.bin",
         "model.gguf", "original/consolidated.safetensors", "modeling.py"], **network.calls[0])
    assert list(wanted) == ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "merges.txt"]


def test_a_name_that_the_hub_does_not_know_is_one_sentence(cache, monkeypatch):
    Network(monkeypatch, cache, None)
    with pytest.raises(FileNotFoundError, match="model A/b: .*Repository Not Found for url"):
        hub.directory("A/b")


def look_up(cache: str, source: str) -> list:
    """On one of several ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", cache)
        network = Network(patch, Path(cache), Path(source) if source else None)
        try:
            return [hub.directory(NAME), len(network.calls)]
        except OSError as error:
            return [type(error).__name__, str(error)]


def test_the_first_rank_downloads_and_the_others_find_it(tmp_path, toy_directory):
    with ranks(3, tmp_path / "ranks") as three:
        cache = tmp_path / "cache"
        place = str(cache / "models--Nano--Qwen2.5-tiny/snapshots" / REVISION)
        for number in (1, 0):
            expected = [[place, number if rank == 0 else 0] for rank in range(3)]
            assert three.call(look_up, cache=str(cache), source=str(toy_directory)) == expected
        shutil.rmtree(cache)
        answers = three.call(look_up, cache=str(cache), source="")
    assert [kind for kind, _ in answers] == ["FileNotFoundError", "Elsewhere", "Elsewhere"]
    assert all("rank 0" in said and "Repository Not Found" in said for _, said in answers)


# Hub ids in the scripts

def start(script, *words) -> int:
    return exits.start(script.main, script.Config, getattr(script, "PRESETS", {}), list(map(str, words)))


RL = ("--name", "a", "--toy-examples", 12, "--prompts-per-step", 2, "--group-size", 2, "--max-new-tokens", 4,
      "--phase-lengths", 200, "--phase-steps", 2)
SFT = ("--name", "a", "--toy-examples", 8, "--batch-size", 2, "--eval-every", 0)


@pytest.mark.parametrize("script, flags", [(train_rl, RL), (train_sft, SFT)])
def test_a_run_keeps_its_snapshot_and_notices_another(script, flags, snapshot, cache, toy_directory, capsys):
    assert start(script, "--model", NAME, *flags, "--steps", 1) == 0
    assert json.loads(Path("runs/a/config.json").read_text())["model"] == str(snapshot)
    assert start(script, "--model", NAME, *flags, "--steps", 2) == 0
    other = add_snapshot(cache, toy_directory, revision="ffff" * 10)
    capsys.readouterr()
    assert start(script, "--model", NAME, *flags, "--steps", 2) == 78
    said = capsys.readouterr().err
    assert str(snapshot) in said and str(other) in said and said.count("\n") == 1
    assert start(script, "--model", snapshot, *flags, "--steps", 2) == 0


def test_evaluation_takes_hub_ids_and_notices_another_revision(snapshot, cache, toy_directory, capsys):
    flags = ("--model", NAME, toy_directory, "--toy-examples", 2, "--max-new-tokens", 4, "--out", "out")
    assert start(evaluation, *flags) == 0
    results = json.loads(Path("out/results.json").read_text())
    assert [model["model"] for model in results["models"]] == [NAME, str(toy_directory)]
    shutil.copytree(toy_directory, "other")
    tensors = load_file("other/model.safetensors")
    tensors["model.norm.weight"] += 1
    weights.write_file(Path("other/model.safetensors"), tensors)
    add_snapshot(cache, Path("other"), revision="ffff" * 10)
    capsys.readouterr()
    assert start(evaluation, *flags) == 78 and "another --model" in capsys.readouterr().err


def test_a_judge_may_be_a_hub_id(snapshot):
    assert build.judge(NAME).name == build.judge(snapshot).name
    for name in ("no-such", "a/b/c"):
        with pytest.raises(ConfigError, match="neither a URL"):
            build.judge(name)
    with pytest.raises(FileNotFoundError, match="Nano/other"):
        build.judge("Nano/other")


@pytest.mark.parametrize("script, flags", [(train_rl, RL), (train_sft, SFT), (evaluation, ()), (
    sample, ("--document", ROOT / "examples/notes.txt", "--question", "Why?"))])
def test_a_model_that_cannot_be_had_is_exit_66_and_one_sentence(script, flags, cache, capsys):
    assert start(script, "--model", "Nano/other", *flags) == 66
    said = capsys.readouterr().err
    assert said.startswith("model Nano/other: ") and said.count("\n") == 1 and not Path("runs").exists()


def test_sample_reads_the_cache_that_the_environment_names(tmp_path, toy_directory):
    add_snapshot(tmp_path, toy_directory)
    command = [sys.executable, "sample.py", "--model", NAME, "--document", "examples/notes.txt", "--question", "Why?",
               "--max-new-tokens", "2"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0
