"""Warm-up: supervised fine-tuning on worked long-context answers. Also pretrains the tiny base.

The method (QwenLong-L1, section 2.3): before any reinforcement learning the model learns, on documents no longer than
those of phase I, to quote what it uses and to state its answer: cross-entropy on the response alone, each example's
loss the mean over its own tokens (Eq. 11). Rows of plain text ({"text": ...}) are learned token by token instead.

Departure from the paper: with held-out examples the run stops by itself once their sampled accuracy stops rising.

    python train_sft.py --name my-sft                                      the toy task, on one CPU core
    python train_sft.py --preset nano-base --name my-base                  pretrains the tiny base from random weights
    python train_sft.py --model DIR --data train.jsonl --heldout heldout.jsonl --learning-rate 5e-6
    torchrun --standalone --nproc_per_node=8 train_sft.py --preset r1-distill-qwen-14b --data train.jsonl

A preset that names a model reads it from models/, where `hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-14B
--local-dir models/DeepSeek-R1-Distill-Qwen-14B` puts it. nanoqwenlong/ops/presets.py has the source of each setting.

Whatever ends a run, the same command goes on with it.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from nanoqwenlong import data, group_pass, optim, parallel, toy
from nanoqwenlong.analysis import evaluate, step_metrics
from nanoqwenlong.curriculum import epoch_order
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import presets, run
from nanoqwenlong.ops.flags import at_least
from nanoqwenlong.ops.settings import Settings, fixed, free
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Branch, Family


@dataclass(frozen=True)
class Config(Settings):
    name: str = free("sft")             # the run is kept in RUNS_DIR/NAME
    model: str = "assets/nano-base"     # a Hugging Face directory. "new" makes the random tiny model of toy.py
    save_every: int = free(100, least=1)  # steps between checkpoints
    # data
    data: tuple[str, ...] = ()          # JSONL or parquet files of worked responses, chats or plain text. None: the toy
                                        # task, short documents
    heldout: tuple[str, ...] = ()       # files to measure accuracy on. None: the toy task's held-out documents
    task: tuple[str, ...] = ()          # use only these tasks, mixed in these shares: qa=2 f1=1. None: as they come
    skip_bad_rows: bool = False         # leave out rows that cannot be used and report them, instead of refusing all
    toy_examples: int = 4000            # of the toy task, if no --data is given
    toy_paraphrased: float = 0.0        # share of its responses that name a thing by its other word
    toy_pages: int = 0                  # pages of the toy task's plain text
    max_prompt_tokens: int = 20000      # longer prompts are dropped and counted, never cut
    # optimisation
    steps: int = free(800, least=1)     # the most optimizer steps
    minutes: float = 0.0                # stop after this many minutes. 0: no limit
    batch_size: int = fixed(32, least=1)  # examples per step
    learning_rate: float = 1e-3         # peak
    warmup_steps: int = 20
    final_fraction: float = 1.0         # of the peak, reached linearly at the last step. 1: constant
    weight_decay: float = 0.1
    max_grad_norm: float = fixed(1.0, least=1e-9)
    # held-out accuracy
    eval_every: int = 25                # steps. 0: never
    eval_questions: int = fixed(200, least=1)
    patience: int = 2                   # stop after this many evaluations in a row without a new best. 0: never
    temperature: float = 1.0
    max_new_tokens: int = fixed(48, least=1)
    kv_blocks: int = free(4096, least=1)  # of the paged KV cache, 16 tokens each
    print_every: int = free(25, least=1)  # steps between console lines. metrics.jsonl has every step


PRESETS = presets.SFT
HEADLINE = ("loss", "eval/acc", "grad_norm", "learning_rate", "tokens_per_s")


def main(cfg: Config) -> None:
    if not cfg.toy_pages:
        at_least(cfg, toy_examples=1)
    with run.Run(cfg) as this:
        train(cfg, this)


def train(cfg: Config, this: run.Run) -> None:
    torch.set_num_threads(cfg.threads)
    examples, heldout = read_data(cfg, this.log.say)
    if cfg.model == "new" and this.source is None:
        model, tokenizer = toy.new_model(cfg.seed)
        this.prepare(model.to(this.device, this.weights_dtype))
    else:
        model = Qwen.from_pretrained(this.source or cfg.model, this.weights_dtype, this.device, this.prepare,
                                     cfg.check_finite)
        tokenizer = Tokenizer(this.source or cfg.model)
    examples, num_dropped = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens)
    heldout, _ = data.tokenize(heldout, tokenizer, cfg.max_prompt_tokens)
    model.checkpointing = cfg.checkpointing
    branches = [data.sft_branch(example, tokenizer) for example in examples]
    model.config.require_window(max((len(branch.input_ids) for branch in branches), default=0))
    documents = by_document(examples)
    generator = Generator(model, cfg.kv_blocks) if heldout else None
    if heldout:
        generator.require(max(len(example.prompt_ids) for example in heldout), cfg.max_new_tokens)
    optimizer, parameters = optim.adamw(model, cfg.learning_rate, cfg.weight_decay), list(model.parameters())
    patience = Patience(cfg.patience)
    this.begin(model, tokenizer, optimizer, patience=patience)
    this.log.say(f"{len(examples)} examples ({num_dropped} dropped: prompt over {cfg.max_prompt_tokens} tokens), "
                 f"{sum(p.numel() for p in parameters):,} parameters")

    for step in this.steps(cfg.steps):
        batch = draw(documents, cfg.seed, step - 1, cfg.batch_size)
        used = [i for questions in batch for i in questions]
        this.part("update", longest=max(len(branches[i].input_ids) for i in used))
        sums = Counter(loss=0.0)
        learning_rate = optim.learning_rate_at(step - 1, cfg.learning_rate, cfg.warmup_steps, cfg.steps,
                                               cfg.final_fraction)
        found = families([[branches[i] for i in questions] for questions in batch])
        group_pass.backward_all(model, found, lambda name: mean_loss(found[name].branches, len(used), sums),
                                max_tokens=cfg.max_tokens)
        sums = parallel.reduce(sums)
        grad_norm = optim.step(optimizer, parameters, learning_rate, cfg.max_grad_norm, sums["loss"])
        updated = this.watch(grad_norm, ids=[examples[i].id for i in used])
        this.part("evaluate", longest=max((len(e.prompt_ids) for e in heldout), default=0) + cfg.max_new_tokens)
        step_time = this.times["update"]
        values = {"loss": sums["loss"] if updated else None, "learning_rate": learning_rate,
                  "grad_norm": grad_norm if updated else None, "step_time": step_time,
                  "tokens_per_s": sum(len(branches[i].input_ids) for i in used) / step_time,
                  **step_metrics.expert_values(model)}
        out_of_time = this.is_late(cfg.minutes)
        last = step == cfg.steps or out_of_time
        if heldout and (last or step % cfg.eval_every == 0):
            values["eval/acc"] = measure(cfg, generator, tokenizer, heldout)
            patience.see(values["eval/acc"])
        values["elapsed"] = this.seconds
        this.log.metrics(step, values)
        if last or step % cfg.print_every == 0:
            this.log.line(step, values, HEADLINE)
        if patience.is_over:
            this.end(f"{patience.since_best} evaluations without a better accuracy than {patience.best:.3f}")
        elif out_of_time:
            this.end(f"{cfg.minutes:g} minutes are over")


@dataclass
class Patience:
    """How many evaluations in a row brought no new best accuracy; before the first above 0 it does not count."""

    limit: int                          # 0: no end
    best: float = 0.0
    since_best: int = 0

    def see(self, accuracy: float) -> None:
        self.since_best = 0 if accuracy > self.best or self.best == 0 else self.since_best + 1
        self.best = max(self.best, accuracy)

    @property
    def is_over(self) -> bool:
        return 0 < self.limit <= self.since_best

    def state_dict(self) -> dict:
        return {"best": self.best, "since_best": self.since_best}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.since_best = state["best"], state["since_best"]


def mean_loss(family: Sequence[Branch], num_examples: int, sums: Counter):
    """The loss of one family for group_pass: its examples' own means, divided by the batch's number of examples."""
    def loss(rows, logprobs, entropy):
        weights = logprobs.new_tensor([w for row in rows for w in family[row].weights if w]) / num_examples
        value = -(weights * logprobs).sum()
        sums["loss"] += float(value.detach())
        return value
    return loss


def read_data(cfg: Config, say):
    """Training and held-out examples: from the files, or made up."""
    shares = data.shares(cfg.task)
    tasks = tuple(shares)
    tell = say if cfg.skip_bad_rows else None
    train = data.read(cfg.data, need_response=True, tell=tell) if cfg.data else (
        toy.pages(cfg.toy_pages, cfg.seed)
        + toy.examples(cfg.toy_examples, toy.SHORT, cfg.seed, tasks=tasks, paraphrased=cfg.toy_paraphrased))
    heldout = data.read(cfg.heldout, need_question=True, tell=tell) if cfg.heldout else (
        [] if cfg.data else toy.examples(cfg.eval_questions, toy.SHORT, 1, "heldout", tasks))
    if shares:
        pages = [example for example in train if example.task == "text"]
        train = pages + data.mix([example for example in train if example.task != "text"], shares, cfg.seed)
        heldout = [example for example in heldout if example.task in shares]
    return train, heldout if cfg.eval_every else []


def by_document(examples) -> tuple[tuple[int, ...], ...]:
    """The indices of the examples, those about one document, or of one chat, together."""
    found = {}
    for i, example in enumerate(examples):
        found.setdefault((example.document, example.messages), []).append(i)
    return tuple(map(tuple, found.values()))


@lru_cache(maxsize=2)
def epoch(documents: tuple[tuple[int, ...], ...], name: str) -> list[tuple[int, int]]:
    """All (document, example) in an order that is a function of the name: documents shuffled, and their questions."""
    return [(document, documents[document][place]) for document in epoch_order(len(documents), name)
            for place in epoch_order(len(documents[document]), f"{name}/{document}")]


def draw(documents: tuple[tuple[int, ...], ...], seed: int, batch: int, batch_size: int) -> list[list[int]]:
    """The examples of one batch, by document."""
    num = sum(map(len, documents))
    size = min(num, batch_size)
    number, place = divmod(batch, num // size)
    found = {}
    for document, i in epoch(documents, f"{seed}/sft/{number}")[place * size:(place + 1) * size]:
        found.setdefault(document, []).append(i)
    return list(found.values())


def families(batch: list[list[Branch]]) -> dict[int, Family]:
    """Questions about one document share a stem; the others stand together, as many as there are ranks to take them."""
    alone = [questions[0] for questions in batch if len(questions) == 1]
    parts = parallel.balance([len(branch.input_ids) for branch in alone], parallel.size())
    found = [Family((), tuple(alone[i] for i in sorted(part))) for part in parts if part]
    return dict(enumerate(found + [group_pass.split_stem(questions) for questions in batch if len(questions) > 1]))


def measure(cfg: Config, generator: Generator, tokenizer: Tokenizer, heldout) -> float:
    """Held-out accuracy, sampled at the training temperature."""
    asked = heldout[:cfg.eval_questions]
    answers = evaluate.answer_examples(generator.sample, tokenizer, asked, n=1, seed=cfg.seed,
                                       temperature=cfg.temperature, max_new_tokens=cfg.max_new_tokens)
    return evaluate.accuracy(evaluate.score_answers(asked, answers))


if __name__ == "__main__":
    run.exit_process(run.start(main, Config, PRESETS, sys.argv[1:]))
