"""What every rank's process does around its work: die with its launcher, report its error."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from weft.errors import FrozenRankError, WeftError
from weft.launch.environment import is_verbose
from weft.launch.siblings import LOOK_S, FrozenRanks


@contextmanager
def worker(render: Callable[[str], str] = str) -> Iterator[None]:
    """Run one rank's work; an error is written for the launcher and ends the process.

    ``render`` turns the text of an error into what its reader is shown.

    Signals end the rank at once, also while it waits inside a collective; so does the
    end of its launcher. A rank that is done ends here: nothing after the context runs.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    try:
        yield
        _leave()
    except WeftError as error:
        report_and_exit(type(error)(render(str(error))), error.exit_code)
    except Exception as error:  # noqa: BLE001 - whatever ends a rank must be reported
        if is_verbose():
            traceback.print_exc()
        report_and_exit(error, 3)


def _leave() -> NoReturn:
    """End a rank that is done without tearing the interpreter down.

    A thread inside the rendezvous store at that moment would abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _die_with(parent: int) -> None:
    """End with the launcher; under torchrun, which does not see that, name a frozen rank."""
    frozen = FrozenRanks(parent)
    is_watched = _is_watched()
    while os.getppid() == parent:
        time.sleep(LOOK_S)
        if not is_watched:
            try:
                frozen.check()
            except FrozenRankError as error:
                report_and_exit(error)
    os._exit(3)


def _is_watched() -> bool:
    """Whether the launcher is weft's own, which names frozen ranks and prints errors itself."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith("weft")


def report_and_exit(error: Exception, exit_code: int = 3) -> NoReturn:
    """Leave the error where torch's launcher looks for it, or on stderr, and exit."""
    text = str(error) if isinstance(error, WeftError) else f"{type(error).__name__}: {error}"
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {
            "timestamp": str(int(time.time())),
            "py_callstack": traceback.format_exc() if is_verbose() else text,
            "exit_code": exit_code,
            "text": text,
            "follows": getattr(error, "follows", False),
            "names_rank": getattr(error, "names_rank", False),
        }
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump({"message": {"message": text, "extraInfo": extra}}, file)
    if not path or not _is_watched():
        print(f"weft: error: rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
