"""Random tiny Qwens for the tests: big enough to be wrong in every way, small enough for milliseconds."""

import torch

from nanoqwenlong.model import Qwen
from nanoqwenlong.pretrained.config import ModelConfig

VOCAB = 53


def tiny_config(kind: str = "qwen3", **changes) -> ModelConfig:
    """Two layers, hidden 32, four query heads on two key-value heads; of a mixture ("qwen3_moe") 5 experts, 2 for each
    token. "llama3" is a "llama" with Llama 3's rope, which leaves one of the four frequencies, lowers two and mixes
    one. The wide initialiser keeps the logits apart."""
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128}
    return ModelConfig.from_json({
        "model_type": "llama" if kind == "llama3" else kind, "vocab_size": VOCAB, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "initializer_range": 0.25, "tie_word_embeddings": False,
        **(experts if kind == "qwen3_moe" else {}), **({"rope_parameters": rope} if kind == "llama3" else {}),
        **changes}, "tiny")


def tiny_qwen(kind: str = "qwen3", dtype: torch.dtype = torch.float64, seed: int = 0, **changes) -> Qwen:
    """Norms and biases are random too: at 1 and 0 they would hide mistakes."""
    model, generator = Qwen.random(tiny_config(kind, **changes), seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return model.to(dtype)


def random_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
