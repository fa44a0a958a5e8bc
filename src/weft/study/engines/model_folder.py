"""A folder of a built-in model's config.json and a tokenizer, for engines that know no names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from weft.errors import ModelConfigError
from weft.vocabulary.families import BUILTIN_MODELS, CONFIGS
from weft.vocabulary.files import write_file

_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_SPECIAL: Final = ("<s>", "</s>", "<unk>")


def model_of(name: str, folder: Path) -> str:
    """``name``, or ``folder`` with the files of the built-in model of that name.

    The weights are the engines' own random ones, the tokenizer knows a word a token.
    """
    if name not in BUILTIN_MODELS:
        return name
    check_files(name)
    spec, config = BUILTIN_MODELS[name], CONFIGS[name]
    family = str(config["model_type"])
    content = {
        "dtype": spec.dtype,
        "torch_dtype": spec.dtype,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position,
        "head_dim": spec.head_dim,
        "hidden_act": spec.activation,
        "bos_token_id": 0,
        "architectures": [_ARCHITECTURES[family]],
    }
    return write_model(folder, content | config)


def check_files(name: str) -> None:
    """ModelConfigError for a built-in name whose files weft does not write."""
    if name in BUILTIN_MODELS and CONFIGS[name]["model_type"] not in _ARCHITECTURES:
        raise ModelConfigError(
            f"model {name}: name a folder with its config.json and tokenizer; weft writes them for "
            f"{', '.join(_ARCHITECTURES)} only"
        )


def write_model(folder: Path, config: dict[str, Any]) -> str:
    """A folder with ``config`` and a tokenizer of a word a token, for random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.json", config)
    _write_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])
    return str(folder)


def _write_tokenizer(folder: Path, vocab_size: int, max_position: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), vocab_size))]
    model = models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=_SPECIAL[2])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_position}
    names = dict(zip(("bos_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    write_file(folder / "tokenizer_config.json", settings | names)
