"""Bytes of a trace file in bounded pieces, gzip or not, as far as the file goes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from weft.errors import FileFormatError

PIECE_BYTES: Final = 2 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"


class TraceBytes:
    """The content of one file; ``truncated`` says afterwards that a gzip stream broke off.

    ``on_bytes`` is told how many bytes of the file were read each time.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._on_bytes = on_bytes or (lambda _: None)
        self.truncated = False

    def pieces(self) -> Iterator[bytes]:
        """Yield pieces of at most about PIECE_BYTES; FileFormatError where the file is unreadable."""
        try:
            with self.path.open("rb") as file:
                is_gzip = file.read(2) == _GZIP_MAGIC
                file.seek(0)
                yield from self._inflated(file) if is_gzip else self._plain(file)
        except OSError as error:
            raise FileFormatError(f"{self.path}: cannot read it ({error.strerror})") from None

    def _inflated(self, file: IO[bytes]) -> Iterator[bytes]:
        """Members one after another; padding after the last."""
        member, packed = zlib.decompressobj(31), b""
        try:
            while (packed := packed or self._read(file, PIECE_BYTES // 4)) or not member.eof:
                if member.eof:
                    packed = packed.lstrip(b"\0")
                    member = zlib.decompressobj(31) if packed else member
                piece = b"" if member.eof else member.decompress(packed, PIECE_BYTES)
                if not (piece or packed):
                    break
                packed = member.unconsumed_tail or member.unused_data
                if piece:
                    yield piece
            self.truncated = not member.eof
        except zlib.error:
            self.truncated = True

    def _plain(self, file: IO[bytes]) -> Iterator[bytes]:
        while piece := self._read(file, PIECE_BYTES):
            yield piece

    def _read(self, file: IO[bytes], size: int) -> bytes:
        content = file.read(size)
        self._on_bytes(len(content))
        return content
