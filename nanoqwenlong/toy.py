"""A toy task for a CPU: look-ups among plain records. A tiny model can learn it, and it needs the whole document.

    Notes. We showed Tom Oslo. We sent Rome salt. We showed Ann Bern. We sent Oslo tea. ...

    qa        Which town did we show Tom?                        Oslo
              What did we send Rome?                             salt
              What did we send the town that we showed Tom?      tea
    f1        What did we send Rome, Oslo and Lima?              salt, tea, wool          (in any order)
    pairwise  Order the towns that we showed Tom, Ann and Bob.   Bern, Lima, Oslo         (alphabetical)

    <think> We showed Tom Oslo. We sent Oslo tea.</think> Therefore, the answer is tea.   (a worked response)

Each person was shown another town, and each town was sent another thing. So a question is a choice among all records
of its kind (at least four), and the third question needs two look-ups. Everything is a function of the seed. A hash of
its text decides whether a document is held out, so training and held-out documents never overlap. Worked answers may
be paraphrased (chai for tea). No rule accepts those, but a judge can.
"""

import math
import random
import tempfile
from collections.abc import Sequence
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
NUM_NAMED = 3                           # people or towns in a question of f1 and pairwise
SHORT, LONG = (8, 12), (24, 36)         # records in a document of either length: fewest, most
LENGTHS = (80, 200)                     # tokens (document + question) of the longest short and long ones
SHOWED, SENT = " We showed {} {}.", " We sent {} {}."
PAGE, MENTIONS = (2, 10), 16            # different records of a page, and how many sentences it has


def facts(rng: random.Random, num_records: int) -> tuple[dict[str, str], dict[str, str]]:
    """{person: the town that we showed} and {town: the thing that we sent there}, half of the records each."""
    num_people = (num_records + 1) // 2
    people, towns = rng.sample(PEOPLE, num_people), rng.sample(TOWNS, num_people)
    receivers = rng.sample(towns, num_records - num_people)
    return dict(zip(people, towns)), dict(zip(receivers, rng.sample(GOODS, len(receivers))))


def write_document(rng: random.Random, shown: dict[str, str], received: dict[str, str], mentions: int = 0) -> str:
    """Each record once, in random order. With `mentions`: so many records, drawn with replacement."""
    records = [SHOWED.format(*item) for item in shown.items()] + [SENT.format(*item) for item in received.items()]
    chosen = rng.choices(records, k=mentions) if mentions else rng.sample(records, len(records))
    return "Notes." + "".join(chosen)


# Questions: each function returns the question, the records to quote, and the answer.

def ask(rng: random.Random, shown: dict, received: dict) -> tuple[str, str, str]:
    """One of the three kinds of questions."""
    kind = rng.choice(["shown", "received", "both"])
    if kind == "shown":
        person, town = rng.choice(list(shown.items()))
        return f"Which town did we show {person}?", SHOWED.format(person, town), town
    town, goods = rng.choice(list(received.items()))
    if kind == "received":
        return f"What did we send {town}?", SENT.format(town, goods), goods
    person = next(person for person, place in shown.items() if place == town)
    quotes = SHOWED.format(person, town) + SENT.format(town, goods)
    return f"What did we send the town that we showed {person}?", quotes, goods


def ask_several(rng: random.Random, shown: dict, received: dict) -> tuple[str, str, list[str]]:
    """What we sent to several towns."""
    towns = rng.sample(list(received), NUM_NAMED)
    quotes = "".join(SENT.format(town, received[town]) for town in towns)
    answer = [received[town] for town in towns]
    return f"What did we send {', '.join(towns[:-1])} and {towns[-1]}?", quotes, answer


def ask_order(rng: random.Random, shown: dict, received: dict) -> tuple[str, str, list[str]]:
    """The towns that we showed several people, in alphabetical order."""
    people = rng.sample(list(shown), NUM_NAMED)
    quotes = "".join(SHOWED.format(person, shown[person]) for person in people)
    answer = sorted(shown[person] for person in people)
    return f"Order the towns that we showed {', '.join(people[:-1])} and {people[-1]}.", quotes, answer


ASK = {"qa": ask, "f1": ask_several, "pairwise": ask_order}


def examples(num: int, records: tuple[int, int], seed: int, split: str = "train", tasks: Sequence[str] = (),
             paraphrased: float = 0.0) -> list[Example]:
    """`num` questions with worked responses, each about its own document.

    records: the fewest and the most records of a document. split: "train" or "heldout".
    tasks: each has the same chance. Without any, all are qa. paraphrased: the share of responses to qa that call a
    thing by its other word. The gold answer does not."""
    if unknown := sorted(set(tasks) - set(ASK)):
        raise ConfigError(f"--task {unknown[0]}: the toy task has {', '.join(ASK)} only; give --data for other tasks")
    tasks = tasks or ["qa"]
    rng = random.Random(f"{seed}/{records}/{split}")
    made = []
    while len(made) < num:
        shown, received = facts(rng, rng.randint(*records))
        document = write_document(rng, shown, received)
        digest = blake2b(document.encode(), digest_size=1).digest()
        if (digest[0] % 8 == 0) != (split == "heldout"):               # one document in eight is held out
            continue
        task = rng.choice(tasks) if len(tasks) > 1 else tasks[0]
        question, quotes, answer = ASK[task](rng, shown, received)
        said, gold = (answer, answer) if task == "qa" else (", ".join(answer), "\n".join(answer))
        if paraphrased and rng.random() < paraphrased and task == "qa":
            said = OTHER_WORDS.get(said, said)
        made.append(Example(f"{split}-{records[0]}-{records[1]}-{seed}-{len(made):05d}", document, question, gold, task,
                            response=f"<think>{quotes}</think> Therefore, the answer is {said}."))
    return made


def pages(num: int, seed: int) -> list[Example]:
    """Plain text to pretrain on, without questions. A page repeats few records, so most of what it says can be looked
    up earlier on it."""
    rng = random.Random(f"{seed}/pages")
    texts = [write_document(rng, *facts(rng, rng.randint(*PAGE)), mentions=MENTIONS) for _ in range(num)]
    return [Example(f"page-{seed}-{i:05d}", text, question="", answer="", task="text") for i, text in enumerate(texts)]


# The tiny model: an ordinary Qwen2 directory

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
    """A random tiny model and its tokenizer, which has a token for each frequent word of `texts`.

    looks_back: the first heads start by attending to the token at these distances. changes: to CONFIG."""
    with tempfile.TemporaryDirectory() as directory:
        vocab_size = save_tokenizer(Path(directory), texts)
        tokenizer = Tokenizer(directory)
    settings = {**CONFIG, **changes, "vocab_size": vocab_size, "eos_token_id": tokenizer.eos_id}
    config = ModelConfig.from_json(settings, "toy.CONFIG")
    model = Qwen.random(config, seed)
    with torch.no_grad():
        model.model.embed_tokens.weight /= config.initializer_range    # std 1: a token outweighs what is added to it
        for head, distance in enumerate(looks_back):
            look_back(model.model.layers[0].self_attn, config, head, distance)
    return model, tokenizer


def look_back(attention, config: ModelConfig, head: int, distance: int) -> None:
    """Make a head attend to the token `distance` back, by biases alone.

    In the four fastest planes, rope turns the bias of the query by `distance` positions against that of the key, so
    their product peaks there. Without this, a model this small does not learn look-ups in its whole pretraining: they
    need two layers (note the token before, then search for it), and neither helps without the other."""
    half, first = config.head_dim // 2, head * config.head_dim
    strength = 4.0
    for plane in range(4):
        angle = distance * config.rope_theta ** (-2 * plane / config.head_dim)
        attention.k_proj.bias[first + plane] = strength
        attention.q_proj.bias[first + plane] = strength * math.cos(angle)
        attention.q_proj.bias[first + plane + half] = -strength * math.sin(angle)


def save_tokenizer(directory: Path, texts: Sequence[str] = ()) -> int:
    """Write a byte-level BPE tokenizer, with the words of the toy task if there are no texts. Returns its vocabulary
    size, rounded up to a multiple of 16."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as BPE
    from transformers import PreTrainedTokenizerFast
    every_word = write_document(random.Random(0), dict(zip(PEOPLE, TOWNS)), dict(zip(TOWNS, GOODS)))
    words = [every_word, PROMPT, "user assistant system\n",
             "Which town did we show Tom? What did we send Rome? What did we send the town that we showed Tom?",
             "Therefore, the answer is Rome."]
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts or words, trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1 + len(texts) // 64, show_progress=False, initial_alphabet=alphabet))
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken(marker, normalized=False) for marker in ("<think>", "</think>")])
    hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                 model_max_length=16384)
    hf.chat_template = CHAT_TEMPLATE
    hf.save_pretrained(directory)
    ends = hf.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    write_json(directory / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})
    return -(-len(hf) // 16) * 16
