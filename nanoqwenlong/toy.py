"""A toy task for a CPU: look-ups among plain records. A tiny model can learn it, and it needs the whole document.

    Notes. We showed Tom Oslo. We sent Rome salt. We showed Ann Bern. We sent Oslo tea. ...

    qa        Which town did we show Tom?                        Oslo
              What did we send Rome?                             salt
              What went to the town that we showed Tom?          tea
    f1        List what we sent Rome, Oslo and Lima.             salt, tea, wool          (in any order)
    pairwise  Order the towns that we showed Tom, Ann and Bob.   Bern, Lima, Oslo         (alphabetical)
    <think> We showed Tom Oslo. We sent Oslo tea.</think> Therefore, the answer is tea.   (a worked response)

Each person was shown another town, and each town was sent another thing. Everything is a function of the seed.
"""

import math
import random
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import torch

from .errors import ConfigError
from .model import Qwen
from .pretrained.config import ModelConfig
from .pretrained.template import PROMPT
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
    return "Notes." + "".join(rng.choices(records, k=mentions) if mentions else rng.sample(records, len(records)))


def ask(rng: random.Random, shown: dict, received: dict, task: str) -> tuple[str, str, str]:
    """A question of this task, the records to quote, and the answer. A list has one item a line."""
    if task != "qa":
        records, sentence = (received, SENT) if task == "f1" else (shown, SHOWED)
        keys = rng.sample(list(records), 3)
        names, items = f"{', '.join(keys[:-1])} and {keys[-1]}", [records[key] for key in keys]
        quotes = "".join(sentence.format(key, records[key]) for key in keys)
        if task == "f1":
            return f"List what we sent {names}.", quotes, "\n".join(items)
        return f"Order the towns that we showed {names}.", quotes, "\n".join(sorted(items))
    kind = rng.choice(["shown", "received", "both"])
    if kind == "shown":
        person, town = rng.choice(list(shown.items()))
        return f"Which town did we show {person}?", SHOWED.format(person, town), town
    town, goods = rng.choice(list(received.items()))
    if kind == "received":
        return f"What did we send {town}?", SENT.format(town, goods), goods
    person = next(person for person, place in shown.items() if place == town)
    quotes = SHOWED.format(person, town) + SENT.format(town, goods)
    return f"What went to the town that we showed {person}?", quotes, goods


def examples(num: int, records: tuple[int, int], seed: int, split: str = "train", tasks: Sequence[str] = (),
             paraphrased: float = 0.0) -> list[Example]:
    """`num` questions with responses, each on its own document of `records` (fewest, most) records. Splits share none.
    paraphrased: share of responses to qa that use a thing's other word (chai for tea), which only a judge accepts."""
    if unknown := sorted(set(tasks) - set(TASKS)):
        raise ConfigError(f"--task {unknown[0]}: the toy task has {', '.join(TASKS)} only; give --data for other tasks")
    rng, made = random.Random(f"{seed}/{records}/{split}"), []
    while len(made) < num:
        shown, received = facts(rng, rng.randint(*records))
        document = write_document(rng, shown, received)
        digest = blake2b(document.encode(), digest_size=1).digest()
        if (digest[0] % 8 == 0) != (split == "heldout"):               # one document in eight, by its text
            continue
        task = rng.choice(tasks) if len(tasks) > 1 else (*tasks, "qa")[0]
        question, quotes, gold = ask(rng, shown, received, task)
        said = gold.replace("\n", ", ")
        if paraphrased and rng.random() < paraphrased and task == "qa":
            said = OTHER_WORDS.get(said, said)
        made.append(Example(f"{split}-{records[0]}-{records[1]}-{seed}-{len(made):05d}", document, question, gold, task,
                            response=f"<think>{quotes}</think> Therefore, the answer is {said}."))
    return made


def pages(num: int, seed: int) -> list[Example]:
    """Plain text to pretrain on. A page repeats few records, so most of it can be looked up earlier on the page."""
    rng = random.Random(f"{seed}/pages")
    texts = [write_document(rng, *facts(rng, rng.randint(*PAGE)), mentions=MENTIONS) for _ in range(num)]
    return [Example(f"page-{seed}-{i:05d}", text, question="", answer="", task="text") for i, text in enumerate(texts)]


CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 192,
          "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_theta": 10000.0,
          "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 16384,
          "initializer_range": 0.08, "hidden_act": "silu", "dtype": "float32"}
CHAT_TEMPLATE = ("{%- for message in messages -%}\n<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
                 "<|im_end|>\n{% endfor -%}\n"
                 "{%- if add_generation_prompt -%}\n<|im_start|>assistant\n{% endif -%}\n")


def new_model(seed: int, texts: Sequence[str] = (), looks_back=(1,), **changes) -> tuple[Qwen, Tokenizer]:
    """A random tiny Qwen2 and its tokenizer, which has a token for each frequent word of `texts`. changes: to CONFIG.
    looks_back: the first heads attend to these distances at first. So small a model never learns look-ups otherwise."""
    with tempfile.TemporaryDirectory() as directory:
        vocab_size = save_tokenizer(Path(directory), texts)
        tokenizer = Tokenizer(directory)
    settings = {**CONFIG, **changes, "vocab_size": vocab_size, "eos_token_id": tokenizer.eos_id}
    config = ModelConfig.from_json(settings, "toy.CONFIG")
    model = Qwen.random(config, seed)
    attention, strength = model.model.layers[0].self_attn, 4.0
    with torch.no_grad():
        model.model.embed_tokens.weight /= config.initializer_range    # std 1: a token outweighs what is added to it
        for head, distance in enumerate(looks_back):                   # rope makes the biases' product peak there
            for plane in range(4):
                place = head * config.head_dim + plane
                angle = distance * config.rope_theta ** (-2 * plane / config.head_dim)
                attention.k_proj.bias[place] = strength
                attention.q_proj.bias[place] = strength * math.cos(angle)
                attention.q_proj.bias[place + config.head_dim // 2] = -strength * math.sin(angle)
    return model, tokenizer


def save_tokenizer(directory: Path, texts: Sequence[str] = ()) -> int:
    """Write a byte-level BPE tokenizer for these texts or the toy task. Returns its size, rounded up to 16 tokens."""
    from tokenizers import AddedToken, Tokenizer as BPE, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    every_word = write_document(random.Random(0), dict(zip(PEOPLE, TOWNS)), dict(zip(TOWNS, GOODS)))
    asked = "Which town did we show Tom? What did we send Rome? What went to the town that we showed Tom?"
    texts = texts or [every_word, PROMPT, "user assistant system\n", asked, "Therefore, the answer is Rome."]
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4096, min_frequency=1 + len(texts) // 64,
        show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bpe.add_tokens([AddedToken(marker, normalized=False) for marker in ("<think>", "</think>")])
    hf = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                 model_max_length=16384, chat_template=CHAT_TEMPLATE)
    hf.save_pretrained(directory)
    write_json(directory / "generation_config.json", {"eos_token_id": [hf.eos_token_id, hf.pad_token_id],
                                                      "pad_token_id": hf.pad_token_id})
    return -(-len(hf) // 16) * 16
