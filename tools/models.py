"""The released models that presets name: the part of each config.json that decides what is computed."""

# The comments give the number of parameters on the model card. All: silu, no sliding window, no dropout.
QWEN = dict(hidden_act="silu", initializer_range=0.02, use_sliding_window=False, torch_dtype="bfloat16")
QWEN2 = dict(QWEN, architectures=["Qwen2ForCausalLM"], model_type="qwen2", rope_theta=1000000.0)
MODELS = {
    "r1-distill-qwen-14b": dict(                    # 14.77 billion; Qwen2.5-14B's, with a longer window
        QWEN2, vocab_size=152064, hidden_size=5120, intermediate_size=13824, num_hidden_layers=48,
        num_attention_heads=40, num_key_value_heads=8, rms_norm_eps=1e-5, tie_word_embeddings=False,
        max_position_embeddings=131072),
    "r1-distill-qwen-32b": dict(                    # 32.76 billion; Qwen2.5-32B's, with a longer window
        QWEN2, vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8, rms_norm_eps=1e-5, tie_word_embeddings=False,
        max_position_embeddings=131072),
    "qwen2.5-1.5b": dict(                           # 1.54 billion
        QWEN2, vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=True,
        max_position_embeddings=32768),
    "qwen2.5-7b": dict(                             # 7.62 billion
        QWEN2, vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, rms_norm_eps=1e-6, tie_word_embeddings=False,
        max_position_embeddings=32768),
    "qwen3-4b": dict(                               # 4.02 billion
        QWEN, architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False, vocab_size=151936,
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_theta=5000000, max_position_embeddings=262144),
    "qwen3-30b-a3b": dict(                          # 30.53 billion, 3.3 of them at work on a token
        QWEN, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", attention_bias=False, vocab_size=151936,
        hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], router_aux_loss_coef=0.001,
        output_router_logits=False, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        rms_norm_eps=1e-6, tie_word_embeddings=False, rope_theta=10000000, max_position_embeddings=262144)}

# For inputs of 32,769 to 4 x 32,768 = 131,072 tokens, the READMEs of QwenLong-L1 ("Processing Long Documents") and of
# Qwen2.5 add this to config.json as "rope_scaling".
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
