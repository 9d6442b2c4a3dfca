"""The settings that the scripts share. A script's Config inherits them, adds its own, and may give other defaults.

A `free` setting may change when a run is resumed (those about memory can change the last digits). Every other setting,
`fixed` or plain, would make it another run. `least` is the smallest number accepted.
"""

from dataclasses import dataclass, field, fields
from typing import Literal


def free(default, least: float = 0):
    return field(default=default, metadata={"free": True, "least": least})


def fixed(default, least: float = 0):
    return field(default=default, metadata={"least": least})


@dataclass(frozen=True)
class Common:
    # prompts
    prompt_template: str = ""           # a text file with {document} and {question}. None: prompt_template.txt of
                                        # --model, or else the paper's template
    # machine
    device: str = free("cpu")           # under torchrun, "cuda" gives each process its own GPU
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # what the model computes in. auto: bfloat16 on a
                                        # GPU, else float32. Training on a CPU that multiplies bfloat16 clearly faster,
                                        # auto takes bfloat16 for a wide model. Trained weights and the optimizer are at
                                        # least float32
    threads: int = free(1, least=1)     # CPU threads. Tiny models are slower with more


@dataclass(frozen=True)
class Rows:
    data: tuple[str, ...] = ()          # JSONL, JSON or Parquet files, as in docs/data.md. None: the toy task
    task: tuple[str, ...] = ()          # use only these tasks, mixed in these shares: qa=2 f1=1. None: as they come
    skip_bad_rows: bool = False         # leave out rows that cannot be used and report them, instead of refusing all
    max_paragraphs: int = 0             # of a document: others that the answer does not need are removed. 0: keep all


@dataclass(frozen=True)
class Settings(Common):
    # the run
    preset: str = free("")              # a named set of values that replace these defaults, listed below
    name: str = free("run")             # the run is kept in RUNS_DIR/NAME
    runs_dir: str = free("runs")
    model: str = "assets/nano-sft"      # a Hugging Face directory, or a hub id: owner/name
    seed: int = 0                       # decides the order of the data, every draw and every sample
    dry_run: bool = free(False)         # one whole step, nothing kept
    resume: Literal["auto", "never", "changed", "restart"] = free("auto")  # auto: resume a run if its code is the
                                        # same. never: refuse. changed: resume it with the changed code. restart: move
                                        # it to NAME.1 and start again
    save_every: int = free(10, least=1)  # steps between checkpoints
    keep: int = free(2, least=1)        # how many of the newest checkpoints to keep. Those at the ends of phases stay
    max_bad_updates: int = free(3, least=1)  # stop after this many updates in a row that are not finite
    check_finite: bool = free(False)    # refuse a model whose weights contain NaN or infinity
    # memory and ranks
    max_tokens: int = free(16384, least=1)  # tokens in one forward pass, without stems. Decides memory, not results
    checkpointing: bool = free(False)   # keep only each layer's input for the backward pass: less memory, more time
    offload: bool = free(False)         # keep weights, gradients and optimizer in CPU memory
    timeout_minutes: float = free(60.0, least=1e-9)  # how long ranks wait for each other: more than the longest rollout


def computing_dtype(config):
    """A torch.dtype. torch is imported here, because flags are checked before this slow import."""
    import torch
    return getattr(torch, config.dtype.replace("auto", "bfloat16" if config.device.startswith("cuda") else "float32"))


def free_names(config) -> set[str]:
    return {each.name for each in fields(config) if each.metadata.get("free")}
