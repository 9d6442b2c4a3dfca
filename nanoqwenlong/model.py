"""Qwen2, Qwen3 and Llama, with one door: `model(ids, positions, attend, head)`.

Sequences are packed into one row of tokens. `attend` decides who attends to whom (attention.py). Modules have the names
of Hugging Face's checkpoints. Some layers may be mixtures of experts (pretrained/mixture.py). As in transformers,
products are in the model's dtype. Norms, rope's angles, softmax and losses are in float32 at least.

Legend: T packed tokens, C hidden size, H query heads, K key-value heads, D head width, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn import Embedding, Identity, Linear, Module, ModuleList, RMSNorm
from torch.utils.checkpoint import checkpoint

from .attention import Packed
from .pretrained import weights
from .pretrained.config import ModelConfig
from .pretrained.mixture import Mixture
from .pretrained.rope import rope_tables, rotate

Tensor = torch.Tensor


class Qwen(Module):
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
        self.compute_device = None
        with torch.device("meta"):
            self.model = Body(config)
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def forward(self, ids, positions, attend, head=None):
        """ids and positions (T,) -> head(hidden (T, C), lm_head.weight (V, C)), and per layer (k, v), each (T, K, D).

        Without a head the result is None, and the last layer computes nothing but its keys and values. Training,
        prefill and decoding all come through this door, because FSDP gathers weights only around a module's forward."""
        c = self.config
        x = self.model.embed_tokens(ids)                                       # (T, C)
        rope = rope_tables(positions, c.head_dim, c.rope_theta, x.dtype, c.scaling)
        keys_values = []
        last = self.model.layers[-1]
        for layer in self.model.layers:
            if head is None and layer is last:
                x, k, v = layer(x, rope, attend=None)
            elif self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(layer, x, rope, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x, k, v = layer(x, rope, attend)
            keys_values.append((k, v))
        if head is None:
            return None, keys_values
        hidden = self.model.norm(x)
        return head(hidden, self.lm_head.weight), keys_values

    def logits(self, input_ids: Tensor) -> Tensor:
        """(T,) or (B, T) -> (T, V) or (B, T, V): the plain causal forward, which all fast paths are tested against.
        Raises ModelError if T is beyond the model's window."""
        T = input_ids.shape[-1]
        self.config.require_window(T)
        ids = input_ids.flatten()                                              # (B T,)
        B = len(ids) // T
        positions = torch.arange(T, device=ids.device).repeat(B)
        attend = Packed(range(0, B * T + 1, T))
        logits, _ = self(ids, positions, attend, F.linear)                     # (B T, V)
        return logits.view(*input_ids.shape, -1)

    @property
    def device(self) -> torch.device:
        return self.compute_device or self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype=torch.float32, device="cpu",
                        prepare: Callable | None = None, check_finite=False) -> "Qwen":
        """The model of a Hugging Face directory. prepare(model) is called while weights take no memory. If it splits
        them over ranks (parallel.shard), each rank reads its own rows. Raises FileNotFoundError, and ModelError for a
        directory that does not fit, with check_finite also for NaN and infinity."""
        model = cls(weights.read_config(directory))
        weights.read_into(model, directory, dtype, device, prepare, check_finite)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes a directory that transformers' AutoModelForCausalLM loads. All ranks call this, the first writes."""
        tensors = dict(self.named_parameters())
        weights.write(directory, tensors, self.config, fused_experts=self.fused_experts)

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


class Body(Module):
    """Everything below the head. Checkpoints call it `model.`."""

    def __init__(self, c):
        super().__init__()
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = ModuleList()
        for number in range(c.num_hidden_layers):
            self.layers.append(Layer(c, number))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Layer(Module):
    """x (T, C) -> x (T, C), and the layer's keys and values (T, K, D). Without `attend`: None, keys and values."""

    def __init__(self, c, number):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, number)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mixture(c) if c.is_mixture(number) else MLP(c)

    def forward(self, x, rope, attend):
        attended, k, v = self.self_attn(self.input_layernorm(x), rope, attend)
        if attended is None:
            return None, k, v
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, k, v


class Attention(Module):
    """Grouped-query attention: the projections around `attend`."""

    def __init__(self, c, number):
        super().__init__()
        C, D = c.hidden_size, c.head_dim
        q_size = c.num_attention_heads * D
        kv_size = c.num_key_value_heads * D
        self.number = number
        self.per_head = -1, D
        self.q_proj = Linear(C, q_size, bias=c.qkv_bias)
        self.k_proj = Linear(C, kv_size, bias=c.qkv_bias)
        self.v_proj = Linear(C, kv_size, bias=c.qkv_bias)
        self.o_proj = Linear(q_size, C, bias=c.o_bias)
        self.q_norm = RMSNorm(D, c.rms_norm_eps) if c.qk_norm else Identity()
        self.k_norm = RMSNorm(D, c.rms_norm_eps) if c.qk_norm else Identity()

    def forward(self, x, rope, attend):
        k = self.k_proj(x).unflatten(-1, self.per_head)                        # (T, K, D)
        v = self.v_proj(x).unflatten(-1, self.per_head)                        # (T, K, D)
        k = self.k_norm(k)
        k = rotate(k, *rope)
        if attend is None:
            return None, k, v
        q = self.q_proj(x).unflatten(-1, self.per_head)                        # (T, H, D)
        q = self.q_norm(q)
        q = rotate(q, *rope)
        attended = attend(self.number, q, k, v).flatten(1)                     # (T, H D)
        return self.o_proj(attended), k, v


class MLP(Module):
    """SwiGLU."""

    def __init__(self, c):
        super().__init__()
        C, intermediate = c.hidden_size, c.intermediate_size
        self.gate_proj = Linear(C, intermediate, bias=False)
        self.up_proj = Linear(C, intermediate, bias=False)
        self.down_proj = Linear(intermediate, C, bias=False)

    def forward(self, x):
        # One expression, because each name would keep a large tensor alive in the last product.
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
