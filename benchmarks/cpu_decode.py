"""CPU decode of the embedded model beside transformers' generate: same weights, same run.

    python benchmarks/cpu_decode.py [--repeats 7] [--output benchmarks/results/cpu_decode.json]

Both decode greedily, batch 1, fp32, one process; the repeats are interleaved and the
ratio is taken pair by pair. The tokens must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from weft import __version__
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.vocabulary.model_spec import ModelSpec


def transformers_model(spec: ModelSpec, stage: torch.nn.Module) -> torch.nn.Module:
    """transformers' Llama with the weights of weft's own single-rank stage."""
    scaling = spec.rope_scaling
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_position,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": spec.rope.theta,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {}
    for parameter in stage.parameters():
        for piece in parameter.pieces:
            length = piece.stop - piece.start
            weights[piece.source] = parameter.data.narrow(piece.dim, piece.at, length)
    model.load_state_dict(weights)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    llm = LLM("embedded", prefix_caching=False)
    peer = transformers_model(llm.engine.spec, llm.engine.runner.stage)
    prompt = torch.randint(0, llm.engine.spec.vocab_size, (1, options.prompt))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def ours(tokens: int) -> list[int]:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        return list(llm.generate([prompt[0].tolist()], sampling)[0].token_ids)

    @torch.inference_mode()
    def theirs(tokens: int) -> list[int]:
        mask = torch.ones_like(prompt)
        out = peer.generate(prompt, attention_mask=mask, max_new_tokens=tokens, **settings)
        return out[0, options.prompt :].tolist()

    if ours(options.decode) != theirs(options.decode):
        raise SystemExit("the tokens differ")
    samples = {"weft": [], "transformers": []}
    for _ in range(options.repeats):
        for name, generate in (("weft", ours), ("transformers", theirs)):
            started = time.perf_counter()
            generate(1)
            first = time.perf_counter()
            generate(options.decode)
            done = time.perf_counter()
            tpot_ms = ((done - first) - (first - started)) * 1e3 / (options.decode - 1)
            samples[name].append(tpot_ms)
    ratios = [a / b for a, b in zip(samples["weft"], samples["transformers"], strict=True)]
    result = {
        "what": "TPOT of the embedded model on one CPU process, greedy, batch 1, fp32",
        "command": "python benchmarks/cpu_decode.py "
        + " ".join(f"--{key} {value}" for key, value in vars(options).items() if key != "output"),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "weft": __version__,
        },
        "tpot_ms": {name: round(statistics.median(v), 3) for name, v in samples.items()},
        "ratio": {
            "min": round(min(ratios), 3),
            "median": round(statistics.median(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
