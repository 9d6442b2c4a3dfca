"""The tools that make things: what the toy judge is taught is right, and its model knows the words."""

import json

from recipes import toy_files, toy_judge

from nanoqwenlong import data, toy
from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.reward import answers, judge


def test_what_a_toy_judge_is_taught_is_right(tmp_path):
    """The reply's verdict is that of the two names; both verdicts are as frequent; every canary is among the rows."""
    toy_judge.main(tmp_path, 400)
    same = {frozenset(pair) for pair in toy.OTHER_WORDS.items()}
    canaries = {(question.answer, question.golds[0]) for question, _ in judge.CANARIES}
    examples, yes, shown = data.read([tmp_path / "rows.jsonl"], need_response=True), 0, ""
    for example in examples:
        ((_, prompt),), verdict = example.messages, judge.verdict(example.response)
        answer, gold = (prompt.split(f"{title}\n")[1].split("\n")[0] for title in ("answer 1", "answer 2"))
        if (answer, gold) not in canaries:
            assert verdict == (answers.matches(answer, gold) or frozenset((answer, gold)) in same), (answer, gold)
        yes, shown = yes + verdict, shown + prompt
    assert 0.4 < yes / len(examples) < 0.6
    assert all(f"\n{question.answer}\n" in shown for question, _ in judge.CANARIES)
    tokenizer = Tokenizer(tmp_path / "new")
    assert Qwen.from_pretrained(tmp_path / "new").config.num_hidden_layers == 3
    assert all(len(tokenizer.encode(f"\n{word}")) <= 2 for word in ("tea", "Oslo", "Leeds"))
    assert json.loads((tmp_path / "rows.jsonl").read_text().split("\n")[0]).keys() == {"prompt", "completion"}


def test_toy_files_that_cannot_be_written_end_in_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert toy_files.main([str(tmp_path / "file")]) == toy_files.main([str(tmp_path / "file/below")]) == 74
    assert capsys.readouterr().err.count("cannot be written: ") == 2 and (tmp_path / "file").read_text() == "mine"
