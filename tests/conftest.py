"""What the tests share: one thread, small random models of transformers, the toy model and its tokenizer."""

from pathlib import Path

import pytest
import torch

from nanoqwenlong import toy

torch.set_num_threads(1)
SMALL = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
             rms_norm_eps=1e-5, initializer_range=0.1, tie_word_embeddings=False)


def random_hf(kind: str, seed: int = 0, **settings):
    """transformers' own Qwen2 or Qwen3 ("qwen2", "qwen3") with random weights, norms and biases included: with norms of
    one and biases of zero several bugs would hide. `settings` replace those of SMALL."""
    from transformers import AutoConfig, AutoModelForCausalLM
    heads = {"head_dim": 16} if kind == "qwen3" else {}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SMALL, **heads, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def toy_pair():
    """toy.new_model(0): the tiny model and its tokenizer. Do not change the weights."""
    return toy.new_model(0)


@pytest.fixture(scope="session")
def toy_directory(toy_pair, tmp_path_factory) -> Path:
    """The same as a model directory. Copy it before you change a file."""
    directory = tmp_path_factory.mktemp("toy")
    for part in toy_pair:
        part.save_pretrained(directory)
    return directory
