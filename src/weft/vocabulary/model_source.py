"""Find a model: a built-in name, a directory with a config.json, or a hub id."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from weft.errors import ModelConfigError
from weft.vocabulary.builtin_models import BUILTIN_MODELS
from weft.vocabulary.model_spec import ModelSpec, spec_from_config


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's shape and, where there is one, the directory with its files."""

    spec: ModelSpec
    directory: Path | None = None


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
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_directory(name, path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_directory(name, _hub_config(name).parent)
    near = difflib.get_close_matches(name.lower(), BUILTIN_MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `weft models`"
    raise ModelConfigError(
        f"model {name!r}: not a built-in name, a directory or a hub id (owner/model); {hint}"
    )


def _from_directory(name: str, directory: Path) -> ModelSource:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelConfigError(f"model {name}: {directory} has no config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelConfigError(f"model {name}: cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise ModelConfigError(f"model {name}: {path} does not hold a JSON object")
    return ModelSource(spec=spec_from_config(name, config), directory=directory)


def _hub_config(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise ModelConfigError(
            f"model {name!r}: hub ids need the package huggingface_hub"
        ) from None
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelConfigError(
            f"model {name!r}: not in the local hub cache and not downloadable ({reason})"
        ) from None
