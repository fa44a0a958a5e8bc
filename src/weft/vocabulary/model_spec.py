"""ModelSpec: what a Hugging Face ``config.json`` says about a decoder's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from weft.errors import ModelConfigError
from weft.vocabulary.dtypes import MODEL_DTYPES

Family = Literal["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"]

FAMILIES: Final[tuple[Family, ...]] = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3_moe",
)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary-embedding scaling: ``llama3`` (wavelength-dependent) or ``linear``."""

    kind: Literal["llama3", "linear"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of a decoder-only transformer.

    Sizes are counts of elements. ``num_experts`` is 0 for a dense model;
    ``sliding_window`` is the number of positions a token may look back, or None.
    """

    name: str
    family: Family = "llama"
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool = False
    dtype: str = "bfloat16"
    max_position: int = 131072
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    normalize_expert_weights: bool = True
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _POSITIVE and not (isinstance(value, int) and value > 0):
                raise ModelConfigError(
                    f"model {self.name}: {field.name} is {value!r}, must be a positive integer"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"model {self.name}: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelConfigError(
                f"model {self.name}: head_dim {self.head_dim} is odd; rotary embeddings need pairs"
            )
        if self.dtype not in MODEL_DTYPES:
            raise ModelConfigError(
                f"model {self.name}: dtype {self.dtype!r}; choose one of {', '.join(MODEL_DTYPES)}"
            )

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    @property
    def attention_parameters(self) -> int:
        """Elements of one layer's q, k, v and output projections (with biases and q/k norms)."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights = self.hidden_size * (2 * q_size + 2 * kv_size)
        biases = (q_size + 2 * kv_size) * self.qkv_bias + self.hidden_size * self.output_bias
        return weights + biases + 2 * self.head_dim * self.qk_norm

    @property
    def mlp_parameters(self) -> int:
        """Elements of one layer's feed-forward part (all experts and the router, if any)."""
        if not self.is_moe:
            return 3 * self.hidden_size * self.intermediate_size
        router = self.hidden_size * self.num_experts
        return router + 3 * self.hidden_size * self.expert_intermediate_size * self.num_experts

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Elements of the whole model; tied embeddings are counted once."""
        layer = self.attention_parameters + self.mlp_parameters + 2 * self.hidden_size
        heads = self.embedding_parameters * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + heads + self.hidden_size


_POSITIVE: Final = {
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position",
}


def spec_from_config(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Translate the content of a Hugging Face ``config.json``.

    Both spellings are read: ``torch_dtype``/``rope_theta``/``rope_scaling`` of older
    files and ``dtype``/``rope_parameters`` of transformers 5.

    Raises ModelConfigError for an unsupported family or feature and for missing fields.
    """
    reader = _ConfigReader(name, config)
    family = reader.family()
    num_heads = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    rope_theta, rope_scaling = reader.rope()
    reader.refuse_unsupported()
    return ModelSpec(
        name=name,
        family=family,
        num_layers=reader.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=reader.integer("num_key_value_heads", num_heads),
        head_dim=reader.integer("head_dim", hidden_size // max(num_heads, 1)),
        intermediate_size=reader.integer("intermediate_size"),
        vocab_size=reader.integer("vocab_size"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=reader.dtype(),
        max_position=reader.integer("max_position_embeddings", 131072),
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        qkv_bias=bool(config.get("attention_bias", False)) or family == "qwen2",
        output_bias=bool(config.get("attention_bias", False)),
        qk_norm=family in ("qwen3", "qwen3_moe"),
        sliding_window=reader.sliding_window(),
        eos_token_ids=reader.eos_token_ids(),
        **reader.experts(family),
    )


class _ConfigReader:
    """Typed access to a config.json, with errors that name the model and the field."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name, self.config = name, config

    def error(self, message: str) -> ModelConfigError:
        return ModelConfigError(f"model {self.name}: {message}")

    def family(self) -> Family:
        model_type = self.config.get("model_type")
        for family in FAMILIES:
            if family == model_type:
                return family
        raise self.error(
            f"model_type {model_type!r} is not supported; weft runs {', '.join(FAMILIES)}"
        )

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"config.json has no field {key!r}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"field {key!r} is {value!r}, must be an integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"field {key!r} is {value!r}, must be a number")
        return float(value)

    def dtype(self) -> str:
        value = self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16"
        if not isinstance(value, str):
            raise self.error(f"field 'dtype' is {value!r}, must be a string")
        return value.removeprefix("torch.")

    def rope(self) -> tuple[float, RopeScaling | None]:
        parameters = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(parameters, Mapping):
            raise self.error(f"field 'rope_scaling' is {parameters!r}, must be an object")
        theta = parameters.get("rope_theta", self.config.get("rope_theta", 10000.0))
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if not isinstance(theta, int | float):
            raise self.error(f"field 'rope_theta' is {theta!r}, must be a number")
        if kind == "default":
            return float(theta), None
        if kind not in ("llama3", "linear"):
            raise self.error(f"rope scaling {kind!r} is not supported; weft has llama3 and linear")
        scaling = _ConfigReader(self.name, parameters)
        if "factor" not in parameters:
            raise self.error("rope scaling has no field 'factor'")
        return float(theta), RopeScaling(
            kind=kind,
            factor=scaling.number("factor", 1.0),
            low_freq_factor=scaling.number("low_freq_factor", 1.0),
            high_freq_factor=scaling.number("high_freq_factor", 4.0),
            original_max_position=scaling.integer("original_max_position_embeddings", 8192),
        )

    def sliding_window(self) -> int | None:
        window = self.config.get("sliding_window")
        if window is None or not self.config.get("use_sliding_window", True):
            return None
        if "full_attention" in self.config.get("layer_types", ()):
            raise self.error("layers that mix full and sliding attention are not supported")
        return self.integer("sliding_window")

    def eos_token_ids(self) -> tuple[int, ...]:
        value = self.config.get("eos_token_id")
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) for item in values):
            raise self.error(f"field 'eos_token_id' is {value!r}, must be an integer or a list")
        return tuple(values)

    def experts(self, family: Family) -> dict[str, Any]:
        if family == "mixtral":
            return {
                "num_experts": self.integer("num_local_experts"),
                "experts_per_token": self.integer("num_experts_per_tok"),
                "expert_intermediate_size": self.integer("intermediate_size"),
            }
        if family == "qwen3_moe":
            if self.config.get("mlp_only_layers") or self.config.get("decoder_sparse_step", 1) != 1:
                raise self.error("models that mix dense and expert layers are not supported")
            return {
                "num_experts": self.integer("num_experts", self.config.get("num_local_experts")),
                "experts_per_token": self.integer("num_experts_per_tok"),
                "expert_intermediate_size": self.integer("moe_intermediate_size"),
                "normalize_expert_weights": bool(self.config.get("norm_topk_prob", True)),
            }
        return {}

    def refuse_unsupported(self) -> None:
        if self.config.get("hidden_act", "silu") not in ("silu", "swish"):
            raise self.error(f"hidden_act {self.config['hidden_act']!r} is not supported (silu is)")
        if self.config.get("mlp_bias"):
            raise self.error("mlp_bias is not supported")
        if self.config.get("quantization_config"):
            raise self.error("quantized checkpoints are not supported; use the 16-bit weights")
