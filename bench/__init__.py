"""Speed and memory side by side with the libraries people use. `python -m bench.NAME --help` says what is compared.

    group_update   the gradient of one group              against transformers with the repeated prompt
    rollout        the answers of one group               against generate, a repeated cache, continuous batching
    rl_step        sample, reward, update                 against TRL's GRPOTrainer
    logprob        log-probs and their gradient           against naive torch, TRL, Liger, linear_cross_entropy
    moe            a mixture of experts                   against transformers' eager, grouped_mm, batched_mm
    growth         all of ours as G, P and R grow         against the cost formulas

These run on a CPU with one thread and random weights. Each ends with one table and one JSON line. Each fails if the
sides disagree.

    compile        registers and memory of every Triton kernel on a GPU, without that GPU
    precision      bfloat16, fused AdamW                  against float32, foreach AdamW (no JSON line)
    gpu            the kernels and what is built on them  against a GPU's limits and torch's best (bench/gpu.sh)
"""
