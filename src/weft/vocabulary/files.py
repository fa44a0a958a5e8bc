"""The one writer of files: a whole file or nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from weft.errors import EnvironmentUnavailable, UserError


def write_file(path: Path, content: Any) -> Path:
    """Write text, bytes or, for anything else, its JSON; returns ``path``.

    A temporary file beside it takes its name when it is complete. Raises UserError where the
    path cannot be written, EnvironmentUnavailable where the disk is full.
    """
    if not isinstance(content, str | bytes):
        content = json.dumps(content, indent=1, allow_nan=False) + "\n"
    data = content.encode() if isinstance(content, str) else content
    target = _checked_target(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        kind = EnvironmentUnavailable if full else UserError
        raise kind(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _checked_target(path: Path) -> Path:
    try:
        target = path.resolve()
        exists, is_file, has_parent = target.exists(), target.is_file(), target.parent.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r}: not a usable file name ({error})") from None
    if not has_parent:
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
    if exists and not is_file:
        raise UserError(f"{path}: exists and is not a regular file; name another file")
    return target
