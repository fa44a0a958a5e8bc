"""Family: what a config.json of one ``model_type`` means where it is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weft.vocabulary.config_parts import Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.tensor_names import TensorNames

Config = dict[str, Any]
Part = Callable[[ConfigReader], Fields]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: the defaults of its config, what else it reads, what its tensors are called.

    ``defaults`` are those of transformers' config class (a test compares every key); ``parts``
    read what the family has beside the sizes. aliases: keys that mean another; activation_key:
    where the activation stands; text_key: the object that holds the text model's config, in a
    family of several kinds of input.
    """

    model_type: str
    defaults: Mapping[str, Any]
    parts: tuple[Part, ...]
    names: TensorNames = field(default_factory=TensorNames)
    aliases: Mapping[str, str] = field(default_factory=dict)
    activation_key: str = "hidden_act"
    text_key: str | None = None

    def beside_images(self, model_type: str, **names: Any) -> Family:
        """The same text model in a family of several inputs, its tensors under other names."""
        names = {"head": "language_model.lm_head"} | names
        return replace(
            self,
            model_type=model_type,
            names=replace(self.names, **names),
            text_key="text_config",
        )


def always(**fields: Any) -> Part:
    """A part that every model of a family has."""
    return lambda _: fields


def sizes(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int) -> Config:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


def experts(num_experts: int, per_token: int, size: int) -> Config:
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": size,
    }


def llama3_rope(factor: float) -> Config:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
