"""Find a model: a built-in name, a directory with a config.json, or a hub id."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weft.errors import ModelConfigError
from weft.vocabulary.families import BUILTIN_MODELS, spec_from_config
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.weight_formats import FORMATS

_CONFIGS: Final = ["config.json", "hf_quant_config.json"]
_TEXT_FILES: Final = ["tokenizer*", "*.jinja", "vocab*", "merges.txt", "*_tokens*.json"]
_FILES: Final = ["*.json", "*.safetensors", *_TEXT_FILES]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's shape and where its other files are: a directory, a hub id, or nowhere."""

    spec: ModelSpec
    directory: Path | None = None
    hub_id: str | None = None

    def with_files(self) -> ModelSource:
        """The same model with weights and tokenizer in place; a hub model is fetched if it must be.

        Raises ModelConfigError where the hub's files are neither cached nor reachable.
        """
        return self._with(_FILES)

    def with_tokenizer(self) -> ModelSource:
        """The same model with tokenizer and chat template in place, as :meth:`with_files`."""
        return self._with(["config.json", *_TEXT_FILES])

    def _with(self, patterns: list[str]) -> ModelSource:
        if self.hub_id is None:
            return self
        return replace(self, directory=_from_hub(self.hub_id, patterns))


def load_spec(name: str) -> ModelSpec:
    """The ModelSpec of a built-in name, a directory or a hub id (see :func:`find_model`)."""
    return find_model(name).spec


def find_model(name: str) -> ModelSource:
    """Resolve ``name``; built-in names never touch the network.

    A hub id (``owner/model``) is looked up in huggingface_hub's cache first and
    downloaded (config.json only) where the network allows it.

    Raises ModelConfigError naming the value and the nearest built-in names.
    """
    if name in BUILTIN_MODELS:
        return ModelSource(spec=BUILTIN_MODELS[name])
    path = Path(name)
    if _is_directory(path):
        return _from_directory(name, path.expanduser())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return replace(_from_directory(name, _from_hub(name, _CONFIGS)), hub_id=name)
    near = difflib.get_close_matches(name.lower(), BUILTIN_MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `weft models`"
    raise ModelConfigError(
        f"model {name!r}: not a built-in name, a directory or a hub id (owner/model); {hint}"
    )


def _is_directory(path: Path) -> bool:
    try:
        return path.expanduser().is_dir()
    except (OSError, RuntimeError):  # a name that is too long, a home that is not there
        return False


def runnable_model(name: str) -> ModelSource:
    """:func:`find_model`, for a run. ModelConfigError where weft does not run its weights."""
    found = find_model(name)
    unread = [form for form in found.spec.format_names if not FORMATS[form].is_read]
    if unread:
        raise ModelConfigError(
            f"model {name}: its weights are stored as {' and '.join(unread)}, "
            "which weft describes and predicts but does not run; dequantise it first (a "
            "checkpoint in bfloat16 whose config.json has no quantization_config)"
        )
    return found


def _from_directory(name: str, directory: Path) -> ModelSource:
    if not (directory / "config.json").exists():
        raise ModelConfigError(f"model {name}: {directory} has no config.json")
    config = _read(name, directory / "config.json")
    quantization = directory / "hf_quant_config.json"
    if quantization.exists() and "quantization_config" not in config:
        config["quantization_config"] = _read(name, quantization).get("quantization")
    return ModelSource(spec=spec_from_config(name, config), directory=directory)


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelConfigError(f"model {name}: cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ModelConfigError(f"model {name}: {path} does not hold a JSON object")
    return config


def _from_hub(name: str, patterns: list[str]) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise ModelConfigError(
            f"model {name!r}: hub ids need the package huggingface_hub"
        ) from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelConfigError(
            f"model {name!r}: not in the local hub cache and not downloadable ({reason})"
        ) from None
