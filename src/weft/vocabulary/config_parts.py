"""What every model reads from config.json: sizes, type and ends; used by families/.

Each part returns fields of ModelSpec. Those of attention and of experts have files of their own.
"""

from __future__ import annotations

from typing import Any, Final

from weft.vocabulary.config_reader import ConfigReader

Fields = dict[str, Any]


MAX_LAYERS: Final = 10_000


ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def sizes(config: ConfigReader) -> Fields:
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise config.error(f"num_hidden_layers {num_layers}: more than {MAX_LAYERS}")
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": config.optional_integer("num_key_value_heads") or num_heads,
        "head_dim": head_dim_of(config),
        "intermediate_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "tie_embeddings": config.flag("tie_word_embeddings"),
        "dtype": _dtype(config),
        "max_position": config.integer("max_position_embeddings"),
        "norm_eps": config.number("rms_norm_eps", least=0.0),
        "eos_token_ids": _eos_token_ids(config),
    }


def head_dim_of(config: ConfigReader) -> int:
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


def mlp_bias(config: ConfigReader) -> Fields:
    return {"mlp_bias": config.flag("mlp_bias")}
