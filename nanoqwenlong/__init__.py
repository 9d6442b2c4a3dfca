"""nanoqwenlong: long-context reasoning RL the way QwenLong-L1 does it. Start reading at train_rl.py."""
