"""The table of model families: one file a lineage, with its rows and its models' names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from weft.vocabulary import config_parts as parts
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.families import (
    deepseek,
    gemma,
    glm,
    gpt_oss,
    llama,
    llama4,
    minimax,
    mistral,
    qwen,
    qwen_delta,
)
from weft.vocabulary.families.family import Family
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.quantization import read_quantization
from weft.vocabulary.tensor_names import TensorNames

_LINEAGES: Final = (
    llama, mistral, qwen, gemma, deepseek, glm, qwen_delta, gpt_oss, minimax, llama4
)  # fmt: skip

FAMILIES: Final[Mapping[str, Family]] = {
    family.model_type: family for lineage in _LINEAGES for family in lineage.FAMILIES
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

_OUTER: Final = ("dtype", "torch_dtype", "quantization_config")
"""What a config with several inputs says beside its text model's."""


def spec_from_config(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Translate the content of a Hugging Face ``config.json`` (dtype left out: bfloat16).

    Raises ModelConfigError for an unsupported family or feature and for wrong fields.
    """
    reader = ConfigReader(name, config, {}, {})
    family = _family_of(reader)
    if family.text_key is not None:
        outer = {key: config[key] for key in _OUTER if key in config}
        config = outer | dict(reader.mapping(family.text_key))
    reader = ConfigReader(name, config, {**_COMMON, **family.defaults}, family.aliases)
    reader.refuse("per_layer_config")
    fields = parts.sizes(reader)
    fields["activation"] = reader.choice(family.activation_key, parts.ACTIVATIONS)
    for part in family.parts:
        fields |= part(reader)
    spec = ModelSpec(name=name, family=family.model_type, **fields)
    if reader.has("quantization_config"):
        spec = replace(spec, formats=read_quantization(reader, spec, family.names))
    return spec


def _family_of(config: ConfigReader) -> Family:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.0)
    raise config.error(
        f"model_type {model_type!r} is not supported (the nearest is {near[0]}); "
        f"weft runs {', '.join(FAMILIES)}"
    )


def names_of(spec: ModelSpec) -> TensorNames:
    """What the checkpoint of ``spec``'s family calls its tensors."""
    return FAMILIES[spec.family].names


CONFIGS: Final = {
    **{name: config for lineage in _LINEAGES for name, config in lineage.MODELS.items()},
    "embedded": llama.EMBEDDED,
}
"""The models that weft knows by name: their config.json, as far as it says more than its family."""

BUILTIN_MODELS: Final = {name: spec_from_config(name, config) for name, config in CONFIGS.items()}
