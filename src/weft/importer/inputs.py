"""What the user names: files or folders of traces, and a model that weft need not run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from weft.errors import FileFormatError, ModelConfigError
from weft.importer.execution_trace import is_execution_trace
from weft.importer.facts import dimensions_only
from weft.vocabulary.dtypes import MODEL_DTYPES
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.model_spec import ModelSpec

TRACE_ENDINGS: Final = (".json", ".json.gz", ".sqlite", ".nsys-rep")
_LARGEST_DOCUMENT_BYTES: Final = 16 << 20
_DIMENSIONS: Final = ("num_hidden_layers", "hidden_size", "vocab_size")


def trace_files(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files named, and the traces of every folder named; notes on what else lies in these.

    Raises FileFormatError for a folder without traces.
    """
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if _is_trace(p)) if path.is_dir() else [path]
        others = [file.name for file in inside if path.is_dir() and _is_document(file)]
        inside = [file for file in inside if file.name not in others]
        notes += [f"{path}: left out {', '.join(others)}, no trace"] * bool(others)
        if not inside:
            holding = Counter(p.parent for p in path.rglob("*") if _is_trace(p))
            below = max(sorted(holding), key=holding.__getitem__, default="their folder")
            raise FileFormatError(
                f"{path}: a folder without traces ({', '.join(TRACE_ENDINGS)}); name {below}"
            )
        found += inside
    return found, notes


def _is_trace(path: Path) -> bool:
    return path.is_file() and path.name.endswith(TRACE_ENDINGS)


def _is_document(path: Path) -> bool:
    """Whether this is whole JSON of another kind, such as weft's own beside the traces."""
    if path.suffix != ".json" or path.stat().st_size > _LARGEST_DOCUMENT_BYTES:
        return False
    try:
        fields = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, ValueError, RecursionError):
        return False
    return "traceEvents" not in fields and not is_execution_trace(path)


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """The model that the user named.

    ``family`` is set where weft knows no schedule of the model's family: its dimensions
    are checked, and its rows are held against a dense decoder's.
    """

    spec: ModelSpec
    family: str | None = None


def given_model(name: str) -> GivenModel:
    """A model for an import: any directory whose ``config.json`` tells layers, hidden size and vocabulary.

    Raises ModelConfigError where not even that is there.
    """
    try:
        return GivenModel(spec=load_spec(name))
    except ModelConfigError:
        config = _config(Path(name).expanduser())
        if config is None:
            raise
    layers, hidden, vocabulary = (config[key] for key in _DIMENSIONS)
    spec = dimensions_only(name, layers, hidden, vocabulary, _dtype(config))
    return GivenModel(spec=spec, family=str(config.get("model_type", "unknown")))


def _dtype(config: dict[str, Any]) -> str:
    value = str(config.get("dtype") or config.get("torch_dtype"))
    return value if value in MODEL_DTYPES else "bfloat16"


def _config(directory: Path) -> dict[str, Any] | None:
    """The configuration (of the text part, in a model of several) where it has the dimensions."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for part in (config, config.get("text_config") if isinstance(config, dict) else None):
        if isinstance(part, dict) and all(_is_size(part.get(key)) for key in _DIMENSIONS):
            return part
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
