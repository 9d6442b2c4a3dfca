"""A whole step of reinforcement learning: ours against TRL's GRPOTrainer.

    ours    Generator.sample, rewards, advantages, group_pass.backward, clipping, AdamW
    TRL     the same from on_step_begin to on_step_end, in several batch settings, of which the fastest is compared

One step is a few prompts with G answers each, on-policy, no KL, temperature 1, float32, a small constant learning rate.
Both sides have the same weights, the same prompts, the same reward of token ids (the share of even ones), and the same
advantages, (r - mean) / (std + 1e-4). Every token has weight 1 / all answer tokens of the step (TRL's "dapo"). There is
no end token, so all answers have R tokens. TRL runs at its best: no gradient checkpointing, no bf16 (which a CPU
emulates), nothing saved. Its rollouts use generate, which bench.rollout finds no slower than continuous batching.

The check: the answers of TRL's first step go through our update, from the same weights. Rewards must be equal, and so
must the gradient norm that TRL reports, before clipping. The first step of each setting also decides, by its CPU
seconds, which setting is timed. Peak memory does not count the loaded model, but counts gradients and AdamW's state.
Needs trl: pip install '.[bench]'.

    python -m bench.rl_step
    python -m bench.rl_step --prompt 512 --answer 128 --trl-batches 32 8
    python -m bench.rl_step --model DIR --prompt 1000 --answer 48 --prompts 1 --trl-batches 8 1
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from bench import common
from kernels import grpo_loss

from nanoqwenlong import group_pass, optim
from nanoqwenlong.engine.kvcache import blocks_for
from nanoqwenlong.errors import ConfigError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.flags import at_least
from nanoqwenlong.records import Completion, Group

TOLERANCE = 1e-4                        # relative, of gradient norms in fp32
STD_EPS = 1e-4                          # TRL's, in (r - mean) / (std + eps)
BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = (0.9, 0.95), 0.0, 1.0


@dataclass(frozen=True)
class Config:
    prompt: int = 2048                  # P, tokens
    answer: int = 64                    # R, tokens of each answer
    group_size: int = 8                 # G
    prompts: int = 4                    # of one step
    learning_rate: float = 1e-6
    max_tokens: int = 16384             # in one forward pass of ours
    block_size: int = 16                # of our cache
    rounds: int = 3                     # each side runs once a round
    trl_batches: tuple[int, ...] = (32, 8, 2)  # per_device_train_batch_size to try. The rest is accumulated
    model: str = ""                     # a directory. Without one: a random Qwen2, untied, of this shape
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 704
    vocab: int = 1000
    initializer_range: float = 0.05


def reward_of(ids) -> float:
    """The share of even ids: every answer earns something, and hardly any two the same."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def ours(cfg: Config, directory: str) -> dict[str, Callable]:
    model = Qwen.from_pretrained(directory, dtype=torch.float32)
    optimizer, parameters = optim.adamw(model, cfg.learning_rate, WEIGHT_DECAY), list(model.parameters())
    own = blocks_for(cfg.answer, cfg.block_size) + 2                          # an answer's blocks that nobody shares
    generator = Generator(model, block_size=cfg.block_size, num_blocks=cfg.prompts * (
        blocks_for(cfg.prompt, cfg.block_size) + cfg.group_size * own))

    def gradient(groups: list[Group]) -> list[list[float]]:
        """Leaves the step's gradient in the parameters; returns the rewards."""
        rewards = [[reward_of(completion.ids) for completion in group.completions] for group in groups]
        earned = torch.tensor(rewards)                                                       # (prompts, G)
        std = earned.std(-1, keepdim=True)
        advantages = (earned - earned.mean(-1, keepdim=True)) / (std + STD_EPS)
        num_tokens = sum(group.num_tokens for group in groups)
        for group, advantage in zip(groups, advantages):
            def loss(rows, logprobs, entropy):
                lengths = torch.tensor([len(group.completions[row].ids) for row in rows])
                weights = torch.full_like(logprobs, 1 / num_tokens)
                return grpo_loss(logprobs, logprobs.detach(), advantage[list(rows)].repeat_interleave(lengths),
                                 weights)[0]
            group_pass.backward(model, group.stem, group.branches, loss, max_tokens=cfg.max_tokens)
        return rewards

    def step(prompts: list[list[int]], new: int, seed: int) -> None:
        groups = generator.sample(prompts, n=cfg.group_size, max_new_tokens=new, seed=seed)
        gradient(groups)
        optim.step(optimizer, parameters, cfg.learning_rate, MAX_GRAD_NORM)

    def check(sampled: list[dict]) -> dict:
        """Rewards and gradient norm of somebody else's answers; the weights stay as they are."""
        groups = [Group(place, tuple(group["prompt_ids"]), tuple(
            Completion(tuple(ids), (0.0,) * len(ids), "length") for ids in group["completion_ids"]))
            for place, group in enumerate(sampled)]
        rewards = gradient(groups)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, float("inf")))
        model.zero_grad(set_to_none=True)
        return {"rewards": rewards, "grad_norm": norm}

    prompts, seeds = common.random_ids(cfg, cfg.prompts, cfg.prompt), iter(range(10**9))
    generator.sample([list(range(1, 9))], n=2, max_new_tokens=2)                             # warm up
    check([{"prompt_ids": list(range(1, 9)), "completion_ids": [[1, 2], [1, 3]]}])
    return {"run": lambda: step(prompts, cfg.answer, next(seeds)), "check": check}


def trl(cfg: Config, directory: str, batch: int, outputs: str) -> dict[str, Callable]:
    """One train() of one step per run, `batch` answers in one forward and backward. The trainer's own start is not
    counted: only what lies between the beginning and the end of the step."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    model, tokenizer, seen = common.transformers_model(directory), number_tokenizer(cfg.vocab), {}

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.update(begin=time.perf_counter(), cpu_begin=time.process_time())

        def on_step_end(self, args, state, control, **kwargs):
            seen.update(seconds=time.perf_counter() - seen["begin"],
                        cpu_seconds=time.process_time() - seen["cpu_begin"])

        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.update({key: logs[key] for key in ("grad_norm", "loss") if key in logs})

    def reward(prompts, completion_ids, **kwargs):
        rewards = [reward_of(ids) for ids in completion_ids]
        seen["answers"] = list(zip(prompts, completion_ids, rewards))
        return rewards

    prompts = common.random_ids(cfg, cfg.prompts, cfg.prompt)
    texts = [" ".join(map(str, ids)) for ids in prompts]
    answers = cfg.prompts * cfg.group_size
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts}), callbacks=[Clock()],
        args=GRPOConfig(
            output_dir=str(Path(outputs, f"trl-{batch}")), per_device_train_batch_size=batch,
            gradient_accumulation_steps=answers // batch, num_generations=cfg.group_size,
            max_completion_length=cfg.answer, temperature=1.0, beta=0.0, num_iterations=1, loss_type="dapo",
            scale_rewards="group", learning_rate=cfg.learning_rate, lr_scheduler_type="constant", adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, max_steps=1, use_cpu=True,
            bf16=False, gradient_checkpointing=False, shuffle_dataset=False, logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True))

    def step() -> dict:
        seen.clear()
        with redirect_stdout(StringIO()):                                                    # its log line
            trainer.train()
        sampled = {}
        for text, ids, earned in seen["answers"]:
            found = sampled.setdefault(text, {"prompt_ids": tokenizer(text)["input_ids"], "completion_ids": [],
                                              "rewards": []})
            found["completion_ids"].append(list(ids))
            found["rewards"].append(earned)
        return {"sampled": list(sampled.values()),
                **{key: seen[key] for key in ("seconds", "cpu_seconds", "grad_norm")}}

    return {"run": step}


def number_tokenizer(vocab: int):
    """A tokenizer whose words are the ids themselves, so that a prompt of P numbers is P tokens. Its end token lies
    outside of the model's vocabulary: the model cannot say it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    numbers = {str(i): i for i in range(1, vocab)}
    words = Tokenizer(models.WordLevel({"<pad>": 0, **numbers, "<end>": vocab}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left")


def same_steps(theirs: list[dict], mine: list[dict], cfg: Config) -> dict:
    """TRL's first steps beside our updates of the answers they sampled: numbers of tokens, rewards, gradient norms."""
    expected = [[cfg.prompt] + [cfg.answer] * cfg.group_size] * cfg.prompts
    sizes = all([[len(group["prompt_ids"]), *map(len, group["completion_ids"])] for group in step["sampled"]]
                == expected for step in theirs)
    rewards = all([group["rewards"] for group in step["sampled"]] == own["rewards"] for step, own in zip(theirs, mine))
    worst = float(torch.tensor([abs(own["grad_norm"] - step["grad_norm"]) / max(step["grad_norm"], 1e-30)
                                for step, own in zip(theirs, mine)]).max())             # NaN if there is one
    return {"steps of TRL compared": len(theirs), "equal sizes": sizes, "equal rewards": rewards,
            "largest relative difference of gradient norms": float(f"{worst:.2g}"),
            "passed": sizes and rewards and worst < TOLERANCE}


def main(cfg: Config) -> None:
    at_least(cfg, prompt=2, answer=1, group_size=2, prompts=1, rounds=1, max_tokens=1, block_size=1)
    if find_spec("trl") is None or find_spec("datasets") is None:
        raise ConfigError("this comparison needs trl: pip install '.[bench]'")
    wrong = [batch for batch in cfg.trl_batches if batch < 1 or cfg.prompts * cfg.group_size % batch]
    if wrong:
        raise ConfigError(f"--trl-batches {wrong[0]} does not divide the {cfg.prompts * cfg.group_size} answers of a "
                          "step")
    with common.model_of(cfg) as (directory, cfg, shape), tempfile.TemporaryDirectory() as outputs:
        sides = {"ours": (ours, cfg, directory),
                 **{f"TRL, batch {batch}": (trl, cfg, directory, batch, outputs) for batch in cfg.trl_batches}}
        with common.processes(sides) as asks:
            first = {name: ask("run") for name, ask in asks.items() if name != "ours"}
            mine = [asks["ours"]("check", theirs["sampled"]) for theirs in first.values()]
            fastest = min(first, key=lambda name: first[name]["cpu_seconds"])
            results, _ = common.take_turns({name: asks[name] for name in ("ours", fastest)}, cfg.rounds)
    print(f"one RL step: {cfg.prompts} prompts, P={cfg.prompt} R={cfg.answer} G={cfg.group_size}, {shape}, fp32, "
          "one thread")
    first_steps = {name: {key: step[key] for key in ("seconds", "cpu_seconds")} for name, step in first.items()}
    print("first steps, cpu s:", ", ".join(f"{name} {step['cpu_seconds']:.3g}" for name, step in first_steps.items()))
    common.report("rl_step", cfg, results, same_steps(list(first.values()), mine, cfg), packages=("trl",),
                  first_steps=first_steps)


if __name__ == "__main__":
    sys.exit(exits.start(main, Config, {}, sys.argv[1:]))
