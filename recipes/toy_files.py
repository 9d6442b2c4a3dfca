"""The toy task as files of rows, for experiments that mix what the scripts generate one by one:

    python -m recipes.toy_files runs/ablations [--seed 1]

    base.jsonl         2,000 worked answers about short documents, and the closed-book questions
    sft_short.jsonl    4,000 other worked answers about short documents
    sft_long.jsonl     2,000 of these, and 2,000 about long documents
    rl.jsonl           2,000 new questions of each length
    closed_book.jsonl  the closed-book questions alone
    either_word.jsonl  400 held-out questions, half of them about long documents, that accept both words for a thing
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from nanoqwenlong import data, toy
from nanoqwenlong.ops.console import tell
from nanoqwenlong.records import Example


def either_word(example: Example) -> Example:
    """The same question with both words as accepted answers, tea and chai: what a judge should accept, as a rule."""
    other = toy.OTHER_WORDS.get(example.answer)
    return replace(example, answer=(example.answer, other)) if other else example


def closed_book() -> list[Example]:
    """Questions without a document, with worked responses: what each town is known for, asked by each person.

    The facts are the same for every seed. A model learns them in its warm-up or not at all, so they show what RL
    makes it forget."""
    made = []
    for town, goods in zip(toy.TOWNS, reversed(toy.GOODS)):
        for person in toy.PEOPLE:
            question = f"{person} asks: What is {town} known for?"
            response = f"<think> {town} is known for {goods}.</think> Therefore, the answer is {goods}."
            made.append(Example(f"closed-book-{person}-{town}", "", "", goods, messages=(("user", question),),
                                response=response))
    return made


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.toy_files", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of documents and questions")
    args = parser.parse_args(argv)
    try:
        write(args.directory, args.seed)
    except OSError as error:
        tell(f"{error.filename or args.directory} cannot be written: {error.strerror}", sys.stderr)
        return 74
    return 0


def write(directory: Path, seed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    base, sft, rl = f"{seed}/base", f"{seed}/sft", f"{seed}/rl"
    short = toy.examples(4000, toy.SHORT, sft)
    heldout = toy.examples(200, toy.SHORT, 0, "heldout") + toy.examples(200, toy.LONG, 0, "heldout")
    files = {
        "base": toy.examples(2000, toy.SHORT, base) + closed_book(),
        "sft_short": short,
        "sft_long": short[:2000] + toy.examples(2000, toy.LONG, sft),
        "rl": toy.examples(2000, toy.SHORT, rl) + toy.examples(2000, toy.LONG, rl),
        "closed_book": closed_book(),
        "either_word": [either_word(example) for example in heldout],
    }
    for name, examples in files.items():
        lines = [json.dumps(data.as_row(example), ensure_ascii=False) + "\n" for example in examples]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
