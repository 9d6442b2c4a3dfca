"""What `--preset` stands for in train_rl.py (RL), train_sft.py (SFT) and eval.py (EVAL). Flags win over a preset.

Memory settings are calculated for the machine named beside KV_BLOCKS, not measured. Where a setting comes from:

    paper       QwenLong-L1, arXiv 2505.17667: section, table or equation
    script      its released scripts/rl_4nodes_dapo.sh, with the defaults of the trainer that it starts
    GoLongRL    arXiv 2605.19577, as released: examples/GoLongRL/qwen3-4B-tmn-reweight.sh, and its evaluation
    ours        the papers do not say, or it depends on the machine
    (*)         departs from them, for the given reason
"""

# The released models. A preset reads MODEL from models/MODEL, where this command puts it:
#     hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-14B --local-dir models/DeepSeek-R1-Distill-Qwen-14B
SOURCES = {"r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",           # paper 3.2
           "r1-distill-qwen-32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",           # paper 3.2
           "r1-distill-llama-8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",           # ours: a smaller one of them
           "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",                # the paper's judge. Here trained, on one GPU
           "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",                    # ours: between that one and the paper's
           "qwen3-4b": "Qwen/Qwen3-4B-Thinking-2507",                   # GoLongRL
           "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B-Thinking-2507"}         # GoLongRL
DIRECTORIES = {name: "models/" + source.rpartition("/")[2] for name, source in SOURCES.items()}

# The KV cache, beside the whole weights in bfloat16 and, unless offloaded, a share of float32 weights and optimizer
KV_BLOCKS = {
    "r1-distill-qwen-14b": 20000,       # ours: 8 GPUs of 141 GB. 63 GB beside 30 and 22
    "r1-distill-qwen-32b": 14000,       # ours: 8 GPUs of 141 GB, or nodes of them. 59 GB beside 66
    "r1-distill-llama-8b": 20000,       # ours: 8 GPUs of 80 GB. 42 GB beside 16 and 12
    "qwen2.5-1.5b": 40000,              # ours: one GPU of 80 GB. 18 GB beside 3 and 19
    "qwen2.5-7b": 40000,                # ours: 8 GPUs of 80 GB. 37 GB beside 15 and 11
    "qwen3-4b": 40000,                  # ours: 8 GPUs of 141 GB. 94 GB beside 8 and 6
    "qwen3-30b-a3b": 32000}             # ours: 8 GPUs of 141 GB, or nodes of them. 50 GB beside 61
GPU = dict(device="cuda", timeout_minutes=120.0)        # ours: ranks wait for the longest rollout
OFFLOADED = dict(offload=True, threads=8)               # ours: a GPU has no room. The optimizer then runs on the CPU

QWENLONG_L1 = dict(
    phase_lengths=(20000, 60000),       # paper 3.2, Eq. 9: K = 2, L1 = 20K, L2 = 60K
    phase_steps=(50, 50),               # ours: the paper does not say
    prompts_per_step=128, group_size=8, updates_per_step=4, learning_rate=2e-6,         # paper 3.2: minibatches of 32
    warmup_steps=0, weight_decay=0.01,  # script
    clip_low=0.2, clip_high=0.2,        # script, which is symmetric although it is DAPO's. Not in the paper
    temperature=0.7, max_prompt_tokens=60000, max_new_tokens=10000,     # paper 3.2
    top_p=1.0,                          # (*) paper 3.2: 0.95, but the loss should score what was sampled
    overlong_buffer=1000,               # script. Eq. 7 has no figure
    max_refills=9,                      # script: 10 rounds of prompts at most
    retro_hard_below=0.0,               # paper 3.2: examples without a right answer come back
    checkpointing=True, kv_blocks=40000)                # ours: memory
ONE_GPU = dict(                         # departures for the smaller models
    prompts_per_step=32,                # (*) a quarter of the paper's, so that a step ends within the hour
    updates_per_step=1,                 # (*) a minibatch is still the paper's
    max_new_tokens=4096)                # (*) most of a step is decoding
GOLONGRL = dict(
    phase_lengths=(163840,),            # GoLongRL: all lengths at once
    phase_steps=(1000,),                # ours: GoLongRL makes 10 epochs. Their steps depend on how many groups agree
    prompts_per_step=128, group_size=16, updates_per_step=1,    # GoLongRL: one update per rollout
    learning_rate=2e-6, warmup_steps=5, weight_decay=0.1,       # GoLongRL
    clip_low=0.2, clip_high=0.28, dual_clip=3.0,        # GoLongRL
    advantages="tmn_reweight",          # GoLongRL 4B
    loss="grpo",                        # GoLongRL: it averages over tokens within micro-batches of one answer
    temperature=1.0, top_p=1.0, max_prompt_tokens=163840, max_new_tokens=16384,         # GoLongRL
    max_refills=9,                      # (*) GoLongRL: 32 rounds. After 10 a step continues with the groups it has
    checkpointing=True, kv_blocks=60000)                # ours: memory
SAVED = dict(GPU, save_every=5)         # script, GoLongRL
RL = {
    "paper": QWENLONG_L1,
    "golongrl": GOLONGRL,
    "r1-distill-qwen-14b": {**QWENLONG_L1, **SAVED},    # paper 3.2, after SFT: give --model its last checkpoint
    "r1-distill-qwen-32b": {**QWENLONG_L1, **SAVED, **OFFLOADED},       # paper 3.2. The script trains it without SFT
    "r1-distill-llama-8b": {**QWENLONG_L1, **SAVED},    # ours
    "qwen2.5-1.5b": {**QWENLONG_L1, **ONE_GPU, **SAVED},                # ours. YaRN in config.json (docs/models.md)
    "qwen2.5-7b": {**QWENLONG_L1, **ONE_GPU, **SAVED},                  # ours. YaRN in config.json
    "qwen3-4b": {**GOLONGRL, **SAVED},                                  # GoLongRL
    "qwen3-30b-a3b": {**GOLONGRL, **SAVED, **OFFLOADED, "advantages": "grpo"}}      # GoLongRL 30B: GRPO only
for name in SOURCES:
    RL[name] |= {"model": DIRECTORIES[name], "kv_blocks": KV_BLOCKS[name]}

# Warm-up. GoLongRL has none, so its models have no preset here.
WARM_UP = dict(
    GPU,
    max_prompt_tokens=20000, batch_size=128, learning_rate=5e-6,        # paper 3.2
    steps=125,                          # paper 3.1, 3.2: 3 epochs of 5,305 examples. For other data: 3 * rows / 128
    warmup_steps=0, weight_decay=0.01,  # ours: as in RL. The paper does not say
    eval_every=0,                       # ours: the paper stops after its epochs
    save_every=20, checkpointing=True)  # ours: memory
SFT = {
    "nano-base": dict(                              # ours: the tiny base of assets/
        model="new",                    # random weights
        toy_examples=0,                 # it has never seen a question,
        toy_pages=12000,                # but plain text
        steps=1500,                     # assets/README.md has the minutes
        learning_rate=6e-3,             # for a model of 0.18M parameters
        final_fraction=0.2,             # of it at the last step
        eval_every=0)}                  # there is nothing to ask it
for name in [name for name in SOURCES if not name.startswith("qwen3")]:         # paper 3.2, and ours
    SFT[name] = {**WARM_UP, "model": DIRECTORIES[name]}
SFT["r1-distill-qwen-32b"] |= OFFLOADED

# Evaluation: every GPU has a whole model.
BENCHMARKS = dict(
    temperature=0.7, top_p=0.95,        # paper 3.3
    max_prompt_tokens=120000, max_new_tokens=10000,     # paper 3.3
    lengths=(20000, 60000, 120000))     # ours: where phases end, and prompts
GOLONGRL_BENCHMARKS = dict(
    temperature=0.7, top_p=0.95,        # GoLongRL
    max_prompt_tokens=131072, max_new_tokens=51200,     # GoLongRL: a context of 182,272 with the answer
    lengths=(20000, 60000, 131072))     # ours
EVAL = {"paper": BENCHMARKS, "golongrl": GOLONGRL_BENCHMARKS}
for name in SOURCES:
    benchmarks = GOLONGRL_BENCHMARKS if name.startswith("qwen3") else BENCHMARKS   # Qwen2.5, Llama: ours
    EVAL[name] = {**benchmarks, **GPU, "model": (DIRECTORIES[name],), "kv_blocks": KV_BLOCKS[name]}
