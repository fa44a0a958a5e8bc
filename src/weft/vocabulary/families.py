"""The one table of model families: what a config.json of each means where it is silent.

``defaults`` are those of transformers' config class of that ``model_type`` (a test compares
every key); ``parts`` read what the family has beside the sizes. dtype is the exception: left
out, it is bfloat16.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.rope_config import read_rope

Fields = dict[str, Any]
Part = Callable[[ConfigReader], Fields]

MAX_LAYERS: Final = 10_000

_ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: the defaults of its config, what else it reads, the keys that mean another."""

    model_type: str
    defaults: dict[str, Any]
    parts: tuple[Part, ...]
    aliases: Mapping[str, str] | None = None


def spec_from_config(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Translate the content of a Hugging Face ``config.json``.

    Raises ModelConfigError for an unsupported family or feature and for wrong fields.
    """
    reader = ConfigReader(name, config, {}, {})
    family = _family_of(reader)
    reader = ConfigReader(name, config, _COMMON | family.defaults, family.aliases or {})
    reader.refuse("per_layer_config", "quantization_config")
    fields = _sizes(reader)
    for part in family.parts:
        fields |= part(reader)
    return ModelSpec(name=name, family=family.model_type, **fields)


def _family_of(config: ConfigReader) -> Family:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.0)
    raise config.error(
        f"model_type {model_type!r} is not supported (the nearest is {near[0]}); "
        f"weft runs {', '.join(FAMILIES)}"
    )


def _sizes(config: ConfigReader) -> Fields:
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise config.error(f"num_hidden_layers {num_layers}: more than {MAX_LAYERS}")
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": config.optional_integer("num_key_value_heads") or num_heads,
        "head_dim": _head_dim(config),
        "intermediate_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "tie_embeddings": config.flag("tie_word_embeddings"),
        "dtype": _dtype(config),
        "max_position": config.integer("max_position_embeddings"),
        "norm_eps": config.number("rms_norm_eps", least=0.0),
        "activation": config.choice("hidden_act", _ACTIVATIONS),
        "eos_token_ids": _eos_token_ids(config),
    }


def _head_dim(config: ConfigReader) -> int:
    given = config.optional_integer("head_dim")
    return given or config.integer("hidden_size") // config.integer("num_attention_heads")


def _dtype(config: ConfigReader) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if not isinstance(value, str):
        raise config.error(f"field 'dtype' is {value!r}, must be a string")
    return value.removeprefix("torch.")


def _eos_token_ids(config: ConfigReader) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) for item in values):
        raise config.error(f"field 'eos_token_id' is {value!r}, must be an integer or a list")
    return tuple(values)


def _rope(config: ConfigReader) -> Fields:
    return {"rope": read_rope(config, head_dim=_head_dim(config))}


def _attention_bias(config: ConfigReader) -> Fields:
    bias = config.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias}


def _mlp_bias(config: ConfigReader) -> Fields:
    return {"mlp_bias": config.flag("mlp_bias")}


def _qkv_bias(config: ConfigReader) -> Fields:  # noqa: ARG001
    return {"qkv_bias": True}


def _qk_norm(config: ConfigReader) -> Fields:  # noqa: ARG001
    return {"qk_norm": True}


def _window(config: ConfigReader) -> Fields:
    """One window for all layers."""
    return {"sliding_window": config.optional_integer("sliding_window")}


def _switched_window(config: ConfigReader) -> Fields:
    """One window for all layers where ``use_sliding_window`` says so."""
    return _window(config) if config.flag("use_sliding_window") else {}


def _windows_by_layer(config: ConfigReader) -> Fields:
    """A window in the layers of ``layer_types``, or from ``max_window_layers`` on."""
    num_layers = config.integer("num_hidden_layers")
    types = config.items("layer_types")
    fields = _switched_window(config)
    window = fields.get("sliding_window")
    if config.has("layer_types"):
        full = full_layers(config, types, num_layers)
        if len(full) < num_layers and window is None:
            raise config.error("layer_types has sliding_attention, but no sliding_window is used")
    else:
        first = config.integer("max_window_layers", least=0) if window else num_layers
        full = tuple(range(min(first, num_layers)))
    return {"sliding_window": window, "full_layers": full} if window else {}


def full_layers(config: ConfigReader, types: Any, num_layers: int) -> tuple[int, ...]:
    """The layers that ``layer_types`` calls full_attention; the others must slide."""
    if len(types) != num_layers:
        raise config.error(
            f"layer_types has {len(types)} layers, num_hidden_layers is {num_layers}"
        )
    known = {"full_attention": True, "attention": True, "sliding_attention": False}
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise config.error(f"layer type {kind!r} is not supported; weft has {', '.join(known)}")
    return tuple(layer for layer, kind in enumerate(types) if known[kind])


def _mixtral_experts(config: ConfigReader) -> Fields:
    return _experts(config, "num_local_experts", "intermediate_size", normalize=True)


def _qwen_experts(config: ConfigReader) -> Fields:
    """Experts in every ``decoder_sparse_step``-th layer but ``mlp_only_layers``."""
    step, dense = config.integer("decoder_sparse_step"), config.items("mlp_only_layers")
    num_layers = config.integer("num_hidden_layers")
    normalize = config.flag("norm_topk_prob")
    fields = _experts(config, "num_experts", "moe_intermediate_size", normalize=normalize)
    layers = range(num_layers)
    fields["dense_layers"] = tuple(i for i in layers if i in dense or (i + 1) % step)
    return fields


def _experts(config: ConfigReader, count: str, size: str, *, normalize: bool) -> Fields:
    num_experts, chosen = config.integer(count), config.integer("num_experts_per_tok")
    if chosen > num_experts:
        raise config.error(f"num_experts_per_tok {chosen}: more than the {num_experts} experts")
    return {
        "num_experts": num_experts,
        "experts_per_token": chosen,
        "expert_intermediate_size": config.integer(size),
        "normalize_expert_weights": normalize,
    }


_COMMON: Final[dict[str, Any]] = {
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
}

_LLAMA: Final = Family(
    model_type="llama",
    defaults={
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
    },
    parts=(_rope, _attention_bias, _mlp_bias),
)

_MISTRAL: Final = Family(
    model_type="mistral",
    defaults={
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "eos_token_id": 2,
        "sliding_window": 4096,
    },
    parts=(_rope, _window),
)

_MIXTRAL: Final = Family(
    model_type="mixtral",
    defaults=_MISTRAL.defaults
    | {
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    parts=(_rope, _window, _mixtral_experts),
    aliases={"num_experts": "num_local_experts"},
)

_QWEN2: Final = Family(
    model_type="qwen2",
    defaults={
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    parts=(_rope, _qkv_bias, _windows_by_layer),
)

_QWEN3: Final = Family(
    model_type="qwen3",
    defaults=_QWEN2.defaults | {"head_dim": 128},
    parts=(_rope, _attention_bias, _qk_norm, _windows_by_layer),
)

_QWEN3_MOE: Final = Family(
    model_type="qwen3_moe",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
    },
    parts=(_rope, _attention_bias, _qk_norm, _switched_window, _qwen_experts),
    aliases={"num_local_experts": "num_experts"},
)

FAMILIES: Final[Mapping[str, Family]] = {
    family.model_type: family for family in (_LLAMA, _MISTRAL, _QWEN2, _QWEN3, _MIXTRAL, _QWEN3_MOE)
}
