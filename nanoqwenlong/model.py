"""Qwen2 and Qwen3, with one door: `model(ids, positions, attend, head)`.

Sequences are packed into one row of tokens. `attend` decides who attends to whom (attention.py). Modules have the names
of Hugging Face's checkpoints. Some layers may be mixtures of experts (pretrained/mixture.py).

As in transformers, products are in the model's dtype. Norms, rope's angles, softmax and losses are in float32 at least.

Legend: T packed tokens, C hidden size, H query heads, K key-value heads, D head width, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from kernels import is_one_call
from torch import nn
from torch.utils.checkpoint import checkpoint

from .attention import Packed
from .pretrained import mixture, weights
from .pretrained.config import ModelConfig
from .pretrained.rope import rope_tables, rotate

Tensor = torch.Tensor


class Qwen(nn.Module):
    """A causal language model, made by from_pretrained or Qwen.random. In `Qwen(config)` weights take no memory yet.

    checkpointing: keep only each layer's input, keys and values for the backward pass, and compute the rest again. It
    saves much memory, costs a third of an update's time, and changes no number.
    fused_experts: save_pretrained writes the experts of a layer as one tensor. Set to how they were read.
    compute_device: set if the weights lie elsewhere because they are offloaded."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        self.fused_experts = False
        self.compute_device: torch.device | None = None
        with torch.device("meta"):
            self.model = Body(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def forward(self, ids: Tensor, positions: Tensor, attend: Callable, head: Callable | None = None):
        """ids and positions (T,) -> head(hidden (T, C), lm_head.weight (V, C)), and per layer (k, v), each (T, K, D).

        Without a head the result is None, and the last layer computes nothing but its keys and values. Training,
        prefill and decoding all come through this door, because FSDP gathers weights only around a module's forward."""
        c = self.config
        x = self.model.embed_tokens(ids)                                       # (T, C)
        cos, sin = rope_tables(positions, c.head_dim, c.rope_theta, x.dtype, c.yarn)
        keys_values = []
        for number, layer in enumerate(self.model.layers):
            if head is None and number == c.num_hidden_layers - 1:
                x, k, v = layer(x, cos, sin, None, number)
            elif self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(
                    layer, x, cos, sin, attend, number,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x, k, v = layer(x, cos, sin, attend, number)
            keys_values.append((k, v))
        if head is None:
            return None, keys_values
        hidden = self.model.norm(x)
        return head(hidden, self.lm_head.weight), keys_values

    def logits(self, input_ids: Tensor) -> Tensor:
        """(T,) or (B, T) -> (T, V) or (B, T, V): the plain causal forward, which all fast paths are tested against.
        Raises ModelError if T is beyond the model's window."""
        self.config.require_window(input_ids.shape[-1])
        rows = input_ids.reshape(-1, input_ids.shape[-1])
        B, T = rows.shape
        positions = torch.arange(T, device=rows.device).repeat(B)
        attend = Packed(range(0, B * T + 1, T))
        logits, _ = self(rows.flatten(), positions, attend, head=F.linear)     # (B T, V)
        return logits.view(*input_ids.shape, -1)

    @property
    def device(self) -> torch.device:
        return self.compute_device or self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture a pass: not if it has to fetch how many tokens chose each expert."""
        c = self.config
        if c.num_experts == 0:
            return True
        return is_one_call(self.device, self.dtype, c.hidden_size, c.moe_intermediate_size)

    def take_loads(self) -> list[list[int]]:
        """How many tokens chose each expert since the last call, for each mixture layer."""
        return mixture.take_loads(self, self.config.num_experts)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        prepare: Callable | None = None,
        check_finite: bool = False,
    ) -> "Qwen":
        """The model of a Hugging Face directory. prepare(model) is called while weights take no memory. If it splits
        them over ranks (parallel.shard), each rank reads its own rows. Raises FileNotFoundError, and ModelError for a
        directory that does not fit, with check_finite also for NaN and infinity."""
        model = cls(weights.read_config(directory))
        weights.read_into(model, directory, dtype, device, prepare, check_finite)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that transformers' AutoModelForCausalLM loads. All ranks call this, the first writes."""
        weights.write(directory, dict(self.named_parameters()), self.config, fused_experts=self.fused_experts)

    @classmethod
    def random(cls, config: ModelConfig, seed: int) -> "Qwen":
        """A float32 model with transformers' first values, on the CPU (see weights.fill_random)."""
        model = weights.allocate(cls(config), torch.float32, "cpu")
        weights.fill_random(model, config.initializer_range, seed)
        return model

    def tie(self) -> None:
        """Lets the head share the embedding's matrix, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class Body(nn.Module):
    """Everything below the head. Checkpoints call it `model.`."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, number) for number in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)


class Layer(nn.Module):
    """x (T, C) -> x (T, C), and the layer's keys and values (T, K, D). Without `attend`: None, keys and values."""

    def __init__(self, c: ModelConfig, number: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = mixture.Mixture(c) if c.is_mixture(number) else MLP(c)

    def forward(self, x, cos, sin, attend, number):
        attended, k, v = self.self_attn(self.input_layernorm(x), cos, sin, attend, number)
        if attended is None:
            return None, k, v
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, k, v


class Attention(nn.Module):
    """Grouped-query attention: the projections around `attend`."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.head_dim = c.head_dim
        self.qk_norm = c.qk_norm
        q_size = c.num_attention_heads * c.head_dim
        kv_size = c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, q_size, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, kv_size, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, kv_size, bias=c.qkv_bias)
        self.o_proj = nn.Linear(q_size, c.hidden_size, bias=c.o_bias)
        if c.qk_norm:
            self.q_norm = nn.RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = nn.RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x, cos, sin, attend, number):
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, K, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, K, D)
        if self.qk_norm:
            k = self.k_norm(k)
        k = rotate(k, cos, sin)
        if attend is None:
            return None, k, v
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, H, D)
        if self.qk_norm:
            q = self.q_norm(q)
        q = rotate(q, cos, sin)
        attended = attend(number, q, k, v).flatten(1)                          # (T, H D)
        return self.o_proj(attended), k, v


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        # One expression, because each name would keep a large tensor alive in the last product.
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
