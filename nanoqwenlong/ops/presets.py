"""The papers' models and the papers' settings for them, as data: what `--preset` stands for in each script.

`MODELS` has of every released model the part of its config.json that decides what is computed; `RL`, `SFT` and `EVAL`
are departures from the defaults of train_rl.py, train_sft.py and eval.py. What a preset says of the machine (memory is
calculated, not measured) is for the machine in its heading; flags win over it. Where a setting comes from:

    paper       QwenLong-L1, arXiv 2505.17667: section, table or equation
    script      its released scripts/rl_4nodes_dapo.sh, with the defaults of the trainer below it
    GoLongRL    arXiv 2605.19577, as released: examples/GoLongRL/qwen3-4B-tmn-reweight.sh, and its evaluation
    ours        they do not tell, or it is about the machine
    (*)         departs from them, for the reason told
"""

# The released models. A preset looks for MODEL in models/MODEL, where this puts it:
#     hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-14B --local-dir models/DeepSeek-R1-Distill-Qwen-14B
SOURCES = {"r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",           # paper 3.2
           "r1-distill-qwen-32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",           # paper 3.2
           "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B-Instruct",                # the paper's judge; here trained, on one GPU
           "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",                    # ours: between that and the paper's
           "qwen3-4b": "Qwen/Qwen3-4B-Thinking-2507",                   # GoLongRL
           "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B-Thinking-2507"}         # GoLongRL

# For prompts and answers of more than 32,768 tokens: QwenLong-L1's README ("Processing Long Documents") and those of
# Qwen2.5 add it to config.json, for up to 4 x 32,768 = 131,072 tokens. It acts on short inputs as well, so training and
# evaluation should have the same. Qwen2.5-Instruct needs it for these presets. R1-Distill's config.json gives a window
# of 131,072 without it, which is computed as it says; QwenLong-L1's README evaluates with it.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

# Reinforcement learning
QWENLONG_L1 = dict(
    phase_lengths=(20000, 60000),       # paper 3.2, Eq. 9: K = 2, L1 = 20K, L2 = 60K
    phase_steps=(50, 50),               # ours: the paper does not tell
    prompts_per_step=128,               # paper 3.2
    group_size=8,                       # paper 3.2
    updates_per_step=4,                 # paper 3.2: minibatches of 32 prompts
    learning_rate=2e-6,                 # paper 3.2
    warmup_steps=0,                     # script: constant
    weight_decay=0.01,                  # script
    clip_low=0.2,                       # script; not in the paper
    clip_high=0.2,                      # script, which is symmetric although it is DAPO's
    temperature=0.7,                    # paper 3.2
    top_p=1.0,                          # (*) paper 3.2: 0.95, but the loss should score what was sampled
    max_prompt_tokens=60000,            # paper 3.2
    max_new_tokens=10000,               # paper 3.2
    overlong_buffer=1000,               # script; Eq. 7 has no figure
    max_refills=9,                      # script: 10 rounds of prompts at most
    retro_hard_below=0.0,               # paper 3.2: what nobody answered right comes back
    checkpointing=True,                 # ours: memory
    kv_blocks=40000)                    # ours: memory
ONE_GPU = dict(                         # departures for the smaller models (recipes/one_gpu.sh)
    prompts_per_step=32,                # (*) a quarter of the paper's, so that a step ends within the hour
    updates_per_step=1,                 # (*) a minibatch is still the paper's
    max_new_tokens=4096)                # (*) most of a step is decoding
GOLONGRL = dict(
    phase_lengths=(163840,),            # GoLongRL: all lengths at once
    phase_steps=(1000,),                # ours: it makes 10 epochs; how many steps depends on how many groups agree
    prompts_per_step=128,               # GoLongRL
    group_size=16,                      # GoLongRL
    updates_per_step=1,                 # GoLongRL: one update per rollout
    learning_rate=2e-6,                 # GoLongRL
    warmup_steps=5,                     # GoLongRL
    weight_decay=0.1,                   # GoLongRL
    clip_low=0.2,                       # GoLongRL
    clip_high=0.28,                     # GoLongRL
    dual_clip=3.0,                      # GoLongRL
    advantages="tmn_reweight",          # GoLongRL 4B
    loss="grpo",                        # GoLongRL: its token mean is taken within micro-batches of one answer
    temperature=1.0,                    # GoLongRL
    top_p=1.0,                          # GoLongRL
    max_prompt_tokens=163840,           # GoLongRL
    max_new_tokens=16384,               # GoLongRL
    max_refills=9,                      # (*) GoLongRL: 32 rounds; after 10 a step goes on with the groups there are
    checkpointing=True,                 # ours: memory
    kv_blocks=60000)                    # ours: memory
GPU = dict(
    device="cuda",                      # ours
    timeout_minutes=120.0)              # ours: ranks wait for the longest rollout
LARGE = dict(
    GPU,
    save_every=5)                       # script, GoLongRL
OFFLOADED = dict(
    offload=True,                       # ours: in rollouts a GPU has the whole weights to hold
    threads=8)                          # ours: the optimizer then runs on the CPU
RL = {
    "paper": QWENLONG_L1,
    "golongrl": GOLONGRL,
    "r1-distill-qwen-14b": dict(                    # 8 GPUs of 141 GB (recipes/eight_gpus.sh)
        QWENLONG_L1, **LARGE,
        model="models/DeepSeek-R1-Distill-Qwen-14B",  # paper 3.2, there after SFT: then --model the last checkpoint
        kv_blocks=20000),               # ours: 63 GB beside 30 of weights and 22 of masters and optimizer
    "r1-distill-qwen-32b": dict(                    # 8 GPUs of 141 GB, or nodes of them (slurm_multinode.sbatch)
        QWENLONG_L1, **LARGE, **OFFLOADED,
        model="models/DeepSeek-R1-Distill-Qwen-32B",  # paper 3.2; the script trains it without SFT
        kv_blocks=14000),               # ours: 59 GB beside 66 of weights
    "qwen2.5-1.5b": dict(                           # one GPU of 80 GB; YARN in config.json
        {**QWENLONG_L1, **ONE_GPU}, **LARGE,
        model="models/Qwen2.5-1.5B-Instruct",       # ours
        kv_blocks=40000),               # ours: 18 GB beside 3 of weights and 19 of masters and optimizer
    "qwen2.5-7b": dict(                             # 8 GPUs of 80 GB; YARN in config.json
        {**QWENLONG_L1, **ONE_GPU}, **LARGE,
        model="models/Qwen2.5-7B-Instruct",         # ours
        kv_blocks=40000),               # ours: 37 GB beside 15 of weights and 11 of masters and optimizer
    "qwen3-4b": dict(                               # 8 GPUs of 141 GB
        GOLONGRL, **LARGE,
        model="models/Qwen3-4B-Thinking-2507",      # GoLongRL
        kv_blocks=40000),               # ours: 94 GB beside 8 of weights and 6 of masters and optimizer
    "qwen3-30b-a3b": dict(                          # 8 GPUs of 141 GB, or nodes of them
        GOLONGRL, **LARGE, **OFFLOADED,
        model="models/Qwen3-30B-A3B-Thinking-2507",  # GoLongRL
        advantages="grpo",              # GoLongRL 30B: GRPO only
        kv_blocks=32000)}               # ours: 50 GB beside 61 of weights

# Warm-up. GoLongRL has none, and neither have its models here.
WARM_UP = dict(
    GPU,
    max_prompt_tokens=20000,            # paper 3.2: input 20K
    batch_size=128,                     # paper 3.2
    steps=125,                          # paper 3.1, 3.2: 3 epochs of 5,305 examples; of other numbers 3 * rows / 128
    learning_rate=5e-6,                 # paper 3.2
    warmup_steps=0,                     # ours: as in RL; the paper does not tell
    weight_decay=0.01,                  # ours: as in RL
    eval_every=0,                       # ours: the paper stops after its epochs
    save_every=20,                      # ours
    checkpointing=True)                 # ours: memory
SFT = {
    "nano-base": dict(                              # ours: the tiny base of assets/
        model="new",                    # random weights
        toy_examples=0,                 # it has never seen a question,
        toy_pages=12000,                # but plain text
        steps=1500,                     # assets/README.md has the minutes
        learning_rate=6e-3,             # for a model of 0.18M parameters
        final_fraction=0.2,             # of it at the last step
        eval_every=0),                  # there is nothing to ask it
    "r1-distill-qwen-14b": dict(WARM_UP, model="models/DeepSeek-R1-Distill-Qwen-14B"),                  # paper 3.2
    "r1-distill-qwen-32b": dict(WARM_UP, **OFFLOADED, model="models/DeepSeek-R1-Distill-Qwen-32B"),     # paper 3.2
    "qwen2.5-1.5b": dict(WARM_UP, model="models/Qwen2.5-1.5B-Instruct"),                                # ours
    "qwen2.5-7b": dict(WARM_UP, model="models/Qwen2.5-7B-Instruct")}                                    # ours

# Evaluation: every GPU has a whole model.
BENCHMARKS = dict(
    temperature=0.7,                    # paper 3.3
    top_p=0.95,                         # paper 3.3
    max_prompt_tokens=120000,           # paper 3.3
    max_new_tokens=10000,               # paper 3.3
    lengths=(20000, 60000, 120000))     # ours: where phases end, and prompts
GOLONGRL_BENCHMARKS = dict(
    temperature=0.7,                    # GoLongRL
    top_p=0.95,                         # GoLongRL
    max_prompt_tokens=131072,           # GoLongRL: a context of 182,272 with the answer
    max_new_tokens=51200,               # GoLongRL
    lengths=(20000, 60000, 131072))     # ours
EVAL = {
    "paper": BENCHMARKS,
    "golongrl": GOLONGRL_BENCHMARKS,
    "r1-distill-qwen-14b": dict(
        BENCHMARKS, **GPU,
        model=("models/DeepSeek-R1-Distill-Qwen-14B",),         # paper Tab. 4; its README adds YARN
        kv_blocks=20000),               # ours: 63 GB beside 30 of weights
    "r1-distill-qwen-32b": dict(
        BENCHMARKS, **GPU,
        model=("models/DeepSeek-R1-Distill-Qwen-32B",),         # paper Tab. 4; its README adds YARN
        kv_blocks=14000),               # ours: 59 GB beside 66 of weights
    "qwen2.5-1.5b": dict(
        BENCHMARKS, **GPU,
        model=("models/Qwen2.5-1.5B-Instruct",),                # ours; YARN in config.json
        kv_blocks=40000),               # ours: 18 GB beside 3 of weights
    "qwen2.5-7b": dict(
        BENCHMARKS, **GPU,
        model=("models/Qwen2.5-7B-Instruct",),                  # ours; YARN in config.json
        kv_blocks=40000),               # ours: 37 GB beside 15 of weights
    "qwen3-4b": dict(
        GOLONGRL_BENCHMARKS, **GPU,
        model=("models/Qwen3-4B-Thinking-2507",),               # GoLongRL
        kv_blocks=40000),               # ours: 94 GB beside 8 of weights
    "qwen3-30b-a3b": dict(
        GOLONGRL_BENCHMARKS, **GPU,
        model=("models/Qwen3-30B-A3B-Thinking-2507",),          # GoLongRL
        kv_blocks=32000)}               # ours: 50 GB beside 61 of weights
