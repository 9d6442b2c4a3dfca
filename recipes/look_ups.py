"""How well a base looks things up, without any question: recipes/assets.sh writes the figures into assets/README.md.

    python -m recipes.look_ups assets/nano-base 8 12 24 36      a rate for documents of 8, 12, 24 and 36 records
"""

import random
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import torch

from nanoqwenlong.model import Qwen
from nanoqwenlong.ops.console import say
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.toy import facts, write_document


def look_up_rate(model: Qwen, tokenizer: Tokenizer, num_records: int, num_documents: int = 100) -> float:
    """How often the most likely token after a repeated key is its value."""
    rng, num_right = random.Random("look-ups"), 0
    for _ in range(num_documents):
        shown, received = facts(rng, num_records)
        verb, facts_of_kind = rng.choice([("showed", shown), ("sent", received)])
        key, value = rng.choice(list(facts_of_kind.items()))
        text = f"{write_document(rng, shown, received)} We {verb} {key}"
        logits = model.logits(torch.tensor(tokenizer.encode(text)))            # (T, V)
        num_right += tokenizer.decode([int(logits[-1].argmax())]) == f" {value}"
    return num_right / num_documents


def main(directory: str, num_records: list[int]) -> None:
    model, tokenizer = Qwen.from_pretrained(directory), Tokenizer(directory)
    rates = [look_up_rate(model, tokenizer, number) for number in num_records]
    say(", ".join(f"{rate:.0%}" for rate in rates))


if __name__ == "__main__":
    parser = ArgumentParser("python -m recipes.look_ups", description=__doc__,
                            formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("num_records", type=int, nargs="+")
    main(**vars(parser.parse_args()))
