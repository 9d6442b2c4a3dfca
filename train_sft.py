"""Warm-up: supervised fine-tuning on worked long-context answers. It also pretrains the tiny base model.

The method (QwenLong-L1, section 2.3): before reinforcement learning, the model learns on documents no longer than those
of phase I to quote what it uses and to state its answer. The loss is cross-entropy on the response alone, each
example's the mean over its own tokens (Eq. 11). Departure: the run stops once held-out accuracy no longer rises.

    python train_sft.py --name my-sft                                      the toy task, on one CPU core
    python train_sft.py --preset nano-base --name my-base                  pretrains the tiny base from random weights
    python train_sft.py --model DIR --data train.jsonl --heldout heldout.jsonl --learning-rate 5e-6
    torchrun --standalone --nproc_per_node=8 train_sft.py --preset r1-distill-qwen-14b --data train.jsonl
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from nanoqwenlong.ops import flags, presets
from nanoqwenlong.ops.settings import Rows, Settings, fixed, free


@dataclass(frozen=True)
class Config(Settings, Rows):
    name: str = free("sft")             # the run is kept in RUNS_DIR/NAME
    model: str = "assets/nano-base"     # a Hugging Face directory or hub id. "new": the random tiny model of toy.py
    save_every: int = free(100, least=1)  # steps between checkpoints
    # data
    heldout: tuple[str, ...] = ()       # files to measure accuracy on. None: the toy task's held-out documents, and
                                        # with --data nothing: accuracy is not measured
    strict_responses: bool = False      # refuse rows whose response would earn nothing by the rule of their task
    toy_examples: int = 4000            # of the toy task, if no --data is given
    toy_paraphrased: float = 0.0        # share of its responses that name a thing by its other word
    toy_pages: int = 0                  # pages of the toy task's plain text
    max_prompt_tokens: int = 20000      # longer prompts are dropped and counted, never cut
    # optimisation
    steps: int = free(115, least=1)     # the most optimizer steps. So few leave RL of the toy task much to teach
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

if __name__ == "__main__" and "RANK" not in os.environ:
    flags.check(Config, sys.argv[1:], PRESETS)      # before the next imports, which take seconds

from nanoqwenlong import build, data, group_pass, optim, parallel, toy
from nanoqwenlong.analysis import evaluate, step_metrics
from nanoqwenlong.curriculum import epoch_order
from nanoqwenlong.errors import DataError
from nanoqwenlong.generate import Generator
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.run import Run
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Branch, Example, Family
from nanoqwenlong.rewards import response_problem

HEADLINE = {"loss": "loss", "eval/acc": "accuracy", "grad_norm": "grad_norm", "learning_rate": "lr",
            "tokens_per_s": "tokens/s"}


def main(cfg: Config) -> None:
    flags.at_least(cfg, toy_examples=0 if cfg.toy_pages else 1)
    with Run(cfg) as run:
        train(run.config, run)


def train(cfg: Config, run: Run) -> None:
    tokenizer = build.tokenizer(cfg, run)
    examples, heldout = read_data(cfg, tokenizer, run.log.say)
    model = build.policy(cfg, run)
    examples, num_dropped = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens)
    heldout, _ = data.tokenize(heldout, tokenizer, cfg.max_prompt_tokens)
    longest_prompt = max((len(example.prompt_ids) for example in heldout), default=0)
    lengths = (len(data.sft_branch(example, tokenizer).input_ids) for example in examples)
    model.config.require_window(max(lengths, default=0))
    documents = by_document(examples)
    if heldout:
        generator = Generator(model, cfg.kv_blocks)
        generator.require(longest_prompt, cfg.max_new_tokens)
    optimizer, parameters = optim.adamw(model, cfg.learning_rate, cfg.weight_decay), list(model.parameters())
    patience = Patience()
    run.begin(model, tokenizer, optimizer, patience=patience)
    if not heldout:
        run.log.say("accuracy is not measured: --heldout names questions for it, --eval-every the steps between")
    run.log.say(f"{len(examples)} examples ({num_dropped} dropped: prompt over {cfg.max_prompt_tokens} tokens), "
                f"{sum(p.numel() for p in parameters):,} parameters")

    for step in run.steps(cfg.steps):
        # 1. Draw a batch. Questions about one document share its stem
        batch = draw(documents, cfg.seed, step - 1, cfg.batch_size)
        rows = sum(batch, [])
        branches = {row: data.sft_branch(examples[row], tokenizer) for row in rows}
        lengths = [len(branch.input_ids) for branch in branches.values()]
        families = share_stems([[branches[row] for row in questions] for questions in batch])

        # 2. Update: each example's loss is the mean over its own tokens
        run.part("update", longest=max(lengths))
        sums = Counter(loss=0.0)
        lr = optim.learning_rate_at(step - 1, cfg.learning_rate, cfg.warmup_steps, cfg.steps, cfg.final_fraction)
        group_pass.backward_all(model, families, lambda name: mean_loss(families[name].branches, len(rows), sums),
                                max_tokens=cfg.max_tokens)
        sums = parallel.reduce(sums)
        grad_norm = optim.step(optimizer, parameters, lr, cfg.max_grad_norm, sums["loss"])
        updated = run.watch(grad_norm, ids=[examples[row].id for row in rows])

        # 3. Evaluate and report
        run.part("evaluate", longest=longest_prompt + cfg.max_new_tokens)
        values = {"loss": sums["loss"] if updated else None, "learning_rate": lr,
                  "grad_norm": grad_norm if updated else None, "step_time": run.times["update"],
                  "tokens_per_s": sum(lengths) / run.times["update"],
                  **step_metrics.expert_values(model)}
        out_of_time = cfg.minutes > 0 and any(parallel.gather(run.seconds > cfg.minutes * 60))
        last = step == run.last or out_of_time
        if heldout and (last or step % cfg.eval_every == 0):
            values["eval/acc"] = measure(cfg, generator, tokenizer, heldout)
            patience.see(values["eval/acc"])
        run.log.append("metrics.jsonl", step, {**values, "elapsed": run.seconds})
        if last or step == 1 or step % cfg.print_every == 0:
            run.line(values, HEADLINE, cfg.minutes)
        if 0 < cfg.patience <= patience.since_best:
            run.stop(f"{patience.since_best} evaluations without a better accuracy than {patience.best:.3f}")
        elif out_of_time:
            run.stop(f"{cfg.minutes:g} minutes are over")


@dataclass
class Patience:
    """Counts the evaluations in a row without a new best accuracy. It starts after the first accuracy above 0."""

    best: float = 0.0
    since_best: int = 0

    def see(self, accuracy: float) -> None:
        self.since_best = 0 if accuracy > self.best or self.best == 0 else self.since_best + 1
        self.best = max(self.best, accuracy)

    def state_dict(self) -> dict:
        return {"best": self.best, "since_best": self.since_best}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.since_best = state["best"], state["since_best"]


def mean_loss(family: Sequence[Branch], num_examples: int, sums: Counter):
    """The loss of one family for group_pass: each example's mean over its tokens, divided by the batch's examples."""
    def loss(rows, logprobs, entropy):
        weights = logprobs.new_tensor([w for row in rows for w in family[row].weights if w]) / num_examples
        value = -(weights * logprobs).sum()
        sums["loss"] += float(value.detach())
        return value
    return loss


def read_data(cfg: Config, tokenizer: Tokenizer, say) -> tuple[list[Example], list[Example]]:
    """The examples to learn from and the held-out ones. Reports responses that would earn nothing."""
    shares, heldout = data.shares(cfg.task), []
    unrewarded = []

    def check(example: Example, place: str) -> None:
        text = tokenizer.response(tokenizer.encode_response(example.response))
        if problem := response_problem(text, example):
            if cfg.strict_responses:
                raise DataError(f'"response" {problem}')
            unrewarded.append(f"{place} {problem}")

    train = build.rows(cfg, cfg.data, say, need_response=True, see=check)
    if unrewarded:
        say(f"{len(unrewarded)} of {len(train)} responses would earn nothing by the rule, but are learned: the one "
            f"of {unrewarded[0]}. --strict-responses refuses such rows")
    if not cfg.data:
        train = toy.pages(cfg.toy_pages, cfg.seed)
        train += toy.examples(cfg.toy_examples, toy.SHORT, cfg.seed, "train", tuple(shares), cfg.toy_paraphrased)
        heldout = toy.examples(cfg.eval_questions, toy.SHORT, 1, "heldout", tuple(shares))
    if cfg.heldout:
        heldout = build.rows(cfg, cfg.heldout, say, need_question=True)
    if shares:
        pages = [example for example in train if example.task == "text"]
        train = pages + data.mix([example for example in train if example.task != "text"], shares, cfg.seed)
        heldout = [example for example in heldout if example.task in shares]
    return train, heldout if cfg.eval_every else []


def by_document(examples: Sequence[Example]) -> tuple[tuple[int, ...], ...]:
    rows: dict[tuple, list[int]] = {}
    for row, example in enumerate(examples):
        rows.setdefault((example.document, example.messages), []).append(row)
    return tuple(map(tuple, rows.values()))


@lru_cache(maxsize=2)
def epoch(documents: tuple[tuple[int, ...], ...], name: str) -> list[tuple[int, int]]:
    """All (document, row) in an order that is a function of the name: documents shuffled, and the questions of each."""
    return [(document, documents[document][place]) for document in epoch_order(len(documents), name)
            for place in epoch_order(len(documents[document]), f"{name}/{document}")]


def draw(documents: tuple[tuple[int, ...], ...], seed: int, batch: int, batch_size: int) -> list[list[int]]:
    """The rows of batch number `batch`, grouped by document."""
    num_examples = sum(map(len, documents))
    size = min(num_examples, batch_size)
    number, place = divmod(batch, num_examples // size)
    drawn = epoch(documents, f"{seed}/sft/{number}")[place * size:(place + 1) * size]
    return [[row for _, row in pairs] for _, pairs in groupby(drawn, key=lambda pair: pair[0])]


def share_stems(batch: list[list[Branch]]) -> dict[int, Family]:
    """The batch as families. Questions about one document share a stem. The others form one family per rank."""
    alone = [questions[0] for questions in batch if len(questions) == 1]
    parts = parallel.balance([len(branch.input_ids) for branch in alone], parallel.size())
    families = [Family((), tuple(alone[i] for i in sorted(part))) for part in parts if part]
    families += [group_pass.split_stem(questions) for questions in batch if len(questions) > 1]
    return dict(enumerate(families))


def measure(cfg: Config, generator: Generator, tokenizer: Tokenizer, heldout) -> float:
    """Held-out accuracy, sampled at the training temperature."""
    asked, limits = heldout[:cfg.eval_questions], dict(temperature=cfg.temperature, max_new_tokens=cfg.max_new_tokens)
    answers = evaluate.answer_examples(generator.sample, tokenizer, asked, n=1, seed=cfg.seed, **limits)
    return evaluate.accuracy(evaluate.score_answers(asked, answers))


if __name__ == "__main__":
    exits.start(main, Config, PRESETS, sys.argv[1:], leave=exits.exit_process)
