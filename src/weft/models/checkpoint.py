"""A checkpoint's files: where each tensor is, whether it is what a parameter wants, its values.

Files are opened once and stay open while parameters are filled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from weft.errors import FileFormatError, ModelConfigError
from weft.layers.float8_matrix import FLOAT8, quantised
from weft.layers.shards import Piece, ScaledParameter, ShardedParameter
from weft.models.float8 import STORED_FLOAT8, Float8Scales, names_of_scales
from weft.models.mxfp4 import MXFP4, PackedStack, packed_names

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_DTYPES: Final = ("F64", "F32", "BF16", "F16")


class Checkpoint:
    """The tensors of ``model.safetensors`` or its sharded index in ``directory``.

    rounds: matrices that are to be held in 8 bits may be stored in more. Every method raises
    FileFormatError naming the file or tensor that is missing, damaged or not as it should be.
    """

    def __init__(self, directory: Path, *, rounds: bool = False) -> None:
        self.directory, self._rounds = directory, rounds
        self._open_files: dict[Path, Any] = {}
        self.files = self._weight_files()
        self._scales = Float8Scales(directory, self.files, self._whole)

    def path_of(self, piece: Piece) -> Path:
        """The file with the piece's tensor, stored as it is or packed."""
        path = self.files.get(piece.source) or self.files.get(packed_names(piece.source)[0])
        if path is None:
            raise FileFormatError(
                f"{self.directory}: the checkpoint has no tensor {piece.source!r}"
            )
        return path

    def check(self, parameter: ShardedParameter, piece: Piece) -> None:
        """Type and shape, from the file's header alone."""
        source, path = self._source(piece), self.path_of(piece)
        shape, dtype = tuple(source.get_shape()), source.get_dtype()
        scaled = dtype == STORED_FLOAT8 and piece.index is None
        if scaled and self._scales.name_for(piece.source) is None:
            names = " or ".join(map(repr, names_of_scales(piece.source)))
            raise FileFormatError(
                f"{path}: tensor {piece.source!r} is {dtype} and has no {names} beside it; "
                "download it again"
            )
        if dtype not in (*_DTYPES, MXFP4) and not scaled:
            raise FileFormatError(
                f"{path}: tensor {piece.source!r} is {dtype}; weft reads {', '.join(_DTYPES)}, "
                f"and matrices of {STORED_FLOAT8} with scales: use another checkpoint"
            )
        if isinstance(parameter, ScaledParameter) and dtype != STORED_FLOAT8 and not self._rounds:
            raise FileFormatError(
                f"{path}: tensor {piece.source!r} is {dtype}, quantization_config says "
                f"{STORED_FLOAT8}; the two do not belong together"
            )
        if self._rounds and dtype == STORED_FLOAT8:
            raise FileFormatError(
                f"{path}: tensor {piece.source!r} is {dtype}, and config.json has no "
                "quantization_config; the two do not belong together"
            )
        if shape != piece.shape:
            raise FileFormatError(
                f"{path}: tensor {piece.source!r} has shape {list(shape)}, "
                f"config.json says {list(piece.shape)}"
            )

    def fill(self, parameter: ShardedParameter, piece: Piece) -> None:
        """Read the piece into its place."""
        values = piece.read_from(self._source(piece))
        if isinstance(parameter, ScaledParameter):
            finite = self._fill_scaled(parameter, piece, values)
        else:
            if values.dtype == FLOAT8:
                values = self._scales.weights(piece, values)
            place(parameter, piece, values)
            target = parameter.data.narrow(piece.dim, piece.at, piece.stop - piece.start)
            finite = _is_finite(target)
        if not finite:
            dtype = str(parameter.dtype).removeprefix("torch.")
            other = "" if isinstance(parameter, ScaledParameter) else " or `dtype`"
            raise FileFormatError(
                f"{self.path_of(piece)}: tensor {piece.source!r} holds NaN or infinity as {dtype}; "
                f"use another checkpoint{other}"
            )

    def _fill_scaled(self, parameter: ScaledParameter, piece: Piece, values: torch.Tensor) -> bool:
        """Whether all that was filled in are numbers."""
        if values.dtype == FLOAT8:
            scales = self._scales.rows(piece, parameter.group)
            parameter.place(piece, values, scales)
            return _is_finite(values.float())
        everything = replace(piece, start=0, stop=piece.whole_shape[piece.dim])
        whole = everything.read_from(self._source(piece))
        place_rounded(parameter, piece, whole)
        return _is_finite(whole.float())

    def _source(self, piece: Piece) -> Any:
        """What gives slices of the piece's tensor."""
        path = self.path_of(piece)
        if piece.source in self.files:
            return self._open(path).get_slice(piece.source)
        blocks, scales = packed_names(piece.source)
        beside = self.files.get(scales)
        if beside is None or piece.index is None:
            raise FileFormatError(f"{path}: tensor {blocks!r} has no {scales!r} beside it")
        return PackedStack(self._open(path).get_slice(blocks), self._open(beside).get_slice(scales))

    def _whole(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._open(self.files[name]).get_tensor(name)
        return found

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._open_files:
            try:
                self._open_files[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise FileFormatError(
                    f"{path}: not a readable safetensors file ({error}); download it again"
                ) from None
        return self._open_files[path]

    def _weight_files(self) -> dict[str, Path]:
        """The file of every tensor; of the two forms the one that transformers would take."""
        single, index = self.directory / _SINGLE, self.directory / _INDEX
        if single.is_file():
            return dict.fromkeys(self._open(single).keys(), single)
        if not index.is_file():
            raise ModelConfigError(
                f"{self.directory}: has neither {_SINGLE} nor {_INDEX}; use `weights` dummy for "
                "random weights"
            )
        found: dict[str, Path] = {}
        for path in _indexed_files(index):
            for name in self._open(path).keys():  # noqa: SIM118 - a file, not a dict
                if name in found:
                    raise FileFormatError(
                        f"{self.directory}: tensor {name!r} is in {found[name].name} and in "
                        f"{path.name}; download the checkpoint again"
                    )
                found[name] = path
        return found


def place(parameter: ShardedParameter, piece: Piece, values: torch.Tensor) -> None:
    """The piece's values into their rows or columns of the parameter."""
    parameter.data.narrow(piece.dim, piece.at, piece.stop - piece.start).copy_(values)


def place_rounded(parameter: ScaledParameter, piece: Piece, whole: torch.Tensor) -> None:
    """The piece of a ``whole`` matrix in 8 bits: rows have the same scale on every rank."""
    values, scales = quantised(whole)
    held = values.narrow(piece.dim, piece.start, piece.stop - piece.start)
    if piece.dim == 0:
        scales = scales[:, piece.start : piece.stop]
    parameter.place(piece, held, scales.expand(held.shape[1] // parameter.group, -1))


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


def _is_finite(values: torch.Tensor) -> bool:
    """One sum (cheaper than the copy), which NaN and infinity survive; else element by element."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
