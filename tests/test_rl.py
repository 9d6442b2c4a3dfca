"""What train_rl.py does with rewards: refills, penalties, several tasks, and a judge that may fail."""

import http.server
import json
import math
import threading
import weakref
from pathlib import Path

import pytest
import torch
from test_checkpoint import in_tmp
from test_scripts import SMALL_RL, metrics, start, without_times

import eval as eval_script
import train_rl
from nanoqwenlong import build, errors, parallel, rewards
from nanoqwenlong.analysis import doctor, evaluate, patterns, step_metrics
from nanoqwenlong.ops.log import Log
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Example, Rollout
from nanoqwenlong.reward.judge import Judge

__all__ = ["in_tmp"]                                            # a fixture
DIRECTORY = Path("runs/rl")


def rewarded(monkeypatch, reward) -> list[int]:
    """Answers earn reward(number of the round, example, sample, text); returns a list that will say how many prompts
    each round had."""
    rounds = []

    def score_all(texts, examples, judge=None):
        rounds.append(len(texts))
        return [[rewards.Score(reward(len(rounds), example, i, text), 0.0, None, text) for i, text in enumerate(group)]
                for example, group in zip(examples, texts)]
    monkeypatch.setattr(train_rl, "score_all", score_all)
    return rounds


def rl(toy_directory, *flags) -> int:
    """Start train_rl.py; flags win over those of SMALL_RL."""
    kept, given = [*SMALL_RL, "--updates-per-step", "1"], {flag for flag in flags if str(flag).startswith("--")}
    for flag in given.intersection(kept):
        place = kept.index(flag)
        end = next((i for i in range(place + 1, len(kept)) if kept[i].startswith("--")), len(kept))
        del kept[place:end]
    return start(train_rl, "--model", toy_directory, *kept, *flags)


def words() -> list[dict]:
    return [json.loads(line) for line in (DIRECTORY / "rollouts.jsonl").read_text().splitlines()]


def strict(line: str) -> dict:
    """JSON as others read it: without NaN."""
    def refuse(name):
        raise ValueError(f"{name} in {line[:80]}")
    return json.loads(line, parse_constant=refuse)


# The doctor

def test_a_resumed_run_says_what_is_wrong_when_the_undisturbed_one_does(in_tmp, toy_directory, capsys):
    """Each fault once, for ten steps; a lost or changed metrics.jsonl is no reason to stop."""
    def notes():
        return [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    flags = ["--phase-steps", 1, 5, "--save-every", 1]
    assert rl(toy_directory, *flags, "--name", "whole") == 0
    whole = notes()
    assert whole and len({note.split(":")[1] for note in whole}) == len(whole)
    assert rl(toy_directory, *flags, "--steps", 4) == 0
    begun = notes()
    assert rl(toy_directory, *flags) == 0 and begun + notes() == whole
    assert len(Log(DIRECTORY).steps()) == 6 and Log(None).steps() == []
    for text in ("not JSON\n", "[1]\n", '{"step"'):
        (DIRECTORY / "metrics.jsonl").write_text(text)
        assert Log(DIRECTORY).steps() == []


# Patterns

def test_patterns_are_read_one_document_at_a_time_and_each_rank_reads_its_share(monkeypatch):
    """128 documents of 60,000 words would take 4 GB together, and a rank alone minutes in which the others wait. Here
    the other rank stands in for this one's share."""
    batch = [Example(str(row), f"We sent Bern tea. We showed Kim Oslo {row}.", "", "x") for row in range(5)]
    rollouts = [Rollout(example, None, (f"It says: we showed Kim Oslo {row}.", "Wait, no."), (), ())
                for row, example in enumerate(batch)]
    alive, most, read = weakref.WeakSet(), [], []

    class Counted(patterns.Document):
        def __init__(self, text):
            alive.add(self)
            most.append(len(alive))
            read.append(text)
            super().__init__(text)
    monkeypatch.setattr(patterns, "Document", Counted)
    whole = step_metrics.patterns_of(rollouts)
    assert [[(p.grounding, p.backtracking) for p in group] for group in whole] == [[(1, 0), (0, 1)]] * 5
    assert max(most) == 1 and len(read) == 5
    monkeypatch.setattr(parallel, "size", lambda: 2)
    shares = []
    for rank in (0, 1):
        read.clear()
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(parallel, "gather", lambda value: shares.append(value) or [value, value])
        step_metrics.patterns_of(rollouts[:4])
        assert read == [example.document for example in batch[rank:4:2]]
    monkeypatch.setattr(parallel, "gather", lambda value: json.loads(json.dumps(shares)))
    assert [[p.longest_quote for p in group] for group in step_metrics.patterns_of(rollouts[:4])] == [
        [p.longest_quote for p in group] for group in whole[:4]]


# Dynamic sampling

@pytest.mark.parametrize("reward, found", [
    (lambda *_: 0.0, "were all wrong, 0 all right"), (lambda *_: 1.0, "0 were all wrong"),
    (lambda number, example, i, text: float(example.id.endswith("7") and i == 0), "disagreed")])
def test_refills_end_at_their_limit_and_say_so(in_tmp, toy_directory, monkeypatch, capsys, reward, found):
    """Nobody is ever right, everybody always, one answer in thirty."""
    rounds = rewarded(monkeypatch, reward)
    assert rl(toy_directory, "--steps", 2, "--max-refills", 3,
                 "--toy-examples", 100) == 0
    told, rows = capsys.readouterr().out, metrics(DIRECTORY)
    assert rounds == [4] * 8 and [row["sampling/refills"] for row in rows] == [3, 3]
    assert told.count("groups are missing after 3 refills") == 2 and found in told
    for row in rows:
        assert row["sampling/informative"] + row["sampling/missing"] == 4
        assert row["sampling/informative"] + row["sampling/all_wrong"] + row["sampling/all_right"] == 16
    assert len(words()) == 2 * 16 * 3


def test_refills_bring_what_is_missing_and_all_of_it_is_learned_from(in_tmp, toy_directory, monkeypatch, capsys):
    """Two rounds in which half of the groups disagree, then one in which all do."""
    half = lambda number, example, i, text: float(i == 0 and (number % 3 == 0 or int(example.id[-1]) % 2))
    rounds = rewarded(monkeypatch, half)
    assert rl(toy_directory, "--steps", 3, "--max-refills", 9, "--toy-examples", 60,
                 "--prompts-per-step", 6) == 0
    rows = metrics(DIRECTORY)
    assert sum(rounds) == len(words()) / 3 and all(row["sampling/missing"] == 0 for row in rows)
    assert any(row["sampling/refills"] > 0 for row in rows) and "missing" not in capsys.readouterr().out
    for step, row in enumerate(rows, start=1):
        used = {(w["id"], w["advantage"] != 0) for w in words() if w["step"] == step}
        assert sum(informative for _, informative in used) == row["sampling/informative"] >= 6


def test_what_is_wanted_stays_what_the_first_round_asked_for(in_tmp, toy_directory, monkeypatch):
    """Five groups of six disagree, then none of two, then both."""
    asked = []
    rounds = rewarded(monkeypatch, lambda number, example, i, text: (asked.append(example.id), float(
        i == 0 and (number == 3 or number == 1 and example.id != asked[0])))[1])
    assert rl(toy_directory, "--steps", 1, "--max-refills", 9, "--toy-examples", 60, "--prompts-per-step", 6) == 0
    assert rounds == [6, 2, 2] and metrics(DIRECTORY)[0]["sampling/informative"] == 7


def test_without_refills_each_step_has_one_round(in_tmp, toy_directory, monkeypatch):
    rounds = rewarded(monkeypatch, lambda *_: 0.0)
    assert rl(toy_directory) == 0
    assert rounds == [4, 4, 4]


def test_an_example_drawn_twice_in_a_step_is_answered_anew(in_tmp, toy_directory, monkeypatch):
    rewarded(monkeypatch, lambda *_: 0.0)
    assert rl(toy_directory, "--steps", 1, "--max-refills", 4, "--toy-examples",
                 4) == 0
    texts = {}
    for row in words():
        texts.setdefault(row["id"], []).append(row["text"])
    assert all(len(said) == 15 and len(set(said)) > 10 for said in texts.values())


def test_steps_in_vain_end_the_run_saved_and_it_goes_on(in_tmp, toy_directory, monkeypatch, capsys):
    rewarded(monkeypatch, lambda number, example, i, text: float(i == 0 and number == 2))
    flags = ["--phase-steps", 3, 9]
    monkeypatch.setattr(doctor, "MAX_IDLE_STEPS", 3)
    assert rl(toy_directory, *flags) == errors.BAD_DATA
    told, word = capsys.readouterr().err, json.loads((DIRECTORY / "exit.json").read_text())
    assert "in 3 steps in a row no group" in told and "--group-size" in told and told.count("\n") == 1
    assert word["code"] == 65 and word["step"] == 5 and word["checkpoint"].endswith("step_000005")
    monkeypatch.setattr(doctor, "MAX_IDLE_STEPS", 99)
    assert rl(toy_directory, *flags) == 0 and len(metrics(DIRECTORY)) == 12


# Rewards

def test_the_penalty_for_length_is_in_the_reward_and_not_in_the_accuracy(in_tmp, toy_directory, monkeypatch):
    """Every answer is right, and every token of it but the first one too many."""
    rewarded(monkeypatch, lambda *_: 1.0)
    assert rl(toy_directory, "--max-new-tokens", 40, "--overlong-buffer", 39, "--seed", 1, "--steps", 1) == 0
    (row,), answers = metrics(DIRECTORY), words()
    assert row["accuracy"] == 1 and row["reward"] == pytest.approx(1 + row["rewards/overlong/mean"]) and (
        row["reward"] < 1) and row["reward"] == pytest.approx(sum(w["reward"] for w in answers) / len(answers))
    assert row["updates"] == 1 and any(answer["advantage"] for answer in answers)          # of nothing but the penalty
    assert json.loads((DIRECTORY / "checkpoints/step_000001/state.json").read_text())["states"]["sampler"][
        "mean_rewards"].values() and set(json.loads((DIRECTORY / "checkpoints/step_000001/state.json").read_text())[
            "states"]["sampler"]["mean_rewards"].values()) == {1.0}             # difficulty is not about length


@pytest.mark.parametrize("advantages", ["grpo", "dr_grpo", "tmn", "tmn_reweight", "task_std"])
def test_every_kind_of_advantage_trains_on_every_task(in_tmp, toy_directory, monkeypatch, advantages):
    rewarded(monkeypatch, lambda number, example, i, text: i / 7 * (2 if example.task == "qa" else 1))
    assert rl(toy_directory, "--task", "qa", "f1", "pairwise", "--toy-examples", 60,
              "--prompts-per-step", 16, "--advantages", advantages, "--steps", 1) == 0
    (row,) = metrics(DIRECTORY)
    found = {(w["task"], w["sample"]): w["advantage"] for w in words()}
    assert row["updates"] == 1 and {"reward_by_task/qa", "reward_by_task/f1", "reward_by_task/pairwise"} <= row.keys()
    assert (abs(found["qa", 2]) > 1.5 * abs(found["f1", 2])) == (advantages == "dr_grpo")


def test_answers_that_nobody_could_score_are_counted_and_not_learned_from(in_tmp, toy_directory, monkeypatch):
    """In the first round all, in the others one per group."""
    rewarded(monkeypatch, lambda number, example, i, text: math.nan if number == 1 or i == 1 else float(i))
    scored, weights = [], train_rl.grpo.token_weights
    monkeypatch.setattr(train_rl.grpo, "token_weights", lambda rollouts, *more: (scored.append(
        [[not math.isnan(reward) for reward in rollout.rewards] for rollout in rollouts.values()]),
        weights(rollouts, *more))[1])
    monkeypatch.setattr(train_rl, "SHOW_EVERY", 1)
    assert rl(toy_directory) == 0
    rows = [strict(line) for line in (DIRECTORY / "metrics.jsonl").read_text().splitlines()]
    answers = [strict(line) for line in (DIRECTORY / "rollouts.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [None, 1.0, 1.0] and [row["updates"] for row in rows] == [0, 1, 1]
    assert all(w["advantage"] == 0 for w in answers if w["reward"] is None)
    assert sum(w["reward"] is None for w in answers) == 4 * 3 + 2 * 4
    assert scored == [[[True, False, True]] * 4] * 2                           # nor counted among the tokens


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_the_losses_settings_reach_it(in_tmp, toy_directory, monkeypatch, loss):
    rewarded(monkeypatch, lambda number, example, i, text: float(i))
    kinds, bonuses, weights, group_loss = [], set(), train_rl.grpo.token_weights, train_rl.grpo.group_loss
    monkeypatch.setattr(train_rl.grpo, "token_weights", lambda rollouts, *more: (
        kinds.append(more), weights(rollouts, *more))[1])
    monkeypatch.setattr(train_rl.grpo, "group_loss", lambda *args, entropy_coef, **objective: (
        bonuses.add(entropy_coef), group_loss(*args, entropy_coef=entropy_coef, **objective))[1])
    assert rl(toy_directory, "--loss", loss, "--entropy-coef", 0.5, "--steps", 1) == 0
    assert kinds == [(loss, 6)] and bonuses == {0.5}


@pytest.mark.parametrize("flag, valid", [("--advantages", "grpo, dr_grpo, tmn, tmn_reweight, task_std"),
                                         ("--loss", "dapo, grpo, dr_grpo")])
def test_an_unknown_name_ends_with_the_list_of_valid_ones(in_tmp, toy_directory, capsys, flag, valid):
    assert rl(toy_directory, flag, "rloo") == errors.BAD_CONFIG
    assert capsys.readouterr().err == f"{flag} 'rloo' is unknown: choose one of {valid}\n"


# The judge

def judged(monkeypatch, complete) -> list[int]:
    """train_rl.py and eval.py ask `complete` about what the rule rejects: everything, and it always parses. Returns a
    list that will say how many prompts each call had."""
    calls = []

    def counting(prompts):
        calls.append(len(prompts))
        return complete(prompts)
    judge = lambda where, model, key, seed, *args, **options: Judge(counting, "a judge", seed)
    monkeypatch.setattr(build, "judge", judge)
    qa = rewards.TASKS["qa"]
    monkeypatch.setitem(rewards.TASKS, "qa", qa._replace(extract=lambda said: said[:20] or "nothing"))
    monkeypatch.setattr(rewards, "extract", lambda text, task="qa": text[:20].strip() or "nothing")
    return calls


def obedient(prompts) -> list[str]:
    """Says YES where answer 1 has an even number of characters, and to the questions whose answer is known."""
    from nanoqwenlong.reward.judge import CANARIES
    known = {question.answer: value for question, value in CANARIES}
    said = [prompt.split("answer 1\n")[1].split("\n")[0] for prompt in prompts]
    return ["[[YES]]" if known.get(answer, len(answer) % 2 == 0) else "[[NO]]" for answer in said]


JUDGED = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"]


def test_a_judge_rewards_what_the_rule_rejects_and_a_resumed_run_does_not_ask_again(
        in_tmp, toy_directory, monkeypatch):
    """The resumed run is the undisturbed one, numbers of questions included."""
    flags, calls = [*JUDGED, "--save-every", 1], judged(monkeypatch, obedient)
    assert rl(toy_directory, *flags, "--name", "whole") == 0
    asked, rows = sum(calls), metrics(Path("runs/whole"))
    assert rows[0]["judge/calls"] > 0 and 0 < rows[0]["rewards/judge/mean"] < 1 and rows[0]["judge/error_rate"] == 0
    assert rows[0]["rewards/rule/mean"] == 0 and rows[0]["reward"] > 0 and max(row["updates"] for row in rows) == 1
    calls.clear()
    for steps in (1, 2, 3):
        assert rl(toy_directory, *flags, "--steps", steps) == 0
    assert sum(calls) == asked and without_times(metrics(DIRECTORY)) == without_times(rows)
    verdicts = json.loads((DIRECTORY / "checkpoints/step_000003/state.json").read_text())["states"]["judge"]
    assert len(verdicts) == sum(row["judge/calls"] for row in rows)


def test_a_judge_that_is_down_ends_the_run_saved_and_the_run_goes_on_when_it_is_back(
        in_tmp, toy_directory, monkeypatch, capsys):
    up = [False]
    judged(monkeypatch, lambda prompts: obedient(prompts) if up[0] else [None] * len(prompts))
    flags = [*JUDGED, "--phase-steps", 2, 4]
    assert rl(toy_directory, *flags) == errors.UNAVAILABLE
    told, word = capsys.readouterr(), json.loads((DIRECTORY / "exit.json").read_text())
    assert word["code"] == 69 and word["step"] == 3 and word["checkpoint"].endswith("step_000003")
    assert "3 steps in a row the judge" in told.err and told.err.count("\n") == 1 and "no reply" in told.out
    rows = [strict(line) for line in (DIRECTORY / "metrics.jsonl").read_text().splitlines()]
    assert [row["judge/error_rate"] for row in rows] == [1.0] * 3 and [row["reward"] for row in rows] == [None] * 3
    assert [row["updates"] for row in rows] == [0] * 3                          # an outage is no wrong answer
    up[0] = True
    assert rl(toy_directory, *flags) == 0
    assert [row["judge/error_rate"] for row in metrics(DIRECTORY)] == [1.0] * 3 + [0.0] * 3


def test_an_answer_that_is_shown_says_who_rewarded_it(capsys):
    for judge, told in ((None, "reward 0"), (0.0, "reward 0"), (1.0, "reward 1 by the judge"),
                        (math.nan, "reward unscorable (no verdict)")):
        score = rewards.Score(judge or 0.0, 0.0, judge, "x")
        train_rl.show(1, Rollout(Example("e", "", "Who?", "Ann"), None, ("text",), (score,), (0.0,)), Log(None).say)
        assert capsys.readouterr().out.endswith(f", {told}\n")


def test_a_judge_that_fails_now_and_then_costs_answers_not_the_run(in_tmp, toy_directory, monkeypatch):
    calls = []
    judged(monkeypatch, lambda prompts: (calls.append(1), obedient(prompts) if len(calls) % 3 else
                                         [None] * len(prompts))[1])
    assert rl(toy_directory, *JUDGED, "--phase-steps", 3, 6) == 0
    assert [row["judge/error_rate"] for row in metrics(DIRECTORY)] == [0, 0, 1] * 3


def test_a_server_may_move_between_two_starts_and_its_model_may_not_change(
        in_tmp, toy_directory, monkeypatch, capsys):
    judged(monkeypatch, obedient)
    assert rl(toy_directory, *JUDGED, "--steps", 1) == 0
    assert rl(toy_directory, "--judge", "http://localhost:10/v1", "--judge-model", "m", "--steps", 2) == 0
    assert rl(toy_directory, "--judge", "http://localhost:10/v1", "--judge-model", "other") == errors.BAD_CONFIG
    assert "--judge-model" in capsys.readouterr().err


def test_the_key_of_a_judge_is_nowhere_in_a_run(in_tmp, toy_directory, monkeypatch, capsys):
    """A real server, which repeats the key in its refusals."""
    seen = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.headers["Authorization"])
            body = json.dumps({"error": f"no such key: {seen[-1]}"}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_API_KEY", "SENTINEL-KEY")
    monkeypatch.setattr(rewards, "extract", lambda text, task="qa": text[:20].strip() or "nothing")
    try:
        assert rl(toy_directory, "--phase-steps", 3, 1, "--prompts-per-step", 2, "--toy-examples", 4, "--judge",
                     f"http://127.0.0.1:{server.server_port}/v1", "--judge-model", "m") == errors.UNAVAILABLE
    finally:
        server.shutdown()
        server.server_close()
    told = capsys.readouterr()
    assert seen and set(seen) == {"Bearer SENTINEL-KEY"} and "401" in told.err
    left = b"".join(path.read_bytes() for path in Path("runs").rglob("*") if path.is_file())
    assert "SENTINEL" not in told.out + told.err and b"SENTINEL" not in left


def test_eval_counts_what_a_judge_left_open(in_tmp, toy_directory, monkeypatch, capsys):
    """One answer in five: wrong in the accuracy, right in the upper end of its interval. All of them: the evaluation
    fails, and writes no difficulty."""
    judged(monkeypatch, lambda prompts: [reply if i % 10 else "maybe" for i, reply in enumerate(obedient(prompts), 5)])
    flags = ["--model", toy_directory, "--toy-examples", 20, "--max-new-tokens", 6, *JUDGED]
    assert start(eval_script, *flags, "--out", "out") == 0
    (row,) = json.loads(Path("out/results.json").read_text())["models"]
    cells = row["by_length"].values()
    num_open = sum(cell.get("unscorable", 0) for cell in cells)
    assert num_open > 0 and "answers unscorable" in capsys.readouterr().out
    for cell in cells:
        assert cell["low"] < cell["accuracy"] < cell["high"]
    judged(monkeypatch, lambda prompts: [None] * len(prompts))
    assert start(eval_script, *flags, "--difficulty", "d.json") == errors.UNAVAILABLE
    assert not Path("d.json").exists() and "answers open: " in capsys.readouterr().err


def test_what_is_unscorable_stays_in_the_denominator_and_is_left_out_of_a_difficulty():
    score = lambda reward: rewards.Score(reward, 0.0, reward, "x")
    scores = [[score(1.0), score(math.nan)], [score(0.0), score(0.0)], [score(math.nan), score(math.nan)]]
    assert evaluate.accuracy(scores) == pytest.approx(0.5 / 3)
    assert evaluate.accuracy(scores, unscorable=1) == pytest.approx(2 / 3)
    means = evaluate.mean_rewards(scores)
    assert means[:2] == [1, 0] and math.isnan(means[2])


@pytest.mark.parametrize("preset", ["paper", "golongrl", "qwen2.5-1.5b", "qwen3-30b-a3b"])
def test_every_kind_of_preset_makes_a_step(in_tmp, toy_directory, preset):
    """Made small where it is large; the model is not the one that it names."""
    assert rl(toy_directory, "--preset", preset, "--device", "cpu", "--offload", "false", "--phase-lengths", 80, 200,
              "--kv-blocks", 512, "--overlong-buffer", 2, "--max-refills", 1, "--dry-run") == 0


def test_bad_rows_are_left_out_where_that_is_asked_for(in_tmp, toy_directory, capsys):
    good = [{"id": str(i), "context": "Tom lives in Oslo.", "question": f"Where{'?' * i}", "answer": "Oslo"}
            for i in range(3)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*good, {"id": "4", "context": "x"}]))
    flags = ["--data", "rows.jsonl", "--phase-lengths", 99, "--phase-steps", 1, "--dry-run"]
    assert rl(toy_directory, *flags) == errors.BAD_DATA and "rows.jsonl:4" in capsys.readouterr().err
    assert rl(toy_directory, *flags, "--skip-bad-rows") == 0
    assert "1 bad rows are left out:\nrows.jsonl:4: " in capsys.readouterr().out


def test_a_round_that_the_judge_left_open_is_not_followed_by_another(in_tmp, toy_directory, monkeypatch):
    """An outage costs a judge's deadline once a step, not once a refill."""
    calls = judged(monkeypatch, lambda prompts: [None] * len(prompts))
    assert rl(toy_directory, *JUDGED, "--steps", 1, "--max-refills", 5) == 0
    assert len(calls) == 1 and metrics(DIRECTORY)[0]["sampling/refills"] == 0


# Numbers for parts

MIXED = ("--toy-examples", 60, "--task", "qa", "f1", "--phase-lengths", 200, "--lengths", 80, 200,
         "--phase-steps", 3, "--updates-per-step", 2,
         "--clip-low", 0.01, "--clip-high", 0.01, "--max-new-tokens", 24)


def test_numbers_of_parts_are_those_of_their_answers(in_tmp, toy_directory, monkeypatch):
    """Means by length and task against the answers kept in rollouts.jsonl; clip fractions of the parts, weighed by
    their trained tokens, give the whole, and so do entropy and KL by all their tokens."""
    rewarded(monkeypatch, lambda number, example, i, text: (len(text) + i) % 3 / 2)
    assert rl(toy_directory, *MIXED, "--measure-kl", "--prompts-per-step", 8) == 0
    lengths = {row["id"]: "0-80" if "-8-12-" in row["id"] else "80-200" for row in words()}
    clipped = 0
    for row in metrics(DIRECTORY):
        told = [answer for answer in words() if answer["step"] == row["step"]]
        for kind, of in (("len", lambda answer: lengths[answer["id"]]), ("task", lambda answer: answer["task"])):
            parts = {of(answer) for answer in told}
            assert {key for key in row if key.startswith(f"reward_by_{kind}/")} == {
                f"reward_by_{kind}/{part}" for part in parts}
            trained = {}
            for part in parts:
                some = [answer for answer in told if of(answer) == part]
                mean = lambda value: sum(map(value, some)) / len(some)         # noqa: B023,E731  used at once
                end = f"_by_{kind}/{part}"
                assert row[f"reward{end}"] == pytest.approx(mean(lambda answer: answer["reward"]))
                assert row[f"mean_length{end}"] == pytest.approx(mean(lambda answer: answer["length"]))
                assert row[f"clipped_ratio{end}"] == mean(lambda answer: answer["finish_reason"] == "length")
                agreed = {answer["id"] for answer in some} - {a["id"] for a in some if a["advantage"]}
                trained[end] = sum(a["length"] for a in some if a["id"] not in agreed)
            total = sum(trained.values())
            of_parts = sum(row.get("clip_ratio" + end, 0) * tokens for end, tokens in trained.items())
            assert total and of_parts / total == pytest.approx(
                row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"], rel=1e-6)
            for name in ("entropy", "kl"):                                     # per token of all answers
                of_parts = sum(row[f"{name}_by_{kind}/{part}"] * sum(a["length"] for a in told if of(a) == part)
                               for part in parts)
                assert of_parts / sum(a["length"] for a in told) == pytest.approx(row[name])
        clipped += row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"]
    assert clipped > 0 and set(lengths.values()) == {"0-80", "80-200"}


def test_measuring_the_kl_changes_nothing_else(in_tmp, toy_directory, monkeypatch):
    rewarded(monkeypatch, lambda number, example, i, text: float(i == 0))
    for name, flags in (("with", ["--measure-kl"]), ("without", [])):
        assert rl(toy_directory, "--name", name, *flags) == 0
    with_kl, without = (without_times(metrics(Path("runs") / name)) for name in ("with", "without"))
    assert abs(with_kl[0]["kl"]) < 1e-9 and with_kl[-1]["kl"] > 1e-6           # before the first update, after others
    for one, other in zip(with_kl, without, strict=True):
        assert not any(key.startswith("kl") for key in other)
        assert {key: value for key, value in one.items() if not key.startswith("kl")} == other


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_kl_is_that_of_all_answers(monkeypatch, ranks):
    """k3 by its formula, of groups that agree and of those that do not; each rank reads some of them."""
    from types import SimpleNamespace as Named
    logprobs = [[(-1.0, -2.0), (-0.5,)], [(-3.0,), ()], [(-0.25, -0.25, -1.0), (-2.0,)]]
    refs = [[(-1.5, -2.0), (-0.75,)], [(-1.0,), ()], [(-0.25, -1.25, -1.0), (-2.5,)]]
    rollouts = [Named(group=Named(completions=[Named(ids=values, logprobs=values) for values in group]))
                for group in logprobs]
    parts = [("_by_len/0-80",), ("_by_len/80-200",), ("_by_len/0-80",)]
    d = [[(r - p) for i in (0, 1) for p, r in zip(logprobs[row][i], refs[row][i])] for row in range(3)]
    k3 = [sum(math.exp(x) - x - 1 for x in row) for row in d]
    shares = []
    for rank in range(ranks):                                                  # None: a rank that has one less to do
        read = {row: [torch.tensor(r) for r in refs[row]] for row in range(rank, 3, ranks)}
        read |= {None: []} if rank else {}
        monkeypatch.setattr(step_metrics.group_pass, "logprobs_all", lambda *_, read=read, **__: read)
        monkeypatch.setattr(step_metrics.parallel, "reduce", lambda sums: shares.append(sums) or sums)
        step_metrics.kl_values(object(), rollouts, parts)
    total = shares[0] + shares[1] if ranks == 2 else shares[0]
    monkeypatch.setattr(step_metrics.parallel, "reduce", lambda sums: total)
    found = step_metrics.kl_values(object(), rollouts, parts)
    assert found == pytest.approx({"kl": sum(k3) / 8, "kl_by_len/0-80": (k3[0] + k3[2]) / 7, "kl_by_len/80-200": k3[1]})
    assert step_metrics.kl_values(None, rollouts, parts) == {}


def test_habits_are_counted_and_quotes_are_found(in_tmp, toy_directory, monkeypatch):
    """Each answer quotes its own document: where the quote stands is in rollouts.jsonl, how many in metrics.jsonl."""
    documents = {}
    real = step_metrics.patterns.read_by
    monkeypatch.setattr(step_metrics.patterns, "read_by",
                        lambda example: documents.setdefault(example.id, real(example)))
    quote = lambda example: ". ".join(example.document.split(". ")[1:3]) + "."             # noqa: E731  two records
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "?")

    def score_all(texts, examples, judge=None):
        for group, example in zip(texts, examples):
            group[:] = [f"<think>First, {quote(example)} Wait, no.</think>"] + ["nothing"] * (len(group) - 1)
        return [[rewards.Score(float(i == 0), 0.0, None, "") for i, _ in enumerate(group)] for group in texts]
    monkeypatch.setattr(train_rl, "score_all", score_all)
    assert rl(toy_directory, "--steps", 1) == 0
    (row,), size = metrics(DIRECTORY), 1 / 3
    assert row["patterns/grounding"] == pytest.approx(size) and row["patterns/longest_quote"] >= 8 * size - 1e-9
    assert row["patterns/backtracking"] == pytest.approx(size) and row["patterns/verification"] == 0
    for answer in words():
        if answer["sample"]:
            assert answer["quotes"] == [] and sum(answer["patterns"].values()) == 0
        else:
            ((first, end),) = answer["quotes"]
            assert answer["text"][first:end] + "." in documents[answer["id"]]
            assert answer["patterns"]["grounding"] == 1
