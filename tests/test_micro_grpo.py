"""The method in one file gives what the real code gives: rewards, advantages, loss, gradient, hard examples."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from course import micro_grpo as micro

from nanoqwenlong.advantages import group_advantages
from nanoqwenlong.curriculum import RetrospectiveSampler, phases
from nanoqwenlong.grpo import group_loss, token_weights
from nanoqwenlong.records import Completion, Example, Group, Rollout, Score
from nanoqwenlong.rewards import score_all

SOURCE = Path(micro.__file__).read_text(encoding="utf-8")
ROOT = Path(micro.__file__).resolve().parent.parent


@pytest.fixture
def model():
    torch.manual_seed(0)
    return micro.Model().double()


def examples(num: int, length=(2, 4)) -> list:
    random.seed(0)
    return [micro.make_example(length) for _ in range(num)]


def without_padding(row) -> list[int]:
    return [i for i in row.tolist() if i != micro.PAD]


def test_it_is_one_short_file_that_needs_only_torch():
    assert len(SOURCE.splitlines()) <= 250
    assert set(re.findall(r"^(?:import|from) (\w+)", SOURCE, re.MULTILINE)) == {"argparse", "random", "torch"}


def test_the_files_that_it_names_exist():
    names = set(re.findall(r"[\w/]+\.py", SOURCE)) - {"course/micro_grpo.py"}
    assert len(names) >= 15
    assert [name for name in names if not ((ROOT / name).is_file() or (ROOT / "nanoqwenlong" / name).is_file())] == []


def test_advantages():
    rewards = torch.randint(0, 2, (50, 8), generator=torch.Generator().manual_seed(0)).double()
    rewards = torch.cat([rewards, torch.zeros(1, 8), torch.ones(1, 8)])
    torch.testing.assert_close(micro.group_advantages(rewards), group_advantages(rewards), rtol=1e-12, atol=0)


def test_rewards():
    prompt, answer, gold = examples(1)[0]
    texts = [answer.removesuffix(" <end>"), f"<think> </think> the answer is {gold} .", f"the answer is {gold} .",
             f"<think> the answer is {gold} .", "<think> </think> the answer is a", "<think> </think>", "",
             f"<think> the answer is a . </think> the answer is {gold} ."]
    ours = [score.reward for score in score_all([texts], [Example("e", prompt, "", gold)])[0]]
    assert [micro.reward(text, gold) for text in texts] == ours and set(ours) == {0, 1}


def test_answers_are_drawn_from_the_log_probs_that_are_noted(model):
    asked = examples(3)
    ids, logprobs, rewards = micro.roll_out(model, asked, 4)
    again, mask = micro.answer_logprobs(model, ids, logprobs.shape[1])
    assert ids.shape[0] == 12 and rewards.shape == (3, 4)
    torch.testing.assert_close(again[mask], logprobs[mask], rtol=1e-10, atol=1e-10)
    prompts = [[micro.WORDS.index(word) for word in prompt.split()] for prompt, _, _ in asked]
    for row, each in enumerate(ids):
        prompt = prompts[row // 4]
        assert without_padding(each)[:len(prompt)] == prompt


def test_loss_and_gradient_of_one_batch(model):
    """The real code gets each answer by itself, without padding and without the other rows."""
    ids, sampled, _ = micro.roll_out(model, examples(3), 4)
    old = sampled + 0.4 * torch.randn(sampled.shape, generator=torch.Generator().manual_seed(1)).double()
    rewards = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]).double()
    advantages = group_advantages(rewards)
    logprobs, mask = micro.answer_logprobs(model, ids, sampled.shape[1])
    loss = micro.dapo_loss(logprobs, old, micro.group_advantages(rewards).view(-1, 1), mask)
    loss.backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    rollouts, olds = {}, {}
    for p in range(3):
        lengths = mask[4 * p:4 * p + 4].sum(1).tolist()
        olds[p] = [tuple(old[4 * p + g, :length].tolist()) for g, length in enumerate(lengths)]
        answers = [tuple(without_padding(ids[4 * p + g])[-length:]) for g, length in enumerate(lengths)]
        prompt = tuple(without_padding(ids[4 * p])[:-lengths[0]])
        completions = [Completion(answer, values, "stop") for answer, values in zip(answers, olds[p])]
        group = Group(p, prompt, tuple(completions))
        scores = tuple(Score(reward, reward, None, "") for reward in rewards[p].tolist())
        rollouts[p] = Rollout(Example(str(p), "", "", ""), group, ("",) * 4, scores, (0.0,) * 4,
                              advantages[p].tolist())
    weights, sums, total = token_weights(rollouts, "dapo", micro.MAX_NEW_TOKENS), Counter(), 0
    for p, rollout in rollouts.items():
        of_group = group_loss(rollout, weights[p], sums, olds[p], clip_low=micro.CLIP_LOW, clip_high=micro.CLIP_HIGH,
                              dual_clip=float("inf"), kl_coef=0.0)
        for row, answer in enumerate(rollout.group.completions):
            logits, _ = model(torch.tensor([rollout.group.prompt_ids + answer.ids]))
            table = F.log_softmax(logits[0, -len(answer.ids) - 1:-1], -1)
            total = total + of_group([row], table[range(len(answer.ids)), answer.ids], None)
    total.backward()
    assert sums["clipped_low"] and sums["clipped_high"]
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_hard_examples_that_come_back():
    pool = [examples(12, micro.SHORT), examples(12, micro.LONG)]
    means = dict(zip(pool[0], [0.0, 0.5, 0.75, 0.76, 1.0]))
    lengths = {str(place): 1 + phase for phase in (0, 1) for place in range(12 * phase, 12 * phase + 12)}
    sampler = RetrospectiveSampler(lengths, phases((1, 2), (1, 1)), hard_below=micro.HARD_BELOW)
    for place, example in enumerate(pool[0]):
        if example in means:
            sampler.record(str(place), means[example])
    expected = {pool[0][int(name)] for name in sampler.hard_examples(sampler.phases[1])}
    own, hard = micro.draw(pool, 1, 12, means)
    assert set(hard) == expected and len(hard) == 3 and len(own) == 9 and set(own) <= set(pool[1])
    assert micro.draw(pool, 0, 12, means)[1] == []
    drawn = Counter(micro.draw(pool, 1, 4, means)[1][0] for _ in range(3000))  # one each: weights 16, 2, 4 / 3
    shares = [drawn[example] / 3000 for example in pool[0][:3]]
    assert shares == pytest.approx([weight / (16 + 2 + 4 / 3) for weight in (16, 2, 4 / 3)], abs=0.03)


def test_all_stages_run(monkeypatch, capsys):
    small = dict(SHORT=(1, 2), LONG=(2, 3), BASE_STEPS=2, SFT_STEPS=20, PHASE_STEPS=(1, 5), BATCH_SIZE=2, GROUP_SIZE=2,
                 PROMPTS_PER_STEP=4, MAX_NEW_TOKENS=3)
    for name, value in small.items():
        monkeypatch.setattr(micro, name, value)
    table = micro.train(seed=0)
    assert list(table) == ["base", "SFT warm-up", "RL phase I", "RL phase II"]
    assert "RL phase 2 step 5" in capsys.readouterr().out
