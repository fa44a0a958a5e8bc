"""Fill a model's parameters: from safetensors, or with dummy values from a seed.

Both walk the parameters' pieces, so each rank reads only what it holds. The most
that is held at any time is the rank's own shard and one tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weft.errors import FileFormatError, ModelConfigError
from weft.layers.expert_exchange import LocalExperts
from weft.layers.linear import Placement
from weft.layers.shards import Piece, ShardedParameter
from weft.models.decoder import DecoderStage
from weft.models.float8 import FLOAT8, Float8Scales
from weft.models.mxfp4 import MXFP4, PackedStack, packed_names
from weft.vocabulary.families import names_of

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F64", "F32", "BF16", "F16")
_HARMLESS = (".rotary_emb.inv_freq",)
"""Ends of tensors that older checkpoints carry and that follow from config.json."""


def load_weights(model: DecoderStage, directory: Path) -> None:
    """Read every parameter from ``model.safetensors`` or its sharded index in ``directory``.

    Raises FileFormatError naming the file or tensor that is missing, damaged, twice there,
    of another type or shape, not finite, or that no part of the whole model reads.
    """
    files = _weight_files(directory)
    scales = Float8Scales(directory, files, lambda name: _whole(files[name], name))
    by_file: dict[Path, list[tuple[ShardedParameter, Piece]]] = {}
    for parameter, piece in _pieces(model):
        path = files.get(piece.source) or files.get(packed_names(piece.source)[0])
        if path is None:
            raise FileFormatError(f"{directory}: the checkpoint has no tensor {piece.source!r}")
        by_file.setdefault(path, []).append((parameter, piece))
    for path, wanted in by_file.items():
        _check_file(path, files, [piece for _, piece in wanted], scales)
    _check_leftovers(files, model)
    for path, wanted in by_file.items():
        _read_file(path, files, wanted, scales)


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
    """The file of every tensor; of the two forms the one that transformers would take."""
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        return dict.fromkeys(_names(single), single)
    if not index.is_file():
        raise ModelConfigError(
            f"{directory}: has neither {_SINGLE} nor {_INDEX}; use `weights` dummy for random weights"
        )
    found: dict[str, Path] = {}
    for path in _indexed_files(index):
        for name in _names(path):
            if name in found:
                raise FileFormatError(
                    f"{directory}: tensor {name!r} is in {found[name].name} and in {path.name}; "
                    "download the checkpoint again"
                )
            found[name] = path
    return found


def _indexed_files(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({index.parent / file for file in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{index}: not a safetensors index ({error!r})") from None
    for path in files:
        if not path.is_file():
            raise FileFormatError(f"{index}: names {path.name}, which is not there; download it")
    return files


def _names(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _open(path: Path):  # type: ignore[no-untyped-def]
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path}: not a readable safetensors file ({error}); download it again"
        ) from None


def _whole(path: Path, name: str) -> torch.Tensor:
    with _open(path) as file:
        found: torch.Tensor = file.get_tensor(name)
        return found


def _source(file: Any, files: Mapping[str, Path], piece: Piece) -> Any:
    """What gives slices of the piece's tensor, stored as it is or packed."""
    if piece.source in files:
        return file.get_slice(piece.source)
    blocks, scales = packed_names(piece.source)
    path = files.get(scales)
    if path is None or piece.index is None:
        raise FileFormatError(f"{files[blocks]}: tensor {blocks!r} has no {scales!r} beside it")
    return PackedStack(file.get_slice(blocks), _open(path).get_slice(scales))


def _check_file(
    path: Path, files: Mapping[str, Path], wanted: list[Piece], scales: Float8Scales
) -> None:
    """Types and shapes, from the file's header alone."""
    with _open(path) as file:
        for piece in wanted:
            source = _source(file, files, piece)
            shape, dtype = tuple(source.get_shape()), source.get_dtype()
            has_scales = piece.index is None and scales.name_for(piece.source) is not None
            if dtype not in (*_DTYPES, MXFP4) and not (dtype == FLOAT8 and has_scales):
                raise FileFormatError(
                    f"{path}: tensor {piece.source!r} is {dtype}; weft reads {', '.join(_DTYPES)}, "
                    f"and matrices of {FLOAT8} with scales: use another checkpoint"
                )
            if shape != piece.shape:
                raise FileFormatError(
                    f"{path}: tensor {piece.source!r} has shape {list(shape)}, "
                    f"config.json says {list(piece.shape)}"
                )


def _check_leftovers(files: dict[str, Path], stage: DecoderStage) -> None:
    """A tensor that nobody reads means that the model is another than config.json says."""
    spec, names = stage.spec, names_of(stage.spec)
    read = {piece.source for _, piece in _pieces(_whole_model(stage))}
    read |= {part for name in read if name not in files for part in packed_names(name)}
    if spec.tie_embeddings:
        read.add(f"{names.head}.weight")
    ignored = tuple(part.format(num_layers=spec.num_layers) for part in names.ignored)
    for name, path in files.items():
        is_ours = not name.endswith(_HARMLESS) and not name.startswith(ignored)
        is_ours = is_ours and not (spec.formats and Float8Scales.belongs(name))
        if name not in read and is_ours:
            raise FileFormatError(
                f"{path}: has tensor {name!r}, which {spec.name} as config.json describes it does "
                "not read; the two do not belong together, or weft does not support this model"
            )


def _whole_model(stage: DecoderStage) -> DecoderStage:
    """All layers on one rank, without values."""
    spec = stage.spec
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.bfloat16, device=torch.device("meta"))
    experts = LocalExperts(range(spec.num_experts)) if spec.is_moe else None
    streams = replace(stage.streams, experts=experts)
    return DecoderStage(spec, range(spec.num_layers), streams, where)


def _read_file(
    path: Path,
    files: Mapping[str, Path],
    wanted: list[tuple[ShardedParameter, Piece]],
    scales: Float8Scales,
) -> None:
    with _open(path) as file:
        for parameter, piece in wanted:
            values = piece.read_from(_source(file, files, piece))
            if values.dtype == torch.float8_e4m3fn:
                values = scales.weights(piece, values)
            _place(parameter, piece, values)
            if not _is_finite(parameter.data.narrow(piece.dim, piece.at, piece.stop - piece.start)):
                dtype = str(parameter.dtype).removeprefix("torch.")
                raise FileFormatError(
                    f"{path}: tensor {piece.source!r} holds NaN or infinity as {dtype}; "
                    "use another checkpoint or `dtype`"
                )


def _is_finite(values: torch.Tensor) -> bool:
    """One sum (cheaper than the copy), which NaN and infinity survive; else element by element."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _dummy_tensor(piece: Piece, seed: int, parameter: torch.Tensor) -> torch.Tensor:
    shape = piece.whole_shape
    if len(shape) == 1:
        fill = 0.0 if piece.source.endswith("bias") else 1.0
        return parameter.new_full(shape, fill)
    name = piece.source if piece.index is None else f"{piece.source}/{piece.index}/{piece.first}"
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "big"))
    values = torch.randn(shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
    return values.mul_(1.0 / math.sqrt(shape[1]))
