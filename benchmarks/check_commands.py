"""The commands that `weft plan` prints, read by the engines' own parsers of argument lines.

    python benchmarks/check_commands.py commands > commands.jsonl      (in weft's environment)
    PYTHONPATH=VLLM   python benchmarks/check_commands.py vllm commands.jsonl
    PYTHONPATH=SGLANG python benchmarks/check_commands.py sglang commands.jsonl

VLLM and SGLANG are folders with the unpacked wheels (vllm 0.33.0, sglang 0.5.23) and what they
import; modules that exist on GPU machines alone (triton and the like) are stood in for, since a
parser needs none of them. Prints how many lines were read, and every one that was not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import itertools
import json
import shlex
import sys
import types
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

MODELS = ("llama-3.1-70b", "qwen3-235b-a22b", "deepseek-v3", "gpt-oss-120b")
MISSING = {
    "vllm": ("uvicorn",),
    "sglang": ("triton", "PIL", "IPython", "requests", "aiohttp"),
}


def commands() -> None:
    from weft import api
    from weft.errors import LayoutError
    from weft.planning.launch_commands import launch_commands

    seen = set()
    for model, gpus, objective, weights in itertools.product(
        MODELS, (1, 8, 16, 64), ("latency", "throughput"), (None, "float8_e4m3fn")
    ):
        try:
            plan = api.plan(model, gpus, objective=objective, weights=weights)
        except LayoutError:
            continue
        question = plan.question
        for candidate in plan.ranked:
            layout = candidate.layout
            requests = None if candidate.serving is None else -(-candidate.concurrency // layout.dp)
            found = launch_commands(
                question.spec,
                layout,
                plan.cluster.gpus_per_node,
                weights,
                requests,
                tokens=question.workload.prompt_tokens + question.workload.decode_tokens,
                batched_tokens=question.machine.profile.server_batched_tokens,
            )
            seen |= {(item.engine, item.command) for item in found}
    for engine, command in sorted(seen):
        if engine in ("vllm", "sglang") and not command.startswith("("):
            print(json.dumps([engine, command]))


class StandIn(types.ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "9.9.9"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, engine: str) -> None:
        self.missing = MISSING[engine]

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] not in self.missing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        return StandIn(spec.name)

    def exec_module(self, module: Any) -> None:
        """It has nothing to run."""


def parser_of(engine: str) -> argparse.ArgumentParser:
    sys.meta_path.append(Finder(engine))
    if engine == "sglang":
        parser = argparse.ArgumentParser()
        importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
        return parser
    platforms = importlib.import_module("vllm.platforms")
    cpu = importlib.import_module("vllm.platforms.cpu")
    platforms._current_platform = cpu.CpuPlatform()  # type: ignore[attr-defined]  # noqa: SLF001
    found: argparse.ArgumentParser = importlib.import_module(
        "vllm.utils.argparse_utils"
    ).FlexibleArgumentParser()
    importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs.add_cli_args(found)
    found.add_argument("--headless", action="store_true")
    found.add_argument("model_tag", nargs="?")
    return found


def words_of(command: str) -> list[str]:
    """The arguments on the second node, as a shell would give them."""
    text = command.split("  #", maxsplit=1)[0].replace(
        "$([ $NODE_RANK = 0 ] || echo --headless)", "--headless"
    )
    for name, value in (("$MODEL", "m"), ("$NODE_RANK", "1"), ("$HEAD", "10.0.0.1")):
        text = text.replace(name, value)
    words = shlex.split(text)
    return words[words.index("serve") + 1 :] if "serve" in words else words[3:]


def check(engine: str, path: Path) -> int:
    parser, good, bad = parser_of(engine), 0, 0
    for line in path.read_text(encoding="utf-8").splitlines():
        name, command = json.loads(line)
        if name != engine:
            continue
        try:
            parsed, unknown = parser.parse_known_args(words_of(command))
        except SystemExit:
            parsed, unknown = None, ["refused"]
        rows = getattr(parsed, "max_num_batched_tokens", None)
        if rows and rows < (parsed.max_num_seqs or 0):
            unknown = ["more requests than rows of a step"]
        good += not unknown
        if unknown:
            bad += 1
            print(f"{unknown}: {command}")
    print(f"{engine}: {good} commands read, {bad} not")
    return bad


if __name__ == "__main__":
    if sys.argv[1] == "commands":
        commands()
    else:
        sys.exit(check(sys.argv[1], Path(sys.argv[2])) > 0)
