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

import math
import random
import tempfile
from hashlib import blake2b
from pathlib import Path

import torch

from .model import Qwen
from .records import Example
from .tokenizer import PROMPT, Tokenizer
from .weights import ModelConfig, write_json

PEOPLE = "Tom Ann Bob Eva Jim Kim Leo Mia Ned Pia Ray Sue Ted Una Vic Zoe Abe Bea Cal Dot".split()
TOWNS = """Oslo Bern Rome Lima Cairo Delhi Paris Tokyo Quito Minsk Sofia Dublin Lagos Accra Tunis Riga Turin Leeds Milan
Kyoto""".split()
GOODS = "tea salt wool corn silk rice fish milk wine rope coal iron gold clay soap wax oats figs nuts plums".split()
SHORT, LONG = (8, 12), (24, 36)                                      # records in a document of either length
LENGTHS = (80, 200)                                                  # tokens (document + question) that bound them
PAGE, MENTIONS = (2, 10), 16                                         # different records of a page, and how many in all


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


# The tiny model: an ordinary Qwen2 directory.

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 192,
          "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 10000.0,
          "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 16384,
          "initializer_range": 0.08, "hidden_act": "silu", "dtype": "float32"}
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
    config = ModelConfig.from_json({**CONFIG, "vocab_size": vocab_size, "eos_token_id": tokenizer.eos_id}, "toy.CONFIG")
    model = Qwen.random(config, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight /= config.initializer_range      # std 1: a token outweighs what layers add to it
        look_one_back(model.model.layers[0].self_attn, config)
    return model, tokenizer


def look_one_back(attention, config: ModelConfig, strength: float = 4.0, num_pairs: int = 4) -> None:
    """Start head 0 as a previous-token head, by biases alone: rope turns the query's bias by one position against the
    key's in the fastest `num_pairs` planes, so their product peaks at distance 1.

    A look-up needs two layers to agree (write down what stood before, then search for it), and neither is of use
    without the other: from random weights that stalemate outlasts the whole pretraining of a model this small."""
    half = config.head_dim // 2
    for plane in range(num_pairs):
        angle = config.rope_theta ** (-2 * plane / config.head_dim)
        attention.k_proj.bias[plane] = strength
        attention.q_proj.bias[plane] = strength * math.cos(angle)
        attention.q_proj.bias[plane + half] = -strength * math.sin(angle)


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
