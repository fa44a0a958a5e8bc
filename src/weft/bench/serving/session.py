"""One benchmark from the first question to the server to the last record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weft.bench.serving.http_client import ConnectionPool, request_bytes
from weft.bench.serving.payloads import Target
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.bench.serving.runner import Load, RunOutcome, Snapshot, run_load
from weft.errors import EnvironmentUnavailable

_ANSWER_S = 30.0
_WARM_UP_INDEX = 1 << 40


class _WholeBody:
    """Collects a short answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def on_status(self, status: int) -> None:
        self.status = status

    def on_bytes(self, body: bytes, now_s: float) -> None:  # noqa: ARG002
        self.body += body

    def on_end(self, error: str | None, now_s: float) -> None:  # noqa: ARG002
        if not self.ended.done():
            self.ended.set_result(error)


async def _ask(target: Target, request: bytes) -> tuple[_WholeBody, str | None]:
    """One short request; the error is None where there was an answer."""
    pool = ConnectionPool(endpoint=target.endpoint)
    answer = _WholeBody()
    try:
        pool.submit(request, answer)
        return answer, await asyncio.wait_for(answer.ended, _ANSWER_S)
    except TimeoutError:
        return answer, f"no answer within {_ANSWER_S:g} s"
    finally:
        pool.close()


async def first_model(target: Target) -> str:
    """The first model that ``/v1/models`` names."""
    answer, error = await _ask(target, target.models_request())
    try:
        return str(json.loads(answer.body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        reason = error or f"status {answer.status} from /v1/models"
        raise EnvironmentUnavailable(
            f"{target.endpoint.authority}: {reason}; is the server up, does it need `api_key`, "
            "or give `model`"
        ) from None


async def is_ready(target: Target) -> bool:
    """Whether ``/ready`` answers 200."""
    request = request_bytes(target.endpoint, "/ready", None, target.headers)
    answer, error = await _ask(target, request)
    return error is None and answer.status == 200


async def switch_profile(target: Target, *, start: bool) -> dict[str, Any] | None:
    """Start or stop the server's profiler; what it answers, where that is an object."""
    answer, error = await _ask(target, target.profile_request(start=start))
    if error or answer.status != 200:
        reason = error or f"status {answer.status}"
        raise EnvironmentUnavailable(
            f"{target.endpoint.authority}: `profile`: {reason} from "
            f"/{'start' if start else 'stop'}_profile; does the server have its profiler on?"
        )
    try:
        document = json.loads(answer.body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


async def usable_target(target: Target, spec: RequestSpec, timeout_s: float) -> Target:
    """``target`` with only the request fields that the server accepts.

    One request is sent. Where the server rejects it with a 4xx, the same is tried without
    ``continuous_usage_stats`` and then also without ``ignore_eos``.
    """
    attempts = [target]
    if target.continuous_usage:
        attempts.append(replace(target, continuous_usage=False))
    if target.ignore_eos:
        attempts.append(replace(target, continuous_usage=False, ignore_eos=False))
    first_error = None
    for attempt in attempts:
        record = await _one(attempt, spec, timeout_s)
        if record.completed:
            return attempt
        first_error = first_error or record.error
        if not 400 <= record.status < 500 or record.status in {401, 403, 404, 429}:
            break
    raise EnvironmentUnavailable(
        f"{target.endpoint.authority}: the trial request failed: {first_error}"
    )


async def _one(target: Target, spec: RequestSpec, timeout_s: float) -> RequestRecord:
    load = Load(specs=[replace(spec, at_s=0.0)], timeout_s=timeout_s)
    outcome = await run_load(target, load, first_index=_WARM_UP_INDEX)
    return outcome.records[0]


async def warm_up(target: Target, load: Load, count: int) -> None:
    """Send ``count`` requests of the load's shapes that are not measured."""
    if count < 1:
        return
    specs = [replace(spec, at_s=None) for spec in load.specs[:count]]
    at_once = min(load.concurrency or 16, count)
    warm = Load(specs=specs, concurrency=at_once, timeout_s=load.timeout_s)
    await run_load(target, warm, first_index=_WARM_UP_INDEX)


async def benchmark(
    target: Target,
    load: Load,
    *,
    num_warm_up: int,
    profile: bool = False,
    on_progress: Callable[[Snapshot], None] | None = None,
) -> tuple[Target, RunOutcome, dict[str, Any] | None]:
    """Trial, warm-up, run. Returns the target as it was really asked, all records, the profile.

    ``profile`` starts and stops the server's profiler around the run. Raises
    EnvironmentUnavailable where the server does not answer the trial request.
    """
    if not target.model:
        target = replace(target, model=await first_model(target))
    usable = await usable_target(target, load.specs[0], load.timeout_s)
    await warm_up(usable, load, num_warm_up)
    if not profile:
        return usable, await run_load(usable, load, on_progress=on_progress), None
    await switch_profile(usable, start=True)
    outcome = await run_load(usable, load, on_progress=on_progress)
    return usable, outcome, await switch_profile(usable, start=False)


def run_event_loop(main: Any) -> Any:
    """``asyncio.run`` on uvloop where it is installed: a third of the processor time."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)
