"""A task that a tiny model can learn on a CPU and that needs the whole document: look-ups among plain records.

    Notes. We showed Tom Oslo. We sent Rome salt. We showed Ann Bern. We sent Oslo tea. ...
    Which town did we show Tom?     <think> We showed Tom Oslo.</think> Therefore, the answer is Oslo.
    What did we send Rome?          <think> We sent Rome salt.</think> Therefore, the answer is salt.
    What did we send the town that we showed Tom?
                                    <think> We showed Tom Oslo. We sent Oslo tea.</think> Therefore, the answer is tea.

Everybody was shown another town and every town was sent another thing, so a question is a choice among all records of
its kind (at least four), the others do not matter, and the third kind of question needs two look-ups. Everything is a
function of the seed. A document belongs to the held-out split by a hash of its text, so training and held-out documents
are disjoint for every seed.

Two more tasks have graded rewards: f1 asks for several things at once, pairwise for towns in the alphabet's order.

    What did we send Rome, Oslo and Lima?                 ... Therefore, the answer is salt, tea, wool.
    Order the towns that we showed Tom, Ann and Bob.      ... Therefore, the answer is Bern, Lima, Oslo.

And worked answers may be paraphrased (chai for tea), so that a judge has something to do that no rule can.
"""

import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch

from .data.prompt import PROMPT
from .errors import ConfigError
from .model import Qwen
from .pretrained.config import ModelConfig
from .pretrained.tokenizer import Tokenizer
from .pretrained.weights import write_json
from .records import Example

PEOPLE = "Tom Ann Bob Eva Jim Kim Leo Mia Ned Pia Ray Sue Ted Una Vic Zoe Abe Bea Cal Dot".split()
TOWNS = """Oslo Bern Rome Lima Cairo Delhi Paris Tokyo Quito Minsk Sofia Dublin Lagos Accra Tunis Riga Turin Leeds Milan
Kyoto""".split()
GOODS = "tea salt wool corn silk rice fish milk wine rope coal iron gold clay soap wax oats figs nuts plums".split()
OTHER_WORDS = dict(zip(GOODS, """chai brine fleece maize satin paddy haddock dairy claret cord coke steel bullion loam
suds paraffin porridge sultanas almonds prunes""".split()))
TASKS = ("qa", "f1", "pairwise")
NUM_NAMED = 3                                                        # in a question of the last two
SHORT, LONG = (8, 12), (24, 36)                                      # records in a document of either length
LENGTHS = (80, 200)                                                  # tokens (document + question) that bound them
PAGE, MENTIONS = (2, 10), 16                                         # different records of a page, and how many in all


def examples(num: int, records: tuple[int, int], seed: int, split: str = "train", tasks: Sequence[str] = (),
             paraphrased: float = 0.0) -> list[Example]:
    """`num` questions with worked responses, each about its own document of `records` = (fewest, most) records.
    split: "train" or "heldout". tasks: each has the same chance; none: qa. paraphrased: the share of responses to `qa`
    that name a thing by its other word; the gold answer does not."""
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ConfigError(f"--task {unknown[0]}: the toy task has {', '.join(TASKS)} only; give --data for others")
    tasks = tasks or TASKS[:1]
    rng, found, name = random.Random(f"{seed}/{records}/{split}"), [], f"{split}-{records[0]}-{records[1]}-{seed}"
    while len(found) < num:
        shown, received = facts(rng, rng.randint(*records))
        document = write_document(rng, shown, received)
        if split_of(document) == split:
            task = rng.choice(tasks) if len(tasks) > 1 else tasks[0]
            example = ASK[task](rng, f"{name}-{len(found):05d}", document, shown, received)
            if paraphrased and rng.random() < paraphrased:
                example = paraphrase(example)
            found.append(example)
    return found


def facts(rng: random.Random, num_records: int) -> tuple[dict[str, str], dict[str, str]]:
    """Who was shown which town, and which of those towns was sent what: half of the records each."""
    num_people = (num_records + 1) // 2
    people, towns = rng.sample(PEOPLE, num_people), rng.sample(TOWNS, num_people)
    receivers = rng.sample(towns, num_records - num_people)
    return dict(zip(people, towns)), dict(zip(receivers, rng.sample(GOODS, len(receivers))))


def showed(person: str, town: str) -> str:
    return f" We showed {person} {town}."


def sent(town: str, goods: str) -> str:
    return f" We sent {town} {goods}."


def write_document(rng: random.Random, shown: dict[str, str], received: dict[str, str], mentions: int = 0) -> str:
    """The records in random order, each once; or `mentions` records drawn with replacement."""
    records = [showed(*item) for item in shown.items()] + [sent(*item) for item in received.items()]
    return "Notes." + "".join(rng.choices(records, k=mentions) if mentions else rng.sample(records, len(records)))


def ask(rng: random.Random, id: str, document: str, shown: dict[str, str], received: dict[str, str]) -> Example:
    """One question with its worked response; each kind of question has the same chance."""
    kind = rng.choice(["shown", "received", "both"])
    if kind == "shown":
        person, town = rng.choice(list(shown.items()))
        return worked(id, document, f"Which town did we show {person}?", showed(person, town), town)
    town, goods = rng.choice(list(received.items()))
    if kind == "received":
        return worked(id, document, f"What did we send {town}?", sent(town, goods), goods)
    person = next(someone for someone, place in shown.items() if place == town)
    question = f"What did we send the town that we showed {person}?"
    return worked(id, document, question, showed(person, town) + sent(town, goods), goods)


def ask_several(rng: random.Random, id: str, document: str, shown: dict[str, str], received: dict[str, str]
                ) -> Example:
    """What several towns were sent."""
    towns = rng.sample(list(received), NUM_NAMED)
    question = f"What did we send {', '.join(towns[:-1])} and {towns[-1]}?"
    return worked(id, document, question, "".join(sent(town, received[town]) for town in towns),
                  [received[town] for town in towns], "f1")


def ask_order(rng: random.Random, id: str, document: str, shown: dict[str, str], received: dict[str, str]) -> Example:
    """The towns that several people were shown, in the order of the alphabet."""
    people = rng.sample(list(shown), NUM_NAMED)
    return worked(id, document, f"Order the towns that we showed {', '.join(people[:-1])} and {people[-1]}.",
                  "".join(showed(person, shown[person]) for person in people), sorted(shown[p] for p in people),
                  "pairwise")


ASK = dict(zip(TASKS, (ask, ask_several, ask_order)))


def worked(id: str, document: str, question: str, quotes: str, answer: str | list[str], task: str = "qa") -> Example:
    said, gold = (answer, answer) if isinstance(answer, str) else (", ".join(answer), "\n".join(answer))
    return Example(id, document, question, gold, task,
                   response=f"<think>{quotes}</think> Therefore, the answer is {said}.")


def paraphrase(example: Example) -> Example:
    """The thing in the answer of a worked response called by its other word, if there is a thing."""
    if example.task != "qa" or example.answer not in OTHER_WORDS:
        return example
    quotes, end = example.response.split("</think>")
    return replace(example, response=f"{quotes}</think>{end.replace(example.answer, OTHER_WORDS[example.answer])}")


def pages(num: int, seed: int) -> list[Example]:
    """Plain text to pretrain on, never a question: few records, said again and again, so that most of what a page says
    can be looked up further up on it."""
    rng = random.Random(f"{seed}/pages")
    found = []
    for number in range(num):
        text = write_document(rng, *facts(rng, rng.randint(*PAGE)), mentions=MENTIONS)
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


def new_model(seed: int, texts: Sequence[str] = (), looks_back: Sequence[int] = (1,), **changes
              ) -> tuple[Qwen, Tokenizer]:
    """A random tiny model and its tokenizer: bytes, and one token for each word of the toy task and of the prompt, or
    of `texts` if it stands there often. The first heads start by looking so many tokens back. `changes` to CONFIG."""
    with tempfile.TemporaryDirectory() as directory:
        vocab_size = save_tokenizer(Path(directory), texts)
        tokenizer = Tokenizer(directory)
    config = ModelConfig.from_json({**CONFIG, **changes, "vocab_size": vocab_size, "eos_token_id": tokenizer.eos_id},
                                   "toy.CONFIG")
    model = Qwen.random(config, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight /= config.initializer_range      # std 1: a token outweighs what is added to it
        for head, distance in enumerate(looks_back):
            look_back(model.model.layers[0].self_attn, config, head, distance)
    return model, tokenizer


def look_back(attention, config: ModelConfig, head: int, distance: int, strength: float = 4.0, num_pairs: int = 4
              ) -> None:
    """Start a head as one that attends to the token `distance` back, by biases alone: rope turns the query's bias by so
    many positions against the key's in the fastest `num_pairs` planes, so their product peaks there.

    A look-up needs two layers to agree (write down what stood before, then search for it), and neither is of use
    without the other: from random weights that stalemate outlasts the whole pretraining of a model this small."""
    half, first = config.head_dim // 2, head * config.head_dim
    for plane in range(num_pairs):
        angle = distance * config.rope_theta ** (-2 * plane / config.head_dim)
        attention.k_proj.bias[first + plane] = strength
        attention.q_proj.bias[first + plane] = strength * math.cos(angle)
        attention.q_proj.bias[first + plane + half] = -strength * math.sin(angle)


def save_tokenizer(directory: Path, texts: Sequence[str] = ()) -> int:
    """Writes a byte-level BPE tokenizer as Hugging Face saves them; returns its vocabulary size, rounded up to 16."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as BPE
    from transformers import PreTrainedTokenizerFast
    every_word = write_document(random.Random(0), dict(zip(PEOPLE, TOWNS)), dict(zip(TOWNS, GOODS)))
    words = [every_word, PROMPT, "user assistant system\n",
             "Which town did we show Tom? What did we send Rome? What did we send the town that we showed Tom?",
             "Therefore, the answer is Rome."]
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts or words, trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1 + len(texts) // 64, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                 model_max_length=16384)
    hf.chat_template = CHAT_TEMPLATE
    hf.save_pretrained(directory)
    ends = [hf.convert_tokens_to_ids("<|im_end|>"), hf.convert_tokens_to_ids("<|endoftext|>")]
    write_json(directory / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})
    return -(-len(hf) // 16) * 16
