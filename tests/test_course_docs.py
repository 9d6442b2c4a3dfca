"""docs/course.md: the places of the equations, the group worked by hand, and the table of exercises."""

import re

import pytest
import torch
from conftest import ROOT
from course.exercise import exercises
from kernels import grpo_loss

from nanoqwenlong.advantages import group_advantages
from nanoqwenlong.grpo import token_weights

PAGE = (ROOT / "docs/course.md").read_text(encoding="utf-8")


def test_equations_stand_where_the_page_says():
    places = re.findall(r"\[`([\w/.]+):(\d+)`\]\(\.\./([\w/.]+)#L(\d+)\) `([\w.]+)`", PAGE)
    assert len(places) >= 9
    for file, line, link, anchor, name in places:
        assert (file, line) == (link, anchor)
        source = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def )?{name.rpartition('.')[2]}\b", source), f"{file}:{line} is {source!r}, not {name}"


def table(heading: str, first: str) -> list[list[str]]:
    """The rows of the first table after a heading whose header starts with `first`."""
    text = PAGE.split(heading)[1]
    lines = text[text.index(f"| {first}"):].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:lines.index("")]]
    return rows


def test_the_group_by_hand_is_what_the_code_computes():
    answers = table("## One group by hand", "answer |")
    lengths, rewards, advantages = ([float(row[column]) for row in answers] for column in (1, 2, 3))
    computed = group_advantages(rewards)
    assert advantages == pytest.approx(computed.tolist(), abs=5e-4)

    class Group:
        group = type("", (), {"lengths": [int(length) for length in lengths]})
    Group.rewards = rewards
    weights = {loss: token_weights({0: Group}, loss, 10)[0] for loss in ("dapo", "grpo")}
    assert "1 / 14 = 0.0714" in PAGE and weights["dapo"].tolist() == pytest.approx([1 / 14] * 4)
    assert "(4 x 3) = 0.0833" in PAGE and weights["grpo"][0] == pytest.approx(1 / 12)
    assert "(4 x 5) = 0.05" in PAGE and weights["grpo"][1] == pytest.approx(0.05)

    for answer, old, new, ratio, cost, slope in table("## One group by hand", "token of answer"):
        row = int(answer) - 1
        logprob = torch.tensor([float(new)], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([float(old)], dtype=torch.float64)
        loss, _ = grpo_loss(logprob, old, computed[row:row + 1], weights["dapo"][row:row + 1], 0.2, 0.28)
        loss.backward()
        assert float(ratio) == pytest.approx((logprob - old).exp().item(), abs=5e-4)
        assert float(cost.rpartition("=")[2]) == pytest.approx(-14 * loss.item(), abs=6e-4)
        assert float(slope) == pytest.approx(logprob.grad.item(), abs=5e-5)
    total = sum(length * advantage for length, advantage in zip(lengths, computed.tolist()))
    assert total == pytest.approx(0)                                           # the loss before the first update


def test_the_table_lists_the_exercises():
    rows = table("## The exercises", "| exercise")
    assert [int(row[0]) for row in rows] == list(exercises())
    for number, title, file, minutes, _ in rows:
        exercise = exercises()[int(number)]
        assert title == f"[{exercise.title}](course/{exercise.number:02}_{exercise.name}.md)"
        assert file == f"`{exercise.checks.FILE}`"
        assert f"About {minutes} minutes" in " ".join(exercise.page[0].split())
