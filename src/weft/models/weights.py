"""Fill a model's parameters: from safetensors, or with dummy values from a seed.

Both walk the parameters' pieces, so each rank reads only what it holds. The most
that is held at any time is the rank's own shard and one tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from weft.errors import FileFormatError
from weft.layers.expert_exchange import LocalExperts
from weft.layers.linear import Placement
from weft.layers.shards import Piece, ScaledParameter, ShardedParameter
from weft.models.checkpoint import Checkpoint, place, place_rounded
from weft.models.decoder import DecoderStage
from weft.models.float8 import Float8Scales
from weft.models.mxfp4 import packed_names
from weft.vocabulary.families import names_of

_HARMLESS: Final = (".rotary_emb.inv_freq",)
"""Ends of tensors that older checkpoints carry and that follow from config.json."""


def load_weights(model: DecoderStage, directory: Path, *, rounds: bool = False) -> None:
    """Read every parameter from the checkpoint in ``directory``; ``rounds``: see ``Checkpoint``.

    Raises FileFormatError naming the file or tensor that is missing, damaged, twice there,
    of another type or shape, not finite, or that no part of the whole model reads.
    """
    checkpoint = Checkpoint(directory, rounds=rounds)
    wanted = sorted(_pieces(model), key=lambda each: checkpoint.path_of(each[1]))
    for parameter, piece in wanted:
        checkpoint.check(parameter, piece)
    _check_leftovers(checkpoint.files, model)
    for parameter, piece in wanted:
        checkpoint.fill(parameter, piece)


def fill_dummy(model: nn.Module, seed: int) -> None:
    """Random weights that depend on ``seed`` and the tensor's name only, never on the layout."""
    for parameter, piece in _pieces(model):
        if isinstance(parameter, ScaledParameter):
            place_rounded(parameter, piece, _dummy_tensor(piece, seed, parameter.scales))
        else:
            whole = _dummy_tensor(piece, seed, parameter)
            place(parameter, piece, whole.narrow(piece.dim, piece.start, piece.stop - piece.start))


def _pieces(model: nn.Module) -> Iterator[tuple[ShardedParameter, Piece]]:
    for parameter in model.parameters():
        assert isinstance(parameter, ShardedParameter)
        for piece in parameter.pieces:
            yield parameter, piece


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
