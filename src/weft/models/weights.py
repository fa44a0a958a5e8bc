"""Fill a model's parameters: from safetensors, or with dummy values from a seed.

Both walk the parameters' pieces, so each rank reads only what it holds. The most
that is held at any time is the rank's own shard and one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from weft.errors import FileFormatError, ModelConfigError
from weft.layers.shards import Piece, ShardedParameter

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def load_weights(model: nn.Module, directory: Path) -> None:
    """Read every parameter from ``model.safetensors`` or its sharded index in ``directory``.

    Raises FileFormatError naming the file or the tensor that is missing or damaged.
    """
    files = _weight_files(directory)
    by_file: dict[Path, list[tuple[ShardedParameter, Piece]]] = {}
    for parameter, piece in _pieces(model):
        path = files.get(piece.source)
        if path is None:
            raise FileFormatError(f"{directory}: the checkpoint has no tensor {piece.source!r}")
        by_file.setdefault(path, []).append((parameter, piece))
    for path, wanted in by_file.items():
        _read_file(path, wanted)


def fill_dummy(model: nn.Module, seed: int) -> None:
    """Random weights that depend on ``seed`` and the tensor's name only, never on the layout."""
    for parameter, piece in _pieces(model):
        whole = _dummy_tensor(piece, seed, parameter)
        _place(parameter, piece, whole.narrow(piece.dim, piece.start, piece.stop - piece.start))


def _pieces(model: nn.Module) -> Iterator[tuple[ShardedParameter, Piece]]:
    for parameter in model.parameters():
        assert isinstance(parameter, ShardedParameter)
        for piece in parameter.pieces:
            yield parameter, piece


def _place(parameter: ShardedParameter, piece: Piece, values: torch.Tensor) -> None:
    target = parameter.data.narrow(piece.dim, piece.at, piece.stop - piece.start)
    target.copy_(values)


def _weight_files(directory: Path) -> dict[str, Path]:
    index = directory / _INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: directory / file for name, file in names.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise FileFormatError(f"{index}: not a safetensors index ({error!r})") from None
    single = directory / _SINGLE
    if not single.is_file():
        raise ModelConfigError(
            f"{directory}: has neither {_SINGLE} nor {_INDEX}; use --weights dummy for random weights"
        )
    with _open(single) as file:
        return dict.fromkeys(file.keys(), single)


def _open(path: Path):  # type: ignore[no-untyped-def]
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path}: not a readable safetensors file ({error}); download it again"
        ) from None


def _read_file(path: Path, wanted: list[tuple[ShardedParameter, Piece]]) -> None:
    from safetensors import SafetensorError

    with _open(path) as file:
        for parameter, piece in wanted:
            try:
                source = file.get_slice(piece.source)
            except SafetensorError as error:
                raise FileFormatError(f"{path}: cannot read {piece.source!r} ({error})") from None
            shape = tuple(source.get_shape())
            if shape != piece.shape:
                raise FileFormatError(
                    f"{path}: tensor {piece.source!r} has shape {list(shape)}, "
                    f"config.json says {list(piece.shape)}"
                )
            index = (slice(None),) * piece.dim + (slice(piece.start, piece.stop),)
            _place(parameter, piece, source[index])


def _dummy_tensor(piece: Piece, seed: int, parameter: torch.Tensor) -> torch.Tensor:
    if len(piece.shape) == 1:
        fill = 0.0 if piece.source.endswith(".bias") else 1.0
        return parameter.new_full(piece.shape, fill)
    digest = hashlib.blake2b(f"{seed}/{piece.source}".encode(), digest_size=7).digest()
    generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "big"))
    values = torch.randn(
        piece.shape, generator=generator, device=parameter.device, dtype=parameter.dtype
    )
    return values.mul_(1.0 / math.sqrt(piece.shape[1]))
