"""Python that runs step by step: whoever has the turn decides when another one goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final


class Gone(BaseException):
    """What an actor that is lost gets in place of its next step."""


class Actor:
    """A thread that goes on only while another one waits for it in ``step``."""

    def __init__(self) -> None:
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self.done = True
        threading.Thread(target=self._run, daemon=True).start()

    def start(self, work: Callable[[], object]) -> None:
        """Its first step begins ``work``."""
        self._work, self.done, self._lost = work, False, False
        self.moved, self.error = False, None

    def step(self) -> bool:
        """Let it go on to its next pause; whether it did something there."""
        self.moved = False
        if not self.done:
            self._go.release()
            self._back.acquire()
        return self.moved

    def pause(self, *, moved: bool = True) -> None:
        """Called by the actor itself: others may go on before what comes next."""
        self.moved |= moved
        self._back.release()
        self._go.acquire()
        if self._lost:
            raise Gone

    def lose(self) -> None:
        """It goes on no more."""
        self._lost = True
        while not self.done:
            self.step()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            self.error: BaseException | None = None
            try:
                if not self._lost:
                    self._work()
            except Gone:
                pass
            except BaseException as error:
                self.error = error
            self.done, self.moved = True, True
            self._back.release()


_idle: Final[list[Actor]] = []


def hire(work: Callable[[], object]) -> Actor:
    """An actor for ``work``; threads are used again."""
    actor = _idle.pop() if _idle else Actor()
    actor.start(work)
    return actor


def dismiss(actors: list[Actor]) -> None:
    """End them all."""
    for actor in actors:
        actor.lose()
    _idle.extend(actors)
    actors.clear()


def module_of(path: Path, name: str, patches: tuple[tuple[str, str, str], ...]) -> ModuleType:
    """A fresh module from a file's text with the faults of ``patches`` planted."""
    text = path.read_text()
    for file, old, new in patches:
        if file == path.name:
            assert text.count(old) == 1, f"{file} does not hold {old!r} once"
            text = text.replace(old, new)
    module = ModuleType(name)
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module
