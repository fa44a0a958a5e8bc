"""Checkpoints with 8-bit floats: matrices with scales, turned into plain ones while they are read.

A stored matrix times its scales is the weight, whoever wrote it: DeepSeek's and transformers'
``weight_scale_inv``, compressed-tensors', ModelOpt's and FBGEMM's ``weight_scale``. Scales of
activations and of the cache are for 8-bit products, which weft does not do: they are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from weft.errors import FileFormatError
from weft.layers.shards import Piece

STORED_FLOAT8: Final = "F8_E4M3"
_OF_WEIGHTS: Final = ("weight_scale_inv", "weight_scale")
_LEFT_OUT: Final = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "kv_scale")

Read = Callable[[str], torch.Tensor]


class Float8Scales:
    """The scales of a checkpoint's matrices; ``read`` gives a whole tensor by its name."""

    def __init__(self, directory: Path, names: Mapping[str, Path], read: Read) -> None:
        self._names, self._read, self._directory = names, read, directory
        self._block: tuple[int, int] | None = None

    def name_for(self, source: str) -> str | None:
        """The tensor with the scales of a matrix, if there is one."""
        return next((name for name in names_of_scales(source) if name in self._names), None)

    @staticmethod
    def belongs(name: str) -> bool:
        """Whether a tensor is one of scales."""
        return name.rpartition(".")[2] in (*_OF_WEIGHTS, *_LEFT_OUT)

    def weights(self, piece: Piece, stored: torch.Tensor) -> torch.Tensor:
        """What the stored part of a matrix [O, I] means, in fp32.

        Raises FileFormatError where the scales are no numbers or fit neither the matrix, nor its rows or blocks.
        """
        name, scales = self._scales_of(piece)
        rows, columns = (self._places(piece, scales, name, dim) for dim in (0, 1))
        return stored.float() * scales[rows][:, columns]

    def rows(self, piece: Piece, group: int) -> torch.Tensor:
        """The scales [groups, rows] of the stored part, where ``group`` columns share one.

        Raises FileFormatError as ``weights`` does, and where columns of a group have different ones.
        """
        name, scales = self._scales_of(piece)
        rows, columns = (self._places(piece, scales, name, dim) for dim in (0, 1))
        if (columns.unflatten(0, (-1, group)) != columns[::group, None]).any():
            raise FileFormatError(
                f"{self._directory}: tensor {name!r} has shape {list(scales.shape)}, other blocks "
                "than quantization_config says; the two do not belong together"
            )
        return scales[rows][:, columns[::group]].t()

    def _scales_of(self, piece: Piece) -> tuple[str, torch.Tensor]:
        """Name and values [.., ..] fp32 of the scales of the piece's matrix."""
        name = self.name_for(piece.source)
        assert name is not None
        scales = self._read(name)
        if not scales.is_floating_point():
            raise FileFormatError(
                f"{self._directory}: tensor {name!r} is {scales.dtype}, not scales of 8-bit floats "
                "that weft knows; use another checkpoint"
            )
        scales = scales.float()
        if not scales.isfinite().all():
            raise FileFormatError(
                f"{self._directory}: tensor {name!r} holds NaN or infinity; use another checkpoint"
            )
        return name, scales if scales.dim() > 1 else scales.reshape(-1, 1)

    def _places(self, piece: Piece, scales: torch.Tensor, name: str, dim: int) -> torch.Tensor:
        """Which scale each row (or column) of the piece has."""
        whole, count = piece.shape[dim], scales.shape[dim]
        start, stop = (piece.start, piece.stop) if dim == piece.dim else (0, whole)
        in_blocks = tuple(scales.shape) not in ((1, 1), (piece.shape[0], 1), (1, piece.shape[1]))
        size = self._block_size[dim] if in_blocks else whole // count
        if -(-whole // size) != count:
            raise FileFormatError(
                f"{self._directory}: tensor {name!r} has shape {list(scales.shape)}, which fits "
                f"neither rows nor blocks of {list(piece.shape)}"
            )
        return torch.arange(start, stop) // size

    @property
    def _block_size(self) -> tuple[int, int]:
        if self._block is None:
            self._block = _block_size(self._directory / "config.json")
        return self._block


def names_of_scales(source: str) -> tuple[str, ...]:
    """What the scales of a matrix may be called."""
    stem = source.removesuffix("weight")
    return tuple(stem + end for end in _OF_WEIGHTS)


def _block_size(config: Path) -> tuple[int, int]:
    """Rows and columns of a block with one scale, as config.json says; 128 x 128 is the field's."""
    given: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    quantization = given.get("quantization_config") or {}
    groups = (quantization.get("config_groups") or {}).values()
    sizes = [(group.get("weights") or {}).get("block_structure") for group in groups]
    rows, columns = quantization.get("weight_block_size") or next(filter(None, sizes), (128, 128))
    return int(rows), int(columns)
