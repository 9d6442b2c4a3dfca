"""The whole method in one file: a tiny model learns to look things up in documents (QwenLong-L1, arXiv 2505.17667).

    base            has read plain text
    SFT warm-up     imitates worked answers about short documents, until half of its own answers are right
    RL phase I      answers questions about short documents, and learns from rewards alone
    RL phase II     the same with long documents, and with the short ones that are still hard

    python course/micro_grpo.py --seed 0        prints a table after 2 to 3 minutes on one core

Each part names the file that does it properly. Shapes: P prompts, G answers each, B = P * G, T or N tokens, V words.
"""

import argparse
import random

import torch
import torch.nn.functional as F
from torch import nn

SHORT, LONG = (4, 6), (12, 18)          # people in a document: fewest and most. Each of them has two records
WIDTH, NUM_LAYERS, NUM_HEADS = 64, 2, 2
BASE_RATE, SFT_RATE, RL_RATE = 4e-3, 1e-3, 6e-4        # learning rates
BASE_STEPS, SFT_STEPS, PHASE_STEPS = 250, 1000, (40, 80)
BATCH_SIZE, PROMPTS_PER_STEP, GROUP_SIZE, ANSWERS_PER_UPDATE, MAX_NEW_TOKENS = 32, 16, 8, 64, 28
TEMPERATURE, CLIP_LOW, CLIP_HIGH = 1.0, 0.2, 0.28
RETRO_FRACTION, HARD_BELOW, FLOOR = 0.25, 0.75, 1 / 16


# 1. The task: look things up in records (nanoqwenlong/toy.py). A token is a word (pretrained/tokenizer.py)
PEOPLE = "Tom Ann Bob Eva Jim Kim Leo Mia Ned Pia Ray Sue Ted Una Vic Zoe Abe Bea Cal Dot".split()
TOWNS = "Oslo Bern Rome Lima Cairo Paris Tokyo Quito Minsk Sofia Lagos Accra Tunis Riga Turin Leeds Milan Kyoto".split()
GOODS = "tea salt wool corn silk rice fish milk wine rope coal iron gold clay soap wax oats figs nuts plums".split()
OTHERS = "Notes We we showed sent . What did send went to the town that ? Therefore , answer is <think> </think>"
WORDS = PEOPLE + TOWNS + GOODS + OTHERS.split() + ["<end>", "<pad>"]
END, PAD = WORDS.index("<end>"), WORDS.index("<pad>")


def make_example(length):
    """(prompt, worked answer, gold answer): a document, and a question that needs one or two of its records."""
    num_people = random.randint(*length)
    people, towns, goods = (random.sample(names, num_people) for names in (PEOPLE, TOWNS, GOODS))
    records = []
    for person, town, thing in zip(people, towns, goods):
        records += [f"We showed {person} {town} .", f"We sent {town} {thing} ."]
    question, quotes = f"What went to the town that we showed {people[0]} ?", records[:2]
    if random.random() < 0.5:
        question, quotes = f"What did we send {towns[0]} ?", records[1:2]
    random.shuffle(records)
    prompt = " ".join(["Notes .", *records, question])
    answer = " ".join(["<think>", *quotes, "</think> Therefore , the answer is", goods[0], ". <end>"])
    return prompt, answer, goods[0]


def make_page(prompt):
    """Plain text: a first word, and a few records of a document, again and again."""
    first, *records, _ = prompt.split(" . ")
    return first, " . ".join(["", *random.choices(records[:random.randint(2, 10)], k=16)])


# 2. The model: a small causal transformer (nanoqwenlong/model.py, attention.py)
def rotate(x, angles):
    """Rope: attention sees how far apart two tokens are (pretrained/rope.py)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))

    def forward(self, x, visible, angles, cached):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)     # (B, H, T, D)
        q, k = rotate(q, angles), rotate(k, angles)
        if cached:
            k, v = torch.cat([cached[0], k], 2), torch.cat([cached[1], v], 2)
        attended = F.scaled_dot_product_attention(q, k, v, visible)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), (k, v)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.look_back = nn.Embedding(len(WORDS), WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(NUM_LAYERS)])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, len(WORDS))

    def forward(self, ids, cache=None):
        """ids (B, T) -> logits of the columns that are not cached yet (B, new, V), and the new cache."""
        cache = list(cache or [None] * NUM_LAYERS)
        columns, start = torch.arange(ids.shape[1]), cache[0][0].shape[2] if cache[0] else 0
        new = columns[start:, None]
        visible = (columns < new) & (ids != PAD)[:, None] | (columns == new)   # (B, new, T)
        angles = new * 10000 ** torch.linspace(0, -1, WIDTH // NUM_HEADS // 2, dtype=self.head.weight.dtype)
        # Each token also sees the word before it. A tiny model takes long to learn this by itself
        before = F.pad(ids, (1, 0), value=PAD)[:, :-1]
        x = (self.word(ids) + self.look_back(self.word(before)))[:, start:]
        for i, layer in enumerate(self.layers):
            x, cache[i] = layer(x, visible[:, None], angles, cache[i])
        return self.head(self.norm(x)).index_fill(-1, torch.tensor(PAD), -1e9), cache       # <pad> is never drawn


# 3. Rewards: a rule reads the answer (rewards.py, reward/). The project can also ask a judge
def reward(text, gold):
    """1 if the text concludes with the gold answer after its thoughts, otherwise 0."""
    _, thought, conclusion = text.rpartition("</think>")
    _, stated, answer = conclusion.rpartition("the answer is")
    return float(bool(thought and stated) and answer.strip(" .") == gold)


# 4. Rollouts (generate.py, engine/). The project pads nothing, and a group shares its prompt (group_pass.py)
def padded(texts, side):
    """(B, longest) ids. Prompts are padded on the left, answers on the right, so all answers start in one column."""
    rows = [torch.tensor([WORDS.index(word) for word in text.split()]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side=side)


@torch.no_grad()
def roll_out(model, examples, n):
    """n answers to each example -> ids of prompts and answers (B, T), log-probs of answers (B, N), rewards (P, n)."""
    prompts, _, golds = zip(*examples)
    ids, logprobs, rewards = padded(prompts, "left"), [], []
    logits, cache = model(ids)                                                 # each prompt once
    ids, logits = ids.repeat_interleave(n, 0), logits.repeat_interleave(n, 0)
    cache = [(k.repeat_interleave(n, 0), v.repeat_interleave(n, 0)) for k, v in cache]
    ended = torch.zeros(len(ids), 1, dtype=torch.bool)
    while len(logprobs) < MAX_NEW_TOKENS and not ended.all():
        distribution = F.log_softmax(logits[:, -1] / TEMPERATURE, -1)          # (B, V)
        drawn = torch.multinomial(distribution.exp(), 1)                       # (B, 1)
        logprobs.append(distribution.gather(1, drawn))
        ids = torch.cat([ids, drawn.masked_fill(ended, PAD)], 1)
        ended = ended | (drawn == END)
        logits, cache = model(ids, cache)
    for row, answer in enumerate(ids[:, -len(logprobs):]):
        text = " ".join(WORDS[i] for i in answer if i not in (END, PAD))
        rewards.append(reward(text, golds[row // n]))
    return ids, torch.cat(logprobs, 1), torch.tensor(rewards).view(-1, n)


def answer_logprobs(model, ids, N):
    """The log-probs of the answers (B, N) again, with a gradient, and which of them count (kernels/logprob.py)."""
    logits, _ = model(ids[:, :-1])
    distribution = F.log_softmax(logits[:, -N:] / TEMPERATURE, -1)             # (B, N, V)
    return distribution.gather(2, ids[:, -N:, None])[..., 0], ids[:, -N:] != PAD


# 5. The objective: GRPO with the token weights and the clip of DAPO
def group_advantages(rewards):
    """(P, G) How much better an answer is than its group. 0 if the group agrees (advantages.py)."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)


def dapo_loss(logprobs, old_logprobs, advantages, mask):
    """The loss of answers (B, N) with advantages (B, 1). Every token weighs the same (grpo.py, kernels/grpo_loss.py).
    A token teaches nothing more once its probability has changed enough since it was sampled."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    return -(objective * mask).sum() / mask.sum()


# 6. The curriculum: phases of growing length, and hard examples that come back (curriculum.py)
def draw(phases, number, n, mean_rewards):
    """n examples for a step of this phase: own ones, and hard ones of earlier phases."""
    hard = [example for example in sum(phases[:number], []) if mean_rewards.get(example, 1.0) <= HARD_BELOW]
    chosen = []
    while hard and len(chosen) < round(RETRO_FRACTION * n):
        chosen += random.choices(hard, [1 / max(mean_rewards[example], FLOOR) for example in hard])
        hard.remove(chosen[-1])
    return random.sample(phases[number], n - len(chosen)), chosen


# 7. Training (train_sft.py, train_rl.py, optim.py)
def update(model, optimizer, loss):
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def accuracies(model, heldout):
    """For each set of examples the share of right answers, sampled as in training (analysis/evaluate.py)."""
    return [roll_out(model, examples, 1)[2].mean().item() for examples in heldout]


def imitate(model, texts, num_steps, learning_rate, heldout=()):
    """SFT on (prompt, answer, ...). Each answer weighs the same. With `heldout`, it stops when half are right."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    for step in range(1, num_steps + 1):
        prompts, answers, *_ = zip(*random.sample(texts, BATCH_SIZE))
        prompts, answers = padded(prompts, "left"), padded(answers, "right")
        logprobs, mask = answer_logprobs(model, torch.cat([prompts, answers], 1), answers.shape[1])
        update(model, optimizer, -((logprobs * mask).sum(1) / mask.sum(1)).mean())
        if heldout and step % 20 == 0:
            right, = accuracies(model, heldout)
            print(f"SFT step {step}: {right:.0%} of the answers are right")
            if right >= 0.5:
                break


def reinforce(model, optimizer, phases, number, mean_rewards):
    """One step of RL. Returns the rewards (P, G), and how many hard examples came back."""
    # 1. Roll out and reward
    own, hard = draw(phases, number, PROMPTS_PER_STEP, mean_rewards)
    ids, old_logprobs, rewards = roll_out(model, own + hard, GROUP_SIZE)
    mean_rewards.update(zip(own + hard, rewards.mean(1).tolist()))
    # 2. Select the answers of the groups that disagree. The others teach nothing
    advantages = group_advantages(rewards)
    rows = advantages.any(1).repeat_interleave(GROUP_SIZE).nonzero()[:, 0]
    # 3. Update. From the second update on the model is no longer the one that sampled, so the clip has work to do
    for some in filter(len, rows.split(ANSWERS_PER_UPDATE)):
        logprobs, mask = answer_logprobs(model, ids[some], old_logprobs.shape[1])
        loss = dapo_loss(logprobs, old_logprobs[some], advantages.view(-1, 1)[some], mask)
        update(model, optimizer, loss)
    return rewards, len(hard)


def train(seed):
    """Train all stages. Returns the accuracies on short and on long documents after each stage, by its name."""
    random.seed(seed)
    torch.manual_seed(seed)
    phases = [[make_example(length) for _ in range(2000)] for length in (SHORT, LONG)]
    heldout = [[make_example(length) for _ in range(200)] for length in (SHORT, LONG)]
    model, table, mean_rewards = Model(), {}, {}
    imitate(model, [make_page(prompt) for prompt, _, _ in phases[0]], BASE_STEPS, BASE_RATE)
    table["base"] = accuracies(model, heldout)
    imitate(model, phases[0], SFT_STEPS, SFT_RATE, heldout[:1])
    table["SFT warm-up"] = accuracies(model, heldout)
    optimizer = torch.optim.AdamW(model.parameters(), RL_RATE)
    for number, num_steps in enumerate(PHASE_STEPS):
        for step in range(1, num_steps + 1):
            rewards, num_hard = reinforce(model, optimizer, phases, number, mean_rewards)
            if step % 5 == 0:
                print(f"RL phase {number + 1} step {step}: mean reward {rewards.mean():.2f}, {num_hard} hard examples")
        table["RL phase " + "I" * (number + 1)] = accuracies(model, heldout)
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    table = train(parser.parse_args().seed)
    print("\n| held-out accuracy, % | short documents | long documents |\n|---|---|---|")
    for stage, (short, long) in table.items():
        print(f"| {stage} | {100 * short:.1f} | {100 * long:.1f} |")
