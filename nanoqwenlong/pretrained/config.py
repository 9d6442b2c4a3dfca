"""What a config.json says about a model: its sizes, its rope, its experts. Models we cannot compute are refused."""

import copy
import json
import math
import reprlib
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import ModelError

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
                 "llama": "LlamaForCausalLM"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "max_position_embeddings")
LARGEST = 10**8                        # of a size: numbers of any length are valid JSON
MIXTURE_SIZES = ("num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
SCALED = {"yarn": ("beta_slow", "beta_fast"), "llama3": ("low_freq_factor", "high_freq_factor")}  # besides plain rope
YARN_OPTIONS = ("beta_slow", "beta_fast", "attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Scaling:
    """How rope is stretched beyond the window a model was first trained with (rope.scaled_frequencies)."""
    rope_type: str                      # yarn (arXiv 2309.00071), or llama3
    factor: float
    original_max_position_embeddings: int
    slow: float                         # turns within that window below which a frequency is divided by the factor
    fast: float                         # turns from which it stays as it is
    attention_factor: float             # on cos and sin. YaRN: 0.1 ln(factor) + 1 unless it is given. llama3: 1
    truncate: bool                      # YaRN: whether the ramp between the two begins and ends at whole frequencies

    @staticmethod
    def from_json(rope: dict, where: str) -> "Scaling":
        """Reads rope_parameters or rope_scaling, with transformers' defaults. Raises ModelError."""
        rope_type = rope.get("rope_type") or rope["type"]
        is_yarn, names = rope_type == "yarn", SCALED[rope_type]
        options = YARN_OPTIONS if is_yarn else ()
        for name in dict.fromkeys(("factor", "original_max_position_embeddings", *names, *options)):
            value, lowest = rope.get(name), int(name in ("factor", "original_max_position_embeddings"))
            require(value is None and name in options or is_number(value) and value >= lowest, where,
                    f"{rope_type} rope's {name} is {reprlib.repr(value)}; it must be a number of at least {lowest}")
        factor, original = rope["factor"], rope["original_max_position_embeddings"]
        slow, fast = map(rope.get, names)
        if is_yarn:
            slow, fast = slow or 1, fast or 32
        truncate = rope.get("truncate", True)
        require(slow <= fast, where, f"{rope_type} rope's {names[1]} ({fast}) is less than {names[0]} ({slow})")
        require(isinstance(truncate, bool), where, f"YaRN's truncate is {truncate!r}; it must be true or false")

        def mscale(m: float) -> float:
            return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
        m, m_all = rope.get("mscale"), rope.get("mscale_all_dim")
        attention_factor = rope.get("attention_factor") if is_yarn else 1.0
        if attention_factor is None:
            attention_factor = mscale(m) / mscale(m_all) if m and m_all else mscale(1)
        return Scaling(rope_type, factor, original, slow, fast, attention_factor, truncate)


@dataclass(frozen=True)
class ModelConfig:
    """The part of config.json that decides what is computed, under Hugging Face's names."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    scaling: Scaling | None             # None: plain rope
    max_position_embeddings: int
    tie_word_embeddings: bool
    initializer_range: float
    qkv_bias: bool                      # Qwen2. Others, if attention_bias is set
    o_bias: bool
    qk_norm: bool                       # Qwen3
    num_experts: int                    # 0: a dense model
    num_experts_per_tok: int            # that a token goes through
    moe_intermediate_size: int          # of one expert
    norm_topk_prob: bool                # whether the chosen experts' shares are made to add up to 1
    dense_layers: tuple[int, ...]       # of a mixture: layers with an ordinary MLP
    source: dict = field(repr=False)    # config.json as it was read; written back as it is, but for the dtype

    @staticmethod
    def from_json(source: dict, where: str) -> "ModelConfig":
        """Raises ModelError, which begins with `where`, for a model that our forward would not compute exactly."""
        hf = normalised(source, where)
        kind = source["model_type"]
        rope = hf.rope_parameters or {}
        num_experts = hf.num_experts if kind == "qwen3_moe" else 0
        require(isinstance(num_experts, int) and 0 <= num_experts <= LARGEST, where,       # transformers does not check
                f"num_experts is {reprlib.repr(num_experts)}; it must be a whole number, 0 for a dense model")
        mixture = num_experts > 0
        for name in SIZES + MIXTURE_SIZES * mixture:
            size = getattr(hf, name)
            require(1 <= size <= LARGEST, where, f"{name} is {reprlib.repr(size)}; it must be 1 to {LARGEST:,}")
        H, K = hf.num_attention_heads, hf.num_key_value_heads
        head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // H
        k = hf.num_experts_per_tok if mixture else 0
        theta, eps = rope.get("rope_theta"), hf.rms_norm_eps
        rope_type, rotary_share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1)
        for supported, sentence in (
            (rope_type in ("default", *SCALED),
             f"rope type {rope_type!r} is not supported; default, {' and '.join(SCALED)} are"),
            (rotary_share == 1, f"partial_rotary_factor is {rotary_share!r}; only 1 works"),
            (is_number(theta) and theta > 0, f"rope_theta is {theta!r}; it must be a positive number"),
            (is_number(eps) and eps > 0, f"rms_norm_eps is {eps!r}; it must be a positive number"),
            (not source.get("quantization_config"), "the weights are quantised (quantization_config); give plain ones"),
            (not getattr(hf, "use_sliding_window", False), "use_sliding_window is true; only full attention works"),
            (not getattr(hf, "mlp_bias", False), "mlp_bias is true; only MLPs without biases work"),
            (not source.get("rope_interleaved"), "rope_interleaved is true; only rope by halves works"),
            (not getattr(hf, "attention_dropout", 0), "attention_dropout is set; only 0 works"),
            (hf.hidden_act == "silu", f"hidden_act is {hf.hidden_act!r}; only 'silu' is supported"),
            (H % K == 0, f"num_attention_heads ({H}) is not a multiple of num_key_value_heads ({K})"),
            (k <= num_experts, f"num_experts_per_tok ({k}) is more than num_experts ({num_experts})"),
            (isinstance(head_dim, int) and 2 <= head_dim <= LARGEST and head_dim % 2 == 0,     # rope turns pairs
             f"head_dim is {reprlib.repr(head_dim)}; it must be an even whole number of at least 2"),
        ):
            require(supported, where, sentence)
        attention_bias = bool(getattr(hf, "attention_bias", False))
        dense_layers = tuple(i for i in range(hf.num_hidden_layers) if mixture
                             and (i in hf.mlp_only_layers or (i + 1) % hf.decoder_sparse_step))
        return ModelConfig(
            **{name: getattr(hf, name) for name in SIZES},
            head_dim=head_dim, rms_norm_eps=eps, rope_theta=float(theta), initializer_range=hf.initializer_range,
            scaling=Scaling.from_json(rope, where) if rope_type in SCALED else None,
            tie_word_embeddings=bool(hf.tie_word_embeddings), qkv_bias=kind == "qwen2" or attention_bias,
            o_bias=kind != "qwen2" and attention_bias, qk_norm=kind.startswith("qwen3"),
            num_experts=num_experts, num_experts_per_tok=k,
            moe_intermediate_size=hf.moe_intermediate_size if mixture else 0,
            norm_topk_prob=mixture and bool(hf.norm_topk_prob), dense_layers=dense_layers, source=source)

    def is_mixture(self, layer: int) -> bool:
        return self.num_experts > 0 and layer not in self.dense_layers

    @property
    def window(self) -> int:
        """Tokens of the longest input: what the model was trained with, or what YaRN stretches that to."""
        yarn = self.scaling if self.scaling and self.scaling.rope_type == "yarn" else None
        stretched = int(yarn.factor * yarn.original_max_position_embeddings) if yarn else 0
        return max(self.max_position_embeddings, stretched)

    def require_window(self, tokens: int) -> None:
        """Raises ModelError for inputs longer than the window. It names the line of config.json that admits them."""
        if tokens <= self.window:
            return
        sentence = (f"inputs of {tokens} tokens are longer than the model's window of {self.window}: give shorter ones "
                    "(--max-prompt-tokens, --max-new-tokens)")
        if self.scaling and self.scaling.rope_type == "llama3":                # YaRN would replace what was trained
            raise ModelError(sentence)
        original = (self.scaling.original_max_position_embeddings if self.scaling
                    else 2 ** int(math.log2(self.max_position_embeddings)))    # Qwen's 40,960 have room for answers
        factor = float(-(-tokens // original))
        rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        new = "rope_parameters" in self.source                                 # transformers 5; 4 has rope_scaling
        line = {"rope_parameters": {"rope_theta": self.rope_theta, **rope}} if new else {"rope_scaling": rope}
        raise ModelError(f"{sentence}, or stretch the window by YaRN: in the model's config.json, "
                         f"{json.dumps(line)[1:-1]}")


def require(condition, *sentence: str) -> None:
    """Raises ModelError with the parts of this sentence, joined by colons, unless the condition holds."""
    if not condition:
        raise ModelError(": ".join(sentence))


def normalised(source: dict, where: str):
    """transformers' config of this JSON, in one spelling. Raises ModelError for what it refuses or stumbles over."""
    kind = source.get("model_type")
    require(isinstance(kind, str) and kind in ARCHITECTURES, where,
            f"model_type is {kind!r}; this project runs {', '.join(ARCHITECTURES)}")
    named, right = source.get("architectures"), ARCHITECTURES[kind]
    require(not named or named == [right], where, f"architectures is {named}; only {right} can be trained here")
    for names in (("rope_parameters", "rope_scaling"), ("num_local_experts", "num_experts")):
        require(not contradict(*map(source.get, names)), where,
                f"{' and '.join(names)} are two spellings of one setting, and differ; keep one")
    layers, rope = source.get("num_hidden_layers"), source.get("rope_parameters") or source.get("rope_scaling")
    require(not isinstance(layers, int) or layers <= 10_000, where,
            f"num_hidden_layers is {reprlib.repr(layers)}; it can be 10,000 at most")
    if isinstance(rope, dict):
        require(not any(isinstance(value, dict) for value in rope.values()), where,
                "its rope differs between kinds of layers; only one for all is supported")
        if (rope.get("rope_type") or rope.get("type")) in tuple(SCALED):
            Scaling.from_json({"original_max_position_embeddings": 1, **rope}, where)
    from transformers import AutoConfig  # imported here: it takes seconds, and --help should not
    settings = copy.deepcopy({key: value for key, value in source.items() if key != "auto_map"})       # it edits them
    with quiet_transformers(f"{where}: transformers refuses it"):
        return AutoConfig.for_model(**settings)


@contextmanager
def quiet_transformers(sentence: str):
    """Inside, every exception becomes a ModelError that begins with this sentence. transformers logs no warnings: it
    warns even about the YaRN factors that Qwen recommends, and its log handler may write to a closed stderr."""
    from transformers.utils import logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except Exception as error:                   # transformers, tokenizers and Jinja raise many kinds
        raise ModelError(f"{sentence}: {' '.join(str(error).split())}") from None
    finally:
        logging.set_verbosity(verbosity)


def contradict(one, other) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return any(one[key] != other[key] for key in one.keys() & other.keys())
    return None not in (one, other) and one != other


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
