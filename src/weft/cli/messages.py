"""Errors of the library in the words of the command line.

The library names its arguments in backticks (`prompt_tokens`); here each becomes the
option of the running command that sets it (--prompt), or its bare name where none does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from weft.cli.default_group import DEFAULT

_SHORTER: Final[Mapping[str, str]] = {
    "prompt_tokens": "prompt",
    "decode_tokens": "decode",
    "max_tokens": "decode",
    "stop_token_ids": "stop-id",
    "max_batch_requests": "max-batch",
    "timeout_s": "timeout",
    "num_gpus": "gpus",
    "ttft_ms": "ttft",
    "tpot_ms": "tpot",
    "num_nodes": "nnodes",
    "master_address": "master-addr",
    "settings": "set",
    "conventions": "engine",
    "gpus_per_node": "ranks-per-node",
    "accelerator": "beside",
}
"""Options that leave out what the argument's name says more."""


def in_options(text: str, command: Any) -> str:
    """``text`` with every `argument` written as the option of ``command``."""
    known = {name for parameter in command.params for name in parameter.opts}

    def option(match: re.Match[str]) -> str:
        name = match[1]
        choices = (f"--{name.replace('_', '-')}", f"--{_SHORTER.get(name, name)}")
        return next((choice for choice in choices if choice in known), name)

    return re.sub(r"`([a-z_]+)`", option, text)


def command_of(words: Sequence[str], root: Any) -> Any:
    """The command that a command line runs, as far as its first words go."""
    command = root
    for word in (*words, ""):
        below = getattr(command, "commands", {})
        if word in below:
            command = below[word]
        else:
            return below.get(DEFAULT, command)
    return command
