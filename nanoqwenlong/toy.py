"""A task that a tiny model can learn on a CPU and that needs the whole document: look-ups among plain records.

    Notes. Tom lives in Oslo, says Tom. Ann lives in Bern, says Ann. Oslo sells tea, says Oslo. ...
    Where does Tom live?        <think> Tom lives in Oslo, says Tom.</think> Therefore, the answer is Oslo.
    What is sold where Tom lives?
        <think> Tom lives in Oslo, says Tom. Oslo sells tea, says Oslo.</think> Therefore, the answer is tea.

Every person lives in another town and every town sells another thing, so a question is a choice among all records of
its kind (at least four), and the second kind of question needs two look-ups. Each record names its key again behind
the value: a small model learns the look-up far sooner that way. Everything is a function of the seed; a document goes
to the held-out split by a hash of its text, so training and held-out documents are disjoint for every seed.
"""

import random
import tempfile
from hashlib import blake2b
from pathlib import Path

from .model import Qwen
from .records import Example
from .tokenizer import PROMPT, Tokenizer
from .weights import ModelConfig, write_json

PEOPLE = """Tom Ann Bob Eva Jim Kim Leo Mia Ned Pia Ray Sue Ted Una Vic Zoe Abe Bea Cal Dot Eli Fay Gus Hal Ida Jan
Ken Lou Max Nan Otto Peg""".split()
TOWNS = """Oslo Bern Rome Lima Cairo Delhi Paris Tokyo Quito Minsk Sofia Dublin Lagos Accra Tunis Riga Turin Leeds Milan
Kyoto Osaka Perth Miami Dallas Boston Malmo Porto Basel Genoa Lyon Nice Ghent""".split()
GOODS = """tea salt wool corn silk rice fish milk wine rope coal iron gold clay soap wax oats figs nuts plums beans
honey paper glass paint shoes hats drums lamps boats bread cheese""".split()
MENTIONS = 16
SHORT, LONG = (4, 8), (16, 28)                                       # records in a document of either length


def examples(num: int, records: tuple[int, int], seed: int, split: str = "train") -> list[Example]:
    """`num` questions with worked responses, each about its own document of `records` = (fewest, most) records.
    split: "train" or "heldout"."""
    rng, found, name = random.Random(f"{seed}/{records}/{split}"), [], f"{split}-{records[0]}-{records[1]}-{seed}"
    while len(found) < num:
        homes, wares = facts(rng, rng.randint(*records))
        document = write_document(rng, homes, wares)
        if split_of(document) == split:
            found.append(ask(rng, f"{name}-{len(found):05d}", document, homes, wares))
    return found


def facts(rng: random.Random, num_records: int) -> tuple[dict[str, str], dict[str, str]]:
    """{person: town}, {town: ware}: half of the records each, the towns that sell being the ones that are lived in
    first (so there is always something to chain)."""
    num_homes = (num_records + 1) // 2
    people, towns = rng.sample(PEOPLE, num_homes), rng.sample(TOWNS, num_homes)
    sellers = rng.sample(towns, num_records - num_homes)
    return dict(zip(people, towns)), dict(zip(sellers, rng.sample(GOODS, len(sellers))))


def lives(person: str, town: str) -> str:
    return f" We showed {person} {town}."


def sells(town: str, ware: str) -> str:
    return f" We sent {town} {ware}."


def write_document(rng: random.Random, homes: dict[str, str], wares: dict[str, str], mentions: int = 0) -> str:
    """The records in random order, each once; or `mentions` records drawn with replacement."""
    records = [lives(*item) for item in homes.items()] + [sells(*item) for item in wares.items()]
    return "Notes." + "".join(rng.choices(records, k=mentions) if mentions else rng.sample(records, len(records)))


def ask(rng: random.Random, id: str, document: str, homes: dict[str, str], wares: dict[str, str]) -> Example:
    """One question, with equal chances for each kind that the document can answer."""
    person, (town, ware) = rng.choice(list(homes)), rng.choice(list(wares.items()) or [("", "")])
    kind = rng.choice(["lives", "sells", "both"] if len(wares) >= 4 else ["lives"])
    if kind == "lives":
        return worked(id, document, f"Which town did we show {person}?", lives(person, homes[person]), homes[person])
    if kind == "sells":
        return worked(id, document, f"What did we send {town}?", sells(town, ware), ware)
    person = next(someone for someone, home in homes.items() if home == town)
    quotes = lives(person, town) + sells(town, ware)
    return worked(id, document, f"What did we send the town that we showed {person}?", quotes, ware)


def worked(id: str, document: str, question: str, quotes: str, answer: str) -> Example:
    response = f"<think>{quotes}</think> Therefore, the answer is {answer}."
    return Example(id, document, question, answer, response=response)


def pages(num: int, records: tuple[int, int], seed: int) -> list[Example]:
    """Plain text to pretrain on: documents that say some of their records twice."""
    rng, found = random.Random(f"{seed}/{records}/pages"), []
    for number in range(num):
        homes, wares = facts(rng, rng.randint(*records))
        text = write_document(rng, homes, wares, mentions=MENTIONS)
        found.append(Example(f"page-{seed}-{number:05d}", text, question="", answer="", task="text"))
    return found


def split_of(document: str) -> str:
    """One document in eight is held out, by a hash of its text."""
    return "heldout" if blake2b(document.encode(), digest_size=1).digest()[0] % 8 == 0 else "train"


# The tiny model: an ordinary Qwen3 directory.

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 192,
          "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
          "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 16384,
          "initializer_range": 0.02, "hidden_act": "silu", "attention_bias": False, "dtype": "float32"}
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def new_model(seed: int) -> tuple[Qwen, Tokenizer]:
    """A random tiny model and its tokenizer (bytes, and one token for each word of the task and of the prompt)."""
    with tempfile.TemporaryDirectory() as directory:
        vocab_size = save_tokenizer(Path(directory))
        tokenizer = Tokenizer(directory)
    config = {**CONFIG, "vocab_size": vocab_size, "eos_token_id": tokenizer.hf.eos_token_id}
    return Qwen.random(ModelConfig.from_json(config, "toy.CONFIG"), seed), tokenizer


def save_tokenizer(directory: Path) -> int:
    """Writes a byte-level BPE tokenizer as Hugging Face saves them; returns its vocabulary size, rounded up to 16."""
    from tokenizers import AddedToken, Tokenizer as BPE, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    homes, wares = dict(zip(PEOPLE, TOWNS)), dict(zip(TOWNS, GOODS))
    words = [write_document(random.Random(0), homes, wares), PROMPT, "user assistant system\n",
             "Which town did we show Tom? What did we send Rome? What did we send the town that we showed Tom?",
             "Therefore, the answer is Rome."]
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                 model_max_length=16384)
    hf.chat_template = CHAT_TEMPLATE
    hf.save_pretrained(directory)
    ends = [hf.convert_tokens_to_ids("<|im_end|>"), hf.convert_tokens_to_ids("<|endoftext|>")]
    write_json(directory / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})
    return -(-len(hf) // 16) * 16
