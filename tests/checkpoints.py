"""Tiny checkpoints made with transformers, and its own forward as the reference."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

_SIZES = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}


_LATENT = {
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    },
}


_GEMMA = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "sliding_window": 12,
    "query_pre_attn_scalar": 24,
    "final_logit_softcapping": 5.0,
}

_GLM = {
    "head_dim": 16,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
}

_DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "layer_types": ["linear_attention", "full_attention"] * 2 + ["linear_attention"],
}

_GPT_OSS = {
    "head_dim": 16,
    "sliding_window": 12,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "swiglu_limit": 0.3,
}

_MINIMAX = {
    "head_dim": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"},
}

_LLAMA4 = {
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size_mlp": 64,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 3,
    "attention_chunk_size": 16,
    "floor_scale": 8,
}

_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_FAMILIES = {
    "llama": (transformers.LlamaConfig, {"rope_parameters": _LLAMA3_ROPE}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "llama-linear-rope": (transformers.LlamaConfig, {"rope_parameters": _LINEAR_ROPE}),
    "llama-attention-bias": (transformers.LlamaConfig, {"attention_bias": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 24, "head_dim": 8}),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 2}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (transformers.Qwen3MoeConfig, _EXPERTS | {"norm_topk_prob": True}),
    "qwen3-moe-unnormalized": (transformers.Qwen3MoeConfig, _EXPERTS | {"norm_topk_prob": False}),
    "gemma3": (transformers.Gemma3TextConfig, _GEMMA),
    "deepseek-v2": (transformers.DeepseekV2Config, _LATENT | {"num_key_value_heads": 8}),
    "deepseek-v3": (transformers.DeepseekV3Config, _LATENT | {"num_key_value_heads": 8}),
    "glm4-moe": (transformers.Glm4MoeConfig, _GLM),
    "qwen3-next": (transformers.Qwen3NextConfig, _DELTA),
    "qwen3.5": (
        transformers.Qwen3_5TextConfig,
        {key: _DELTA[key] for key in _DELTA if "expert" not in key},
    ),
    "qwen3.5-moe": (transformers.Qwen3_5MoeTextConfig, _DELTA),
    "gpt-oss": (transformers.GptOssConfig, _GPT_OSS),
    "minimax-m2": (transformers.MiniMaxM2Config, _MINIMAX),
    "llama4": (transformers.Llama4TextConfig, _LLAMA4),
}
FAMILIES = tuple(_FAMILIES)


def make_config(family: str):
    """A config of each family with the feature that sets it apart."""
    config, sizes = _FAMILIES[family]
    return config(**_SIZES | sizes)


def make_checkpoint(directory: Path, family: str, *, shard_size: str = "5GB") -> Path:
    """Random weights (biases and norms too) saved in fp32 with ``save_pretrained``."""
    torch.manual_seed(FAMILIES.index(family))
    config = make_config(family)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


@torch.no_grad()
def randomize(model) -> None:
    """Random values for every parameter, biases and norms (some are offsets from one) too."""
    from_one = hasattr(model.config, "linear_key_head_dim")
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(0, 0.3)
        elif parameter.dim() == 1 and from_one and "linear_attn" not in name:
            parameter.uniform_(-0.5, 0.5)
        elif parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.08)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(-0.5, 0.5)


def reference_model(directory: Path):
    """transformers' own model in fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def reference_logits(model, prompt: list[int]) -> torch.Tensor:
    """Logits [length, vocabulary] of one prompt."""
    return model(torch.tensor([prompt])).logits[0]


@torch.inference_mode()
def reference_greedy(model, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy continuation with transformers' own cache, end-of-text ignored."""
    found: list[int] = []
    past, new = None, prompt
    while len(found) < num_tokens:
        step = model(torch.tensor([new]), past_key_values=past, use_cache=True)
        past, new = step.past_key_values, [int(step.logits[0, -1].argmax())]
        found += new
    return found
