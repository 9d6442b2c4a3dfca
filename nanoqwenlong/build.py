"""Data, curriculum, models and judge of a script, each made from its settings. Only scripts import this file."""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median

import torch

from . import data, parallel, toy
from .curriculum import Phase, RetrospectiveSampler, phases
from .errors import ConfigError, DataError
from .generate import Generator
from .model import Qwen
from .pretrained import hub
from .pretrained.digest import model_digests
from .pretrained.template import PROMPT
from .pretrained.tokenizer import TEMPLATE, Tokenizer
from .pretrained.weights import read_json
from .records import Example
from .reward.judge import TRUNCATED, Complete, Judge
from .reward.tasks import missing_package


def rows(cfg, paths: Sequence[str], say: Callable[[str], None], **needs) -> list[Example]:
    """The examples of these files, if there are any. `needs` and the errors: see data.read."""
    needs |= {"tell": say if cfg.skip_bad_rows else None, "say": say, "max_paragraphs": cfg.max_paragraphs}
    return data.read(paths, **needs) if paths else []


def questions(cfg, say: Callable[[str], None], split: str = "train") -> list[Example]:
    """The examples of --data, or else of the toy task, with short and long documents. `say` reports left-out rows."""
    shares = data.shares(cfg.task)
    examples = rows(cfg, cfg.data, say, need_question=True)
    if not cfg.data:
        seed = cfg.seed if split == "train" else 0             # the held-out documents are the same for every seed
        examples = toy.examples(cfg.toy_examples, toy.SHORT, seed, split, tuple(shares))
        examples += toy.examples(cfg.toy_examples, toy.LONG, seed, split, tuple(shares))
    if shares:
        examples = data.mix(examples, shares, cfg.seed)
    if note := missing_package({example.task for example in examples}):
        say(note)
    return examples


def curriculum(cfg, examples: Sequence[Example], say: Callable) -> tuple[list[Phase], RetrospectiveSampler]:
    """The phases of a run and the sampler over them, reported to `say`. Raises CurriculumError if a phase is empty."""
    lengths = {example.id: example.length for example in examples}
    ends, steps = cfg.phase_lengths, cfg.phase_steps
    if not ends and not cfg.data:
        ends = toy.LENGTHS
    elif not ends:
        ends = sorted({int(median(lengths.values())), max(lengths.values())})
        steps = steps if len(ends) > 1 else (sum(steps),)      # all examples have one length: a single phase
    plan = phases(ends, steps)
    if num_unused := sum(length > ends[-1] for length in lengths.values()):
        say(f"{num_unused} examples are longer than the last phase ({ends[-1]} tokens) and are not used")
    sampler = RetrospectiveSampler(lengths, plan, cfg.retro_fraction, cfg.retro_hard_below, seed=cfg.seed)
    for phase in plan:
        num_examples = len(sampler.members[phase.number])
        say(f"phase {phase.number}: {num_examples} examples of {phase.low + 1} to {phase.high} tokens, "
            f"{phase.num_steps} steps of {min(cfg.prompts_per_step, num_examples)} x {cfg.group_size} answers")
    if cfg.difficulty:
        sampler.load_state_dict({"mean_rewards": read_difficulty(Path(cfg.difficulty), lengths)})
    return plan, sampler


def read_difficulty(path: Path, known) -> dict[str, float]:
    """{id: mean reward} for ids in `known`, from a file of eval.py --difficulty. Raises DataError if it is invalid."""
    if not path.is_file():
        raise FileNotFoundError(f"difficulty file {path} is not there")
    means = read_json(path).get("mean_rewards")
    if not isinstance(means, dict) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in means.values()):
        raise DataError(f'{path}: "mean_rewards" should map example ids to numbers from 0 to 1')
    if means.keys().isdisjoint(known):
        raise DataError(f"{path} has none of this run's example ids: measure the same data with eval.py --difficulty")
    return {key: value for key, value in means.items() if key in known}


def tokenizer(cfg, run) -> Tokenizer:
    """The tokenizer of the checkpoint that the run resumes from, or else of --model."""
    is_new = cfg.model == "new" and run.source is None
    made = toy.new_model(cfg.seed)[1] if is_new else Tokenizer(run.source or cfg.model)
    return prepared(made, cfg.prompt_template, run.log.say)


def prepared(tokenizer: Tokenizer, prompt_template: str, say: Callable[[str], None]) -> Tokenizer:
    """The same tokenizer, which asks with this prompt template, or if it is "" with that of its directory. Says what a
    user may not expect."""
    if prompt_template:
        tokenizer.use_template(prompt_template)
    elif tokenizer.prompt_template != PROMPT:
        say(f"prompts are written by {tokenizer.directory / TEMPLATE}")
    if (size := len(tokenizer.backend.encode("</think>", add_special_tokens=False).ids)) > 1:
        say(f"this vocabulary spells </think> with {size} tokens, which works too: rewards read the text")
    return tokenizer


def policy(cfg, run) -> Qwen:
    """The model to train, split over the ranks, computing in the run's dtype: from the checkpoint that the run resumes
    from, or else from --model."""
    if cfg.model == "new" and run.source is None:
        model, _ = toy.new_model(cfg.seed)
        run.prepare(model.to(run.device, run.weights_dtype))
    else:
        model = Qwen.from_pretrained(run.source or cfg.model, run.weights_dtype, run.device, run.prepare,
                                     cfg.check_finite)
    model.checkpointing = cfg.checkpointing
    return parallel.compute_in(model, run.dtype)


def reference(cfg, run) -> Qwen | None:
    """The starting model, if the settings ask for a KL to it."""
    needed = cfg.kl_coef or cfg.measure_kl
    return Qwen.from_pretrained(cfg.model, run.dtype, run.device, run.prepare) if needed else None


def check_judge(cfg) -> None:
    """Raises ConfigError if the judge may take longer than ranks wait for each other."""
    if cfg.judge and cfg.judge_minutes >= cfg.timeout_minutes:
        raise ConfigError(f"--judge-minutes {cfg.judge_minutes:g} should be less than --timeout-minutes "
                          f"{cfg.timeout_minutes:g}, because the other ranks wait for the one that asks")


def judge_of(cfg, key: str, device: str, dtype: torch.dtype, prepare: Callable | None = None) -> Judge | None:
    """The judge that the settings name, or None. `key` is for a server. The rest is as in Qwen.from_pretrained."""
    if not cfg.judge:
        return None
    return judge(cfg.judge, cfg.judge_model, key, cfg.seed, device, dtype, prepare, cfg.judge_tokens,
                 deadline=60 * cfg.judge_minutes)


def judge(where: str, model: str = "", key: str = "", seed: int = 0, device: str = "cpu", dtype=torch.float32,
          prepare: Callable | None = None, max_new_tokens: int = 4096, **limits) -> Judge:
    """The judge at `where`: a server's URL (model, key, limits: for `Server`) or a Hugging Face directory. All ranks
    call it alike. Raises ConfigError if it is neither, ModelError if the directory is invalid."""
    if "://" in str(where):
        from .reward.judge_server import Server                # imported here: httpx takes a quarter of a second
        return Judge(Server(where, model, key, max_new_tokens=max_new_tokens, **limits), model, seed)
    where = hub.directory(str(where))
    if not Path(where).is_dir():
        raise ConfigError(f"--judge {where} is neither a URL like http://localhost:8000/v1 nor a model's directory")
    if model:
        raise ConfigError(f"--judge {where} is a directory: leave out the model's name {model!r}, or give a URL")
    tokenizer = Tokenizer(where)
    # 4096 blocks hold a hundred usual prompts, or the longest one that a tokenizer makes
    generator = Generator(Qwen.from_pretrained(where, dtype, device, prepare), num_blocks=4096)
    digest = parallel.on_all_ranks(lambda: identity(Path(where)) if parallel.rank() == 0 else "",
                                   "cannot read the judge")[0]
    return Judge(completer(generator, tokenizer, max_new_tokens), f"{Path(where).resolve().name} {digest}", seed)


def completer(generator: Generator, tokenizer: Tokenizer, max_new_tokens: int) -> Complete:
    """A function from prompts to a model's replies, all sampled at once and greedily. Several ranks share the work.
    A truncated reply is empty and counts in its `problems`."""
    def complete(prompts: list[str]) -> list[str]:
        prompt_ids = [tokenizer.chat([("user", prompt)]) for prompt in prompts]
        groups = generator.sample(prompt_ids, temperature=0, max_new_tokens=max_new_tokens, eos_ids=tokenizer.eos_ids)
        completions = [group.completions[0] for group in groups]
        cut = sum(completion.finish_reason == "length" for completion in completions)
        complete.problems = Counter({TRUNCATED.format(max_new_tokens): cut})
        return [tokenizer.decode(each.ids) if each.finish_reason == "stop" else "" for each in completions]
    return complete


def identity(directory: Path) -> str:
    """A SHA-256 over all files that decide what a model answers, in hexadecimal."""
    lines = [f"{name} {digest}\n" for name, digest in model_digests(directory).items()]
    return sha256("".join(lines).encode()).hexdigest()
