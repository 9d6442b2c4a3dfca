"""Qwen2 and Qwen3 in one file, with one door: `model(ids, positions, attend, head)`.

Legend: T packed tokens, C hidden size, H query heads, K key-value heads, D head width, V vocabulary, L layers.
Sequences are packed into one row of T tokens; `attend` (attention.py) says who attends to whom. Modules carry the names
of Hugging Face's checkpoints, so a state dict is the file.

Rope's angles, the mean square of norms, softmax and losses are computed in at least float32 (bf16 is raised, float64
stays); products are in the model's dtype, as in transformers.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import parallel, weights
from .attention import Packed
from .weights import ModelConfig

Tensor = torch.Tensor


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension; in bfloat16 rounded once, at the end."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, D) of each position, computed in float32 at least; frequency i is theta^(-2i / D), both halves
    of the head alike."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64)
    wide = torch.promote_types(dtype, torch.float32)
    inv_freq = 1.0 / theta ** (steps.to(wide) / head_dim)                      # (D / 2,)
    angles = torch.outer(positions.to(wide), inv_freq)                         # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]                      # (T, 1, D)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x (T, heads, D), in Hugging Face's half-split layout."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Linear(nn.Linear):
    """Made without first values, which would cost seconds and be thrown away: a model is read from files, or filled by
    Qwen.random."""

    def reset_parameters(self):
        pass


class Embedding(nn.Embedding):
    """The same."""

    reset_parameters = Linear.reset_parameters


class Attention(nn.Module):
    """Grouped-query attention. Without `attend` only keys and values are wanted."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.o_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps), RMSNorm(c.head_dim, c.rms_norm_eps)
        self.head_dim, self.qk_norm = c.head_dim, c.qk_norm

    def forward(self, x, cos, sin, attend, layer):
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, K, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, K, D)
        k = rotate(self.k_norm(k) if self.qk_norm else k, cos, sin)
        if attend is None:
            return None, k, v
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))                  # (T, H, D)
        q = rotate(self.q_norm(q) if self.qk_norm else q, cos, sin)
        return self.o_proj(attend(layer, q, k, v).flatten(1)), k, v


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)

    def forward(self, x, cos, sin, attend, layer):
        mixed, k, v = self.self_attn(self.input_layernorm(x), cos, sin, attend, layer)
        if mixed is None:
            return None, k, v
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Body(nn.Module):
    """Everything below the head. A module of its own only because checkpoints call it `model.`."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Qwen(nn.Module):
    """A causal language model over packed sequences. Build with from_pretrained, or Qwen.random(config, seed).

    checkpointing: keep only each layer's input (and its keys and values) for the backward pass, and compute the rest
    again there: less memory, a third more time, the same numbers."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.compute_device: torch.device | None = None        # where it is not that of the weights: they are offloaded
        self.model = Body(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return self.compute_device or self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def forward(self, ids: Tensor, positions: Tensor, attend: Callable, head: Callable | None = None):
        """ids, positions (T,) -> head(hidden (T, C), lm_head.weight (V, C)) or None; per layer (k, v), each (T, K, D).

        Everything goes through this door: training, prefill, decode. What a later pass needs is returned. Without a
        head nobody asks for more than keys and values, so the last layer computes nothing else."""
        x = self.model.embed_tokens(ids)                                       # (T, C)
        cos, sin = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
        keys_values = []
        for number, layer in enumerate(self.model.layers):
            if head is None and number == self.config.num_hidden_layers - 1:
                x, k, v = layer(x, cos, sin, None, number)
            elif self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(layer, x, cos, sin, attend, number, use_reentrant=False, preserve_rng_state=False)
            else:
                x, k, v = layer(x, cos, sin, attend, number)
            keys_values.append((k, v))
        return (head(self.model.norm(x), self.lm_head.weight) if head else None), keys_values

    def logits(self, input_ids: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., V): the plain causal forward, the oracle of every fast path."""
        rows = input_ids.reshape(-1, input_ids.shape[-1])
        B, T = rows.shape
        positions = torch.arange(T, device=rows.device).repeat(B)
        out, _ = self(rows.flatten(), positions, Packed(range(0, B * T + 1, T)), head=F.linear)
        return out.view(*input_ids.shape, -1)

    @classmethod
    def empty(cls, config: ModelConfig, dtype: torch.dtype, device: str | torch.device, prepare: Callable | None = None
              ) -> "Qwen":
        """Memory for the weights, yet to be filled, made where it is used: there is never a second copy. `prepare` gets
        the model while it takes no memory: shard(model) of parallel.py, say."""
        with torch.device("meta"):
            model = cls(config)
        model = model.to(dtype)
        if prepare:
            prepare(model)
        model = model.to_empty(device="cpu" if model.compute_device else device)
        if config.tie_word_embeddings:                                         # to_empty made two tensors of one
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    @classmethod
    def random(cls, config: ModelConfig, seed: int) -> "Qwen":
        """Matrices from N(0, initializer_range^2), norms 1, biases 0, as transformers initialises."""
        model, generator = cls(config), torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
        return model

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu", prepare: Callable | None = None, check_finite: bool = False
                        ) -> "Qwen":
        """A Hugging Face directory (sharded or not, tied or not). Raises weights.ModelError with one sentence. For
        `prepare` see `empty`; of a model that it split each rank reads its own rows. check_finite: refuse NaN."""
        config = weights.read_config(directory)
        parallel.require_device(device)
        model = cls.empty(config, dtype, device, prepare)
        parameters = dict(model.named_parameters())                            # tied weights appear once
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        rows = {name: parallel.rows(parameter) for name, parameter in parameters.items()
                if parallel.is_sharded(parameter)}
        optional = ("lm_head.weight",) if config.tie_word_embeddings else ()
        with torch.no_grad():
            for name, tensor in weights.read_tensors(directory, shapes, optional, rows, check_finite):
                parallel.local(parameters[name]).copy_(tensor)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """What transformers' AutoModelForCausalLM loads: config.json and safetensors; a tied head is not repeated. All
        ranks call it, the first one writes."""
        weights.write(directory, dict(self.named_parameters()), self.config, fetch=parallel.full,
                      writes=parallel.rank() == 0)
