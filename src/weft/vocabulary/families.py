"""The one table of model families: what a config.json of each means where it is silent.

``defaults`` are those of transformers' config class of that ``model_type`` (a test compares
every key); ``parts`` read what the family has beside the sizes. dtype is the exception: left
out, it is bfloat16.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary import config_parts as parts
from weft.vocabulary import expert_parts as experts
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.quantization import read_quantization
from weft.vocabulary.tensor_names import Stacked, TensorNames

_NAMES: Final = TensorNames()

_OUTER: Final = ("dtype", "torch_dtype", "quantization_config")
"""What a config with several inputs says beside its text model's."""

Part = Callable[[ConfigReader], parts.Fields]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: the defaults of its config, what else it reads, what its tensors are called.

    aliases: keys that mean another; activation_key: where the activation stands; text_key: the
    object that holds the text model's config, in a family of several kinds of input.
    """

    model_type: str
    defaults: dict[str, Any]
    parts: tuple[Part, ...]
    names: TensorNames = _NAMES
    aliases: Mapping[str, str] | None = None
    activation_key: str = "hidden_act"
    text_key: str | None = None


def spec_from_config(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Translate the content of a Hugging Face ``config.json``.

    Raises ModelConfigError for an unsupported family or feature and for wrong fields.
    """
    reader = ConfigReader(name, config, {}, {})
    family = _family_of(reader)
    if family.text_key is not None:
        outer = {key: config[key] for key in _OUTER if key in config}
        config = outer | dict(reader.mapping(family.text_key))
    reader = ConfigReader(name, config, _COMMON | family.defaults, family.aliases or {})
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
    parts=(attention.rope, attention.attention_bias, parts.mlp_bias),
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
    parts=(attention.rope, attention.window),
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
    parts=(attention.rope, attention.window, experts.mixtral_experts),
    names=TensorNames(feed_forward="block_sparse_moe", experts=("w1", "w3", "w2")),
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
    parts=(attention.rope, attention.qkv_bias, attention.windows_by_layer),
)

_QWEN3: Final = Family(
    model_type="qwen3",
    defaults=_QWEN2.defaults | {"head_dim": 128},
    parts=(attention.rope, attention.attention_bias, attention.qk_norm, attention.windows_by_layer),
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
    parts=(
        attention.rope,
        attention.attention_bias,
        attention.qk_norm,
        attention.switched_window,
        experts.qwen_experts,
    ),
    aliases={"num_local_experts": "num_experts"},
)

_GEMMA3: Final = Family(
    model_type="gemma3_text",
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
    },
    parts=(
        attention.gemma_ropes,
        attention.attention_bias,
        attention.gemma_windows,
        attention.gemma_norms,
    ),
    names=TensorNames(
        feed_forward_norm="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_feed_forward="post_feedforward_layernorm",
    ),
    activation_key="hidden_activation",
)

_GEMMA3_WITH_IMAGES: Final = replace(
    _GEMMA3,
    model_type="gemma3",
    names=replace(
        _GEMMA3.names,
        model="language_model.model",
        head="language_model.lm_head",
        ignored=("vision_tower.", "multi_modal_projector."),
    ),
    text_key="text_config",
)

_DEEPSEEK_V2: Final = Family(
    model_type="deepseek_v2",
    defaults={
        "vocab_size": 102400,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "moe_intermediate_size": 1407,
        "rope_interleave": True,
    },
    parts=(attention.latent, parts.mlp_bias, experts.shared_experts, experts.softmax_routing),
    aliases={"num_experts": "n_routed_experts"},
)

_DEEPSEEK_V3: Final = Family(
    model_type="deepseek_v3",
    defaults={
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
        "rope_interleave": True,
    },
    parts=(attention.latent, experts.shared_experts, experts.sigmoid_routing),
    names=TensorNames(ignored=("model.layers.{num_layers}.",)),
    aliases={"num_local_experts": "n_routed_experts"},
)

_KIMI_K2: Final = replace(_DEEPSEEK_V3, model_type="kimi_k2")

_KIMI_K25: Final = replace(
    _DEEPSEEK_V3,
    model_type="kimi_k25",
    names=TensorNames(
        model="language_model.model",
        head="language_model.lm_head",
        ignored=("vision_tower.", "mm_projector.", "language_model.model.layers.{num_layers}."),
    ),
    text_key="text_config",
)

_GLM4_MOE: Final = Family(
    model_type="glm4_moe",
    defaults={
        "vocab_size": 151552,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    parts=(
        attention.partial_rope,
        attention.optional_qkv_bias,
        attention.optional_qk_norm,
        experts.shared_experts,
        experts.sigmoid_routing,
    ),
    names=_DEEPSEEK_V3.names,
    aliases={"num_local_experts": "n_routed_experts"},
)

_QWEN3_5_TEXT: Final = Family(
    model_type="qwen3_5_text",
    defaults={
        "vocab_size": 248320,
        "intermediate_size": 12288,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
    parts=(attention.delta_attention,),
    names=TensorNames(shared_experts="shared_expert", ignored=("mtp.",)),
)

_QWEN3_5_MOE_TEXT: Final = replace(
    _QWEN3_5_TEXT,
    model_type="qwen3_5_moe_text",
    defaults=_QWEN3_5_TEXT.defaults
    | {
        "hidden_size": 2048,
        "intermediate_size": 512,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 8,
        "num_experts": 256,
    },
    parts=(attention.delta_attention, experts.all_experts, experts.gated_shared_expert),
)

_QWEN3_NEXT: Final = replace(
    _QWEN3_5_MOE_TEXT,
    model_type="qwen3_next",
    defaults=_QWEN3_5_MOE_TEXT.defaults
    | {
        "vocab_size": 151936,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "decoder_sparse_step": 1,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "norm_topk_prob": True,
    },
    parts=(
        partial(attention.delta_attention, by_key_head=True),
        experts.qwen_experts,
        experts.gated_shared_expert,
    ),
)

_IN_A_MODEL_WITH_IMAGES: Final = replace(
    _QWEN3_5_TEXT.names, model="model.language_model", ignored=("model.visual.", "mtp.")
)
_QWEN3_5, _QWEN3_5_MOE = (
    replace(
        text,
        model_type=text.model_type.removesuffix("_text"),
        names=_IN_A_MODEL_WITH_IMAGES,
        text_key="text_config",
    )
    for text in (_QWEN3_5_TEXT, _QWEN3_5_MOE_TEXT)
)

_GPT_OSS: Final = Family(
    model_type="gpt_oss",
    defaults={
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "attention_bias": True,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    parts=(attention.sink_attention, experts.clamped_experts),
    names=TensorNames(router="router", experts=Stacked(interleaved=True)),
    aliases={"num_experts": "num_local_experts"},
)

_MINIMAX_M2: Final = Family(
    model_type="minimax_m2",
    defaults={
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "eos_token_id": 200020,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "rope_theta": 5e6,
    },
    parts=(attention.normed_attention, experts.corrected_experts),
    names=replace(_MIXTRAL.names, correction="e_score_correction_bias"),
    aliases={"num_experts": "num_local_experts"},
)

_LLAMA4_TEXT: Final = Family(
    model_type="llama4_text",
    defaults={
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_theta": 500000.0,
    },
    parts=(attention.chunked_attention, experts.weighed_experts),
    names=TensorNames(
        feed_forward="feed_forward",
        router="router",
        shared_experts="shared_expert",
        experts=Stacked(),
    ),
)

_LLAMA4: Final = replace(
    _LLAMA4_TEXT,
    model_type="llama4",
    names=replace(
        _LLAMA4_TEXT.names,
        model="language_model.model",
        head="language_model.lm_head",
        ignored=("vision_model.", "multi_modal_projector."),
    ),
    text_key="text_config",
)

FAMILIES: Final[Mapping[str, Family]] = {
    family.model_type: family
    for family in (
        _LLAMA,
        _MISTRAL,
        _QWEN2,
        _QWEN3,
        _MIXTRAL,
        _QWEN3_MOE,
        _GEMMA3,
        _GEMMA3_WITH_IMAGES,
        _DEEPSEEK_V2,
        _DEEPSEEK_V3,
        _KIMI_K2,
        _KIMI_K25,
        _GLM4_MOE,
        _QWEN3_NEXT,
        _QWEN3_5_TEXT,
        _QWEN3_5,
        _QWEN3_5_MOE_TEXT,
        _QWEN3_5_MOE,
        _GPT_OSS,
        _MINIMAX_M2,
        _LLAMA4_TEXT,
        _LLAMA4,
    )
}


def names_of(spec: ModelSpec) -> TensorNames:
    """What the checkpoint of ``spec``'s family calls its tensors."""
    return FAMILIES[spec.family].names
