"""Qwen2, Qwen3 and its mixtures of experts, with one door: `model(ids, positions, attend, head)`.

Legend: T packed tokens, C hidden size, H query heads, K key-value heads, D head width, V vocabulary, L layers; in a
mixture E experts of intermediate size I, k of them for each token.
Sequences are packed into one row of T tokens; `attend` (attention.py) says who attends to whom. Modules carry the names
of Hugging Face's checkpoints, so a state dict is the file (experts apart: see weights.py).

Rope's angles, the mean square of norms, softmax and losses are computed in at least float32 (bf16 is raised, float64
stays); products are in the model's dtype, as in transformers.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from kernels import grouped_linear, is_one_call
from torch import nn
from torch.utils.checkpoint import checkpoint

from . import parallel
from .attention import Packed
from .pretrained import weights
from .pretrained.config import ModelConfig, Yarn

Tensor = torch.Tensor


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension; in bfloat16 rounded once, at the end."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_tables(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, yarn: Yarn | None = None
                ) -> tuple[Tensor, Tensor]:
    """cos and sin (T, 1, D) of each position, computed in float32 at least, both halves of the head alike. Frequency i
    is theta^(-2i / D), which YaRN lowers (`stretched`); its attention factor is on both tables."""
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.int64)
    wide = torch.promote_types(dtype, torch.float32)
    periods = theta ** (steps.to(wide) / head_dim)                             # (D / 2,), in tokens, over 2 pi
    inv_freq = stretched(periods, theta, yarn) if yarn else 1.0 / periods
    angles = torch.outer(positions.to(wide), inv_freq)                         # (T, D / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]                      # (T, 1, D)
    scale = yarn.attention_factor if yarn else 1.0
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def stretched(periods: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """YaRN's frequencies (arXiv 2309.00071, section 3.2): (D / 2,) -> (D / 2,). A frequency that turned more than
    beta_fast times within the original window stays, one that turned less than beta_slow times is divided by the
    factor, and between them runs a ramp."""
    def place(turns: float) -> float:                          # of the frequency that turned so often, as a real number
        return len(periods) * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)

    low, high = place(yarn.beta_fast), place(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(periods) - 1)
    places = torch.arange(len(periods), device=periods.device, dtype=periods.dtype)
    keep = 1 - ((places - low) / (high - low or 0.001)).clamp(0, 1)            # the share that stays
    return 1.0 / (yarn.factor * periods) * (1 - keep) + 1.0 / periods * keep


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


class Experts(nn.Module):
    """All experts of a layer, each a SwiGLU: names and shapes of transformers 5."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(c.num_experts, 2 * c.moe_intermediate_size, c.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(c.num_experts, c.hidden_size, c.moe_intermediate_size))

    def forward(self, x, shares, ends):
        """x (S, C) sorted by expert, shares (S, 1) of the outputs, ends (E,): where each expert's rows end -> (S, C). A
        share goes in before the last product, which is linear: what comes out of it need not be kept."""
        gate, up = grouped_linear(x, self.gate_up_proj, ends).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate) * up * shares, self.down_proj, ends)


class Dispatch(torch.autograd.Function):
    """x (T, C) -> (T k, C): each token's row once for each of its pairs, in the pairs' `order` (T k,) by expert. place
    (T, k): where in that order a token's pairs are. torch's own gradient of an index adds up in whatever order comes,
    on a GPU; this one is faster, and the same bits every time."""

    @staticmethod
    def forward(ctx, x, order, place):
        ctx.save_for_backward(order, place)
        return x.index_select(0, order // place.shape[1])

    @staticmethod
    def backward(ctx, grad):
        return Combine.apply(grad, *ctx.saved_tensors), None, None


class Combine(torch.autograd.Function):
    """The transpose of Dispatch: rows (T k, C) -> (T, C), each token's pairs summed."""

    @staticmethod
    def forward(ctx, rows, order, place):
        ctx.save_for_backward(order, place)
        return F.embedding_bag(place, rows, mode="sum")

    @staticmethod
    def backward(ctx, grad):
        return Dispatch.apply(grad, *ctx.saved_tensors), None, None


class Mixture(nn.Module):
    """In place of an MLP: each token goes through the k experts that the router likes best (Qwen3-MoE).

    load (E,): how often each expert was chosen in passes with a gradient, until someone asks (Qwen.take_loads). A pass
    of a lone token does not count: ranks that have nothing to do make such ones (group_pass). Under checkpointing
    every choice counts twice, which shares do not see."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gate, self.experts = Linear(c.hidden_size, c.num_experts, bias=False), Experts(c)
        self.k, self.normalised, self.load = c.num_experts_per_tok, c.norm_topk_prob, None

    def forward(self, x):
        shares, chosen = self.gate(x).softmax(-1, dtype=torch.promote_types(x.dtype, torch.float32)).topk(self.k)
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)                     # (T, k)
        by_expert, order = chosen.flatten().sort(stable=True)                  # (T k): pairs of token and expert
        ends = torch.searchsorted(by_expert, torch.arange(self.gate.out_features, device=x.device), right=True)
        if torch.is_grad_enabled() and len(x) > 1:
            load = torch.diff(ends, prepend=ends.new_zeros(1))
            self.load = load if self.load is None else self.load + load
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device)).view_as(chosen)
        rows, shares = Dispatch.apply(x, order, place), shares.flatten().gather(0, order)[:, None].to(x.dtype)
        return Combine.apply(self.experts(rows, shares, ends), order, place)


class Layer(nn.Module):
    def __init__(self, c: ModelConfig, number: int):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Mixture(c) if c.is_mixture(number) else MLP(c)

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
        self.layers = nn.ModuleList(Layer(c, number) for number in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Qwen(nn.Module):
    """A causal language model over packed sequences. Build with from_pretrained, or Qwen.random(config, seed).

    checkpointing: keep only each layer's input (and its keys and values) for the backward pass, and compute the rest
    again there: less memory, a third more time, the same numbers.
    fused_experts: save_pretrained writes a layer's experts as they lie in memory, not file by expert as they are
    released; as they were read, unless told."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.checkpointing, self.fused_experts = config, False, False
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

    @property
    def waits(self) -> bool:
        """Whether a pass on a GPU needs numbers from it midway (how many tokens chose each expert), so that no CUDA
        graph can record it."""
        return self.config.num_experts > 0 and not is_one_call(
            self.device, self.dtype, self.config.hidden_size, self.config.moe_intermediate_size)

    def forward(self, ids: Tensor, positions: Tensor, attend: Callable, head: Callable | None = None):
        """ids, positions (T,) -> head(hidden (T, C), lm_head.weight (V, C)) or None; per layer (k, v), each (T, K, D).

        Everything goes through this door: training, prefill, decode. What a later pass needs is returned. Without a
        head nobody asks for more than keys and values, so the last layer computes nothing else."""
        x = self.model.embed_tokens(ids)                                       # (T, C)
        c = self.config
        cos, sin = rope_tables(positions, c.head_dim, c.rope_theta, x.dtype, c.yarn)
        keys_values = []
        for number, layer in enumerate(self.model.layers):
            if head is None and number == c.num_hidden_layers - 1:
                x, k, v = layer(x, cos, sin, None, number)
            elif self.checkpointing and torch.is_grad_enabled():
                x, k, v = checkpoint(layer, x, cos, sin, attend, number, use_reentrant=False, preserve_rng_state=False)
            else:
                x, k, v = layer(x, cos, sin, attend, number)
            keys_values.append((k, v))
        return (head(self.model.norm(x), self.lm_head.weight) if head else None), keys_values

    def logits(self, input_ids: Tensor) -> Tensor:
        """(T,) or (B, T) -> (..., V): the plain causal forward, the oracle of every fast path. Raises
        ModelError (architecture.py) beyond the model's window."""
        self.config.require_window(input_ids.shape[-1])
        rows = input_ids.reshape(-1, input_ids.shape[-1])
        B, T = rows.shape
        positions = torch.arange(T, device=rows.device).repeat(B)
        out, _ = self(rows.flatten(), positions, Packed(range(0, B * T + 1, T)), head=F.linear)
        return out.view(*input_ids.shape, -1)

    def take_loads(self) -> list[list[int]]:
        """For each mixture layer how many of the tokens trained on since the last call chose each expert, (E,); nothing
        of a dense model, or if there was no such token. See Mixture."""
        layers = [module for module in self.modules() if isinstance(module, Mixture)]
        loads = [[0] * self.config.num_experts if layer.load is None else layer.load.tolist() for layer in layers]
        for layer in layers:
            layer.load = None
        return loads if any(map(any, loads)) else []

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
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.initializer_range, generator=generator)
        return model

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu", prepare: Callable | None = None, check_finite: bool = False
                        ) -> "Qwen":
        """A Hugging Face directory (sharded or not, tied or not). Raises architecture.ModelError with one sentence. For
        `prepare` see `empty`; of a model that it split each rank reads its own rows. check_finite: refuse NaN."""
        config = weights.read_config(directory)
        parallel.require_device(device)
        optional = ("lm_head.weight",) if config.tie_word_embeddings else ()
        with torch.device("meta"):
            shapes = {name: parameter.shape for name, parameter in cls(config).named_parameters()}
        found = weights.find_tensors(directory, shapes, optional)              # before memory is taken for them
        model = cls.empty(config, dtype, device, prepare)
        parameters = dict(model.named_parameters())                            # tied weights appear once
        rows = {name: parallel.rows(parameter) for name, parameter in parameters.items()
                if parallel.is_sharded(parameter)}
        with torch.no_grad():
            for name, tensor in weights.read_tensors(found, rows, check_finite):
                parallel.local(parameters[name]).copy_(tensor)
        model.fused_experts = found.fused_experts
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """What transformers' AutoModelForCausalLM loads: config.json and safetensors; a tied head is not repeated. All
        ranks call it, the first one writes."""
        weights.write(directory, dict(self.named_parameters()), self.config, fetch=parallel.full,
                      writes=parallel.rank() == 0, fused_experts=self.fused_experts)
