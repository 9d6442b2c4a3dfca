"""Real questions about real documents, as files for a warm-up, for RL and for an evaluation by document length.

    python -m recipes.real_data OUT --tokenizer DIR [--nq nq-open-oracle.jsonl.gz] [--xquad xquad.en.json]

DIR is the directory of the model to train: its tokenizer measures the documents. There are two sources. One that is
not given is downloaded from GitHub into OUT/sources.

    nq      2,655 questions of Natural Questions, each with the passage that answers it, from the repository
            nelson-liu/lost-in-the-middle (questions CC BY-SA 3.0, passages of Wikipedia CC BY-SA)
    xquad   1,190 questions about 240 paragraphs of Wikipedia, the English part of google-deepmind/xquad (CC BY-SA 4.0)

A question is asked about three documents, measured in tokens of document and question:

    one     its own passage alone           up to 200 tokens
    three   and 2 other passages            201 to 520
    long    and 4 to 6 other passages       521 to 1,500

The other passages are those that BM25 finds most similar to the question, in random order. None of them holds an
accepted answer. These files are written into OUT:

    sft.jsonl                               worked answers to questions of XQuAD, passages up to 300 tokens
    rl_one.jsonl                            half of the training questions of NQ
    rl_three.jsonl, rl_long.jsonl           the other half
    control.jsonl                           worked answers to the questions of rl_one and rl_three, on the same
                                            documents: SFT with them is a fair control for RL
    held_nq_one.jsonl, held_nq_three.jsonl, held_nq_long.jsonl, held_xquad_one.jsonl, held_xquad_three.jsonl
                                            held-out questions

A sixth of the documents is held out. Passages belong together if they have the same title, or 13 words in a row that
are the same (the test of Brown et al. 2020 for leaked text), or the same question. So nothing that is held out occurs
in a training file, not even as a distractor, and the reverse. The same sources and tokenizer give the same files.
"""

import argparse
import gzip
import json
import math
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

from nanoqwenlong import data
from nanoqwenlong.errors import DataError
from nanoqwenlong.ops.console import say, with_exit_code
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Example
from nanoqwenlong.reward import answers
from nanoqwenlong.reward.tasks import gold_problem

GITHUB = "https://raw.githubusercontent.com"
SOURCES = {                                                    # URL, and the start of the SHA-256 of the file we used
    "nq": (f"{GITHUB}/nelson-liu/lost-in-the-middle/main/qa_data/nq-open-oracle.jsonl.gz", "6a7f72b846f663a1"),
    "xquad": (f"{GITHUB}/google-deepmind/xquad/master/xquad.en.json", "e4c57d1c9143aaa1"),
}
KINDS = {"one": (0, 200, (0,)), "three": (200, 520, (2,)), "long": (520, 1500, (4, 5, 6))}      # tokens, distractors
SFT_DOCUMENT, SFT_RESPONSE = 300, 45                           # tokens: a warm-up is not bound to a phase
ANSWER_WORDS = 6                                               # a longer answer is rarely matched word for word
HELD_OUT = 1 / 6
RUN = 13                                                       # words in a row that make two passages near-duplicates
SENTENCE_END = re.compile(r"(?<![A-Z]\.)(?<!\b[DMS][rt]\.)(?<=[.!?]) (?=[A-Z\"(])")         # not after "J." or "Dr."


class Passage(NamedTuple):
    title: str
    text: str


class Question(NamedTuple):
    """A question, its accepted answers, and where the first of them stands in the text of its passage."""

    id: str
    source: str
    text: str
    golds: tuple[str, ...]
    passage: Passage
    start: int


def download(name: str, directory: Path) -> Path:
    """The file of this source in the directory. It is downloaded if it is not there. Raises DataError."""
    url, digest = SOURCES[name]
    path = directory / url.rsplit("/", 1)[1]
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with urlopen(url, timeout=60) as response, part.open("wb") as file:
                shutil.copyfileobj(response, file)
        except OSError as error:
            raise DataError(f"{url} cannot be downloaded ({error}); download it with a browser and give it as "
                            f"--{name} FILE") from None
        part.rename(path)
    if not sha256(path.read_bytes()).hexdigest().startswith(digest):
        say(f"{path} is another version than the one that our results are from")
    return path


def clean(text: str) -> str:
    """The text on one line, without spaces before punctuation."""
    return re.sub(r" ([.,;:)])", r"\1", " ".join(text.split())).replace("( ", "(")


def nq_questions(path: Path) -> Iterator[Question | None]:
    """The questions of nq-open-oracle.jsonl.gz. None stands for one without a short answer in its passage."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, row in enumerate(map(json.loads, file)):
            [context] = row["ctxs"]
            passage = Passage(context["title"], clean(context["text"]))
            question = row["question"].rstrip("? ")
            golds = [clean(answer).strip(" ,.;") for answer in row["answers"]]
            yield usable(f"nq-{number}", "nq", f"{question[:1].upper()}{question[1:]}?", golds, passage)


def xquad_questions(path: Path) -> Iterator[Question | None]:
    """The questions of xquad.en.json. None stands for one whose answer is long."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            passage = Passage(article["title"].replace("_", " "), clean(paragraph["context"]))
            for row in paragraph["qas"]:
                golds = [clean(answer["text"]) for answer in row["answers"]]
                before = len(clean(paragraph["context"][:row["answers"][0]["answer_start"]]))
                yield usable(f"xquad-{row['id']}", "xquad", clean(row["question"]), golds, passage, before)


def usable(id: str, source: str, text: str, golds: Sequence[str], passage: Passage, after=0) -> Question | None:
    """The question, if one of its answers is short and stands in the passage as words of their own. The first place
    at or after `after` counts. The shortest such answer comes first. Answers that cannot earn full reward are dropped.
    """
    accepted = [gold for gold in dict.fromkeys(golds) if gold and not gold_problem("qa", gold)]
    for gold in sorted(accepted, key=len):
        place = re.compile(rf"(?<!\w){re.escape(gold)}(?!\w)", re.IGNORECASE).search(passage.text, after)
        if place and len(gold.split()) <= ANSWER_WORDS:
            accepted.remove(gold)
            return Question(id, source, text, (gold, *accepted), passage, place.start())
    return None


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def groups(questions: Sequence[Question]) -> dict[Passage, Passage]:
    """{passage: the passage that stands for its group}. Passages of a group share a title, a run of RUN words, or a
    question."""
    parents = {question.passage: question.passage for question in questions}

    def representative(passage: Passage) -> Passage:
        while parents[passage] != passage:
            passage = parents[passage]
        return passage

    first = {}                                                 # {what is shared: the first passage that has it}
    for question in questions:
        passage, text = question.passage, words(question.passage.text)
        shared = [("title", *words(passage.title)), ("question", *sorted(words(question.text)))]
        shared += [tuple(text[start:start + RUN]) for start in range(max(1, len(text) - RUN + 1))]
        for key in shared:
            parents[representative(passage)] = representative(first.setdefault(key, passage))
    return {passage: representative(passage) for passage in parents}


def bm25(passages: Sequence[Passage], k1=1.2, b=0.75) -> Callable[[str], list[Passage]]:
    """A function from a question to the passages that share a word with it, the most similar first. A word's weight
    falls with the number of passages that have it (Robertson and Zaragoza 2009)."""
    counts = [Counter(words(f"{passage.title} {passage.text}")) for passage in passages]
    mean_length = sum(count.total() for count in counts) / max(1, len(counts))
    having = defaultdict(list)                                 # {word: (passage that has it, its part of the score)}
    for number, count in enumerate(counts):
        norm = k1 * (1 - b + b * count.total() / mean_length)
        for word, frequency in count.items():
            having[word].append((number, frequency * (k1 + 1) / (frequency + norm)))

    def ranked(question: str) -> list[Passage]:
        scores = Counter()
        for word in dict.fromkeys(words(question)):
            rarity = math.log(1 + (len(counts) - len(having[word]) + 0.5) / (len(having[word]) + 0.5))
            for number, part in having[word]:
                scores[number] += rarity * part
        return [passages[number] for number in sorted(scores, key=lambda number: (-scores[number], number))]
    return ranked


@cache
def normalised(passage: Passage) -> str:
    return f" {answers.normalise(f'{passage.title} {passage.text}')} "


def distractors(question: Question, ranked: Sequence[Passage], group_of: dict[Passage, Passage], number: int
                ) -> list[Passage]:
    """The first passages of the ranking that are about something else and hold no accepted answer, one per group."""
    chosen, taken = [], {group_of[question.passage]}
    golds = [f" {answers.normalise(gold)} " for gold in question.golds]
    for passage in ranked:
        if group_of[passage] not in taken and not any(gold in normalised(passage) for gold in golds):
            chosen.append(passage)
            taken.add(group_of[passage])
        if len(chosen) == number:
            break
    return chosen


def worked(question: Question) -> str:
    """A response: the sentence that answers the question, from its start to the end of the answer, and the answer."""
    text, end = question.passage.text, question.start + len(question.golds[0])
    starts = [match.end() for match in SENTENCE_END.finditer(text, 0, question.start + 1)]
    start = max([0, *(start for start in starts if start <= question.start)])
    return f"<think> {text[start:end]}</think> Therefore, the answer is {text[question.start:end]}."


def ask(questions: Sequence[Question], group_of: dict[Passage, Passage], tokenizer: Tokenizer
        ) -> dict[str, list[tuple[Question, Example]]]:
    """{kind: questions with their documents of this kind}. Distractors come from the passages of these questions.
    `length` is filled in, as in training."""
    ranking = bm25(list(dict.fromkeys(question.passage for question in questions)))
    asked = {kind: [] for kind in KINDS}
    for question in questions:
        rng = random.Random(question.id)
        others = distractors(question, ranking(question.text), group_of, max(KINDS["long"][2]))
        for kind, (_, _, numbers) in KINDS.items():
            number = rng.choice(numbers)
            passages = [question.passage, *others[:number]]
            rng.shuffle(passages)
            document = "\n\n".join(f"{passage.title}\n{passage.text}" for passage in passages)
            answer = question.golds if len(question.golds) > 1 else question.golds[0]
            example = Example(f"{question.id}-{kind}", document, question.text, answer, source=question.source)
            if len(passages) == number + 1:
                asked[kind].append((question, example))
    for kind, pairs in asked.items():
        examples, _ = data.tokenize([example for _, example in pairs], tokenizer, sys.maxsize)
        asked[kind] = [(question, example) for (question, _), example in zip(pairs, examples)]
    return asked


def fitting(pairs: Sequence[tuple[Question, Example]], kind: str, source: str) -> list[tuple[Question, Example]]:
    low, high, _ = KINDS[kind]
    return [(question, example) for question, example in pairs
            if low < example.length <= high and question.source == source]


def split(questions: Sequence[Question], group_of: dict[Passage, Passage], rng: random.Random) -> set[Passage]:
    """The groups that are held out: the same share of those of each source."""
    held, seen = set(), set()
    for source in ("xquad", "nq"):
        own = sorted({group_of[question.passage] for question in questions if question.source == source} - seen)
        held.update(rng.sample(own, round(len(own) * HELD_OUT)))
        seen.update(own)
    return held


def build(nq: Path, xquad: Path, tokenizer: Tokenizer) -> dict[str, list[tuple[Question, Example]]]:
    """{name of a file: its questions}. Raises DataError if a source has another form."""
    questions = []
    for path, read in ((nq, nq_questions), (xquad, xquad_questions)):
        try:
            given = list(read(path))
        except (AttributeError, EOFError, KeyError, IndexError, TypeError, ValueError, gzip.BadGzipFile) as error:
            source = read.__name__.removesuffix("_questions")
            raise DataError(f"{path} is not the file {SOURCES[source][0].rsplit('/', 1)[1]} of the source {source} "
                            f"({type(error).__name__}: {error})") from None
        questions += filter(None, given)
        say(f"{path}: {len(given)} questions, {given.count(None)} left out because no answer of at most {ANSWER_WORDS} "
            "words stands in the passage")
    rng = random.Random("real_data")
    group_of = groups(questions)
    held_out = split(questions, group_of, rng)
    rng.shuffle(questions)
    held = ask([question for question in questions if group_of[question.passage] in held_out], group_of, tokenizer)
    train = ask([question for question in questions if group_of[question.passage] not in held_out], group_of, tokenizer)

    sft = [(question, example) for question, example in train["one"]
           if question.source == "xquad" and example.length <= SFT_DOCUMENT]
    one = fitting(train["one"], "one", "nq")
    one = one[:len(one) // 2]
    used = {question.id for question, _ in one}
    three, long = ([(question, example) for question, example in fitting(train[kind], kind, "nq")
                    if question.id not in used] for kind in ("three", "long"))
    files = {"sft": with_responses(sft, tokenizer), "rl_one": one, "rl_three": three, "rl_long": long,
             "control": with_responses(one + three, tokenizer)}
    for source, kinds in (("nq", ("one", "three", "long")), ("xquad", ("one", "three"))):
        for kind in kinds:
            files[f"held_{source}_{kind}"] = fitting(held[kind], kind, source)
    return files


def with_responses(pairs: Sequence[tuple[Question, Example]], tokenizer: Tokenizer) -> list[tuple[Question, Example]]:
    """Those whose worked answer is short, with that answer."""
    answered = []
    for question, example in pairs:
        response = worked(question)
        if len(tokenizer.encode_response(response)) <= SFT_RESPONSE:
            answered.append((question, replace(example, response=response)))
    return answered


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m recipes.real_data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory of the files")
    parser.add_argument("--tokenizer", required=True, help="directory of the model whose tokenizer measures documents")
    parser.add_argument("--nq", type=Path, help="nq-open-oracle.jsonl.gz, if it is on this machine")
    parser.add_argument("--xquad", type=Path, help="xquad.en.json, if it is on this machine")
    args = parser.parse_args(argv)
    tokenizer = Tokenizer(args.tokenizer)
    nq = args.nq or download("nq", args.out / "sources")
    xquad = args.xquad or download("xquad", args.out / "sources")
    files = build(nq, xquad, tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    say(f"{'file':<24}{'questions':>10}{'titles':>8}   tokens: min, median, max")
    for name, pairs in files.items():
        lines = [json.dumps(data.as_row(example), ensure_ascii=False) + "\n" for _, example in pairs]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        titles = {question.passage.title for question, _ in pairs}
        lengths = [example.length for _, example in pairs] or [0]
        tokens = f"{min(lengths)}, {median(lengths):g}, {max(lengths)}"
        say(f"{name + '.jsonl':<24}{len(pairs):>10}{len(titles):>8}   {tokens}")


if __name__ == "__main__":
    sys.exit(with_exit_code(main)())
