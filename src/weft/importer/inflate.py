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
        member = zlib.decompressobj(31)
        packed, between_members = b"", False
        try:
            while packed or (packed := self._read(file, PIECE_BYTES // 4)):
                if between_members and not packed.strip(b"\0"):
                    packed = b""
                    continue
                piece = member.decompress(packed, PIECE_BYTES)
                packed, between_members = member.unconsumed_tail, False
                if piece:
                    yield piece
                if member.eof:
                    packed, member, between_members = (
                        member.unused_data,
                        zlib.decompressobj(31),
                        True,
                    )
            yield from () if between_members else self._rest(member)
        except zlib.error:
            self.truncated = True

    def _rest(self, member: zlib._Decompress) -> Iterator[bytes]:
        while piece := member.decompress(b"", PIECE_BYTES):
            yield piece
        self.truncated = not member.eof

    def _plain(self, file: IO[bytes]) -> Iterator[bytes]:
        while piece := self._read(file, PIECE_BYTES):
            yield piece

    def _read(self, file: IO[bytes], size: int) -> bytes:
        content = file.read(size)
        self._on_bytes(len(content))
        return content
