"""The first steps of an engine, of nobody's requests.

What is compiled, planned or allocated at first use is so before a request waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.engine.request import SamplingParams
from weft.errors import EnvironmentUnavailable

if TYPE_CHECKING:
    from weft.engine.engine import Engine

_TOKENS = 4


def warm_up(engine: Engine) -> None:
    """Run the longest step of prompts, then prompts beside decodes; greedy, drawn and filtered.

    Every rank makes the same steps. Raises EnvironmentUnavailable where the longest step fails.
    """
    engine.runner.make_plans(engine.config.max_batch_tokens)
    length = _longest_prompt(engine)
    drawn = SamplingParams(max_tokens=_TOKENS, ignore_eos=True, temperature=1.0)
    kinds = (
        (length, SamplingParams(max_tokens=_TOKENS, ignore_eos=True, temperature=0.0)),
        (length, drawn),
        (1, SamplingParams(max_tokens=_TOKENS, ignore_eos=True, temperature=1.0, top_p=0.5)),
        (length, drawn),
    )
    requests = []
    with engine.scheduler.prefix.off():
        for number, (count, sampling) in enumerate(kinds):
            requests.append(engine.add(number, [0] * count, sampling))
            engine.step()
        while engine.has_work:
            engine.step()
    engine.scheduler.num_drafted = engine.scheduler.num_accepted = 0
    failed = next((request.error for request in requests if request.error), None)
    if failed is not None:
        raise EnvironmentUnavailable(
            f"a step of {length} rows fails: {failed}; lower `max_batch_tokens` or `memory_share`"
        )


def _longest_prompt(engine: Engine) -> int:
    """As many rows as one step takes and all requests together find room for in the cache."""
    room = min(engine.spec.max_position, engine.scheduler.pool.capacity_tokens // 4) - _TOKENS
    return max(1, min(engine.config.max_batch_tokens, room))
