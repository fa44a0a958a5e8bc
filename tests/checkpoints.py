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


def make_config(family: str):
    """A config of each family with the feature that sets it apart."""
    if family == "llama":
        return transformers.LlamaConfig(**_SIZES, rope_parameters=_LLAMA3_ROPE)
    if family == "llama-tied":
        return transformers.LlamaConfig(**_SIZES, tie_word_embeddings=True)
    if family == "llama-linear-rope":
        rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
        return transformers.LlamaConfig(**_SIZES, rope_parameters=rope)
    if family == "llama-attention-bias":
        return transformers.LlamaConfig(**_SIZES, attention_bias=True)
    if family == "mistral":
        return transformers.MistralConfig(**_SIZES, sliding_window=24, head_dim=8)
    if family == "qwen2":
        return transformers.Qwen2Config(**_SIZES | {"num_key_value_heads": 2})
    if family == "qwen3":
        return transformers.Qwen3Config(**_SIZES, head_dim=16)
    if family == "mixtral":
        return transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2)
    if family.startswith("qwen3-moe"):
        normalize = family == "qwen3-moe"
        return transformers.Qwen3MoeConfig(**_SIZES, **_EXPERTS, norm_topk_prob=normalize)
    raise ValueError(family)


FAMILIES = (
    "llama",
    "llama-tied",
    "llama-linear-rope",
    "llama-attention-bias",
    "mistral",
    "qwen2",
    "qwen3",
    "mixtral",
    "qwen3-moe",
    "qwen3-moe-unnormalized",
)


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
    """Random values for every parameter, biases and norms too."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.normal_(0, 0.3)
        elif parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.08)


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
    """Greedy continuation, end-of-text ignored."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]
