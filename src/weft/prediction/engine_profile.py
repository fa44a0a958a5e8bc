"""Engine profiles: what an engine adds to the device's work, fitted from named measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Final, Literal, get_args

from weft.errors import FileFormatError, UserError
from weft.prediction.quantity import Quantity
from weft.scheduling.policy import Admission, Policy
from weft.vocabulary.conventions import ENGINES

SCHEMA: Final = "weft.engine-profile/1"

AllReduceRule = Literal["vllm", "nccl", "weft", "fastest"]

PROFILES: Final = ("weft", "vllm", "vllm-v0", "sglang", "trtllm")


@dataclass(frozen=True, kw_only=True)
class EngineProfile:
    """One engine.

    conventions: whose schedule of collectives (weft.vocabulary.conventions).
    all_reduce: the rule that picks its all-reduce (weft.prediction.collectives).
    max_batched_tokens: tokens of one step at most; longer prefills are split
    (server_batched_tokens: the same in a server). max_requests,
    counts_decode, mixes, admission, steps_ahead: as in :class:`weft.scheduling.policy.Policy`.
    memory_fraction: part of the device memory that the engine takes.
    request_us: host time of a request before its first step and after its first token.
    server_us: host time of a request through an HTTP server, beside request_us;
    server_step_us, server_sequence_us: time that a step, and each of its sequences, takes
    more in a server than in a batch (answers streamed, sampling by the client's wishes);
    server_prompt_step_us: the same for a step with prompts; server_prompt_us: time of each
    request at the server's door, one after another; server_token_us: of each token of its prompt,
    beside others'.
    arrival_us: between two requests of one batch becoming visible to the scheduler.
    schedule_us: host time between two steps put in flight (pipeline start only).
    ranks_us: extra host time of a prefill with more than one rank (dispatch to workers).
    decode_graph, prompt_graph: decode steps, and those with prompts, are one captured graph (else
    they are launched layer by layer).
    sequence_parallel, context_parallel: whether the engine has it (the latter while decoding).
    early_launch: a pipeline stage launches while the stages before it still work (the host
    does not wait for what it receives).
    layer_launches: kernels that the host launches a layer outside a whole-step graph.
    step_us: device-visible time of a step outside the layers (metadata, sampling).
    sequence_us: the same for every sequence of the step.
    hop_us: fixed time of one pipeline hop beside the fabric's own latency.
    stage_us: time that a step's exchange with the other stages occupies each stage.
    quantize_kernels: those a layer that bring rows into 8 or 4 bits where the weights are.
    layer_kernels: elementwise kernels a layer; fused_kernels: those of them that the
    engine does inside its all-reduce (with tensor parallelism).
    row_call_share, kernel_call_share: fixed time of a matrix product of one row, and of
    attention and elementwise kernels, over the accelerator's. cache_rate_share,
    matmul_rate_share: rate of decode attention and of large products over the accelerator's.
    kernel_tables: whose curves of the device time products, experts and attention, first to last;
    product_share, experts_share, attention_share, communication_share: what a whole step takes
    of what single kernels and all-reduces take; experts_layer_us: routing and gathering.
    large_messages_share: part of the links' rate that is left to large messages in a prefill;
    nccl_pair_share, nccl_share: what NCCL alone reaches of it with two ranks and with more.
    custom_us, custom_rank_us, custom_two_us, custom_two_rank_us, custom_share: fixed time, time a
    rank (in one phase, in two), and part of the links' rate of vLLM's own all-reduce.
    reserved_gb: device memory for context, graphs and communication buffers.
    tpot_spread, ttft_spread: relative standard deviation of the time model's own error for
    one batch.
    """

    name: str
    conventions: str
    all_reduce: AllReduceRule
    max_batched_tokens: int
    server_batched_tokens: int
    max_requests: int
    counts_decode: bool
    mixes: bool
    admission: Admission
    steps_ahead: int
    memory_fraction: float
    decode_graph: bool
    prompt_graph: bool
    early_launch: bool
    sequence_parallel: bool
    context_parallel: bool
    quantize_kernels: int
    layer_kernels: int
    fused_kernels: int
    kernel_tables: tuple[str, ...]
    product_share: Quantity
    experts_share: Quantity
    experts_layer_us: Quantity
    attention_share: Quantity
    communication_share: Quantity
    large_messages_share: Quantity
    nccl_pair_share: Quantity
    nccl_share: Quantity
    custom_us: Quantity
    custom_rank_us: Quantity
    custom_two_us: Quantity
    custom_two_rank_us: Quantity
    custom_share: Quantity
    request_us: Quantity
    server_us: Quantity
    server_prompt_step_us: Quantity
    server_prompt_us: Quantity
    server_token_us: Quantity
    server_step_us: Quantity
    server_sequence_us: Quantity
    arrival_us: Quantity
    schedule_us: Quantity
    ranks_us: Quantity
    layer_launches: Quantity
    step_us: Quantity
    sequence_us: Quantity
    hop_us: Quantity
    stage_us: Quantity
    row_call_share: Quantity
    kernel_call_share: Quantity
    cache_rate_share: Quantity
    matmul_rate_share: Quantity
    reserved_gb: Quantity
    tpot_spread: Quantity
    ttft_spread: Quantity

    @property
    def policy(self) -> Policy:
        """How a server of this engine fills its steps."""
        return Policy(
            max_tokens=self.server_batched_tokens,
            max_requests=self.max_requests,
            counts_decode=self.counts_decode,
            mixes=self.mixes,
            admission=self.admission,
            steps_ahead=self.steps_ahead,
        )

    def quantities(self) -> dict[str, Quantity]:
        """Every fitted number by name, for reports of provenance."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Quantity)}


@cache
def profile_named(name: str) -> EngineProfile:
    """The built-in profile, or a UserError that lists the names."""
    if name not in PROFILES:
        raise UserError(f"`engine` {name}: no latency profile; choose one of {', '.join(PROFILES)}")
    return profile_from_json(_document(name))


def _document(name: str) -> dict[str, Any]:
    """The file of a built-in profile; what it leaves out is as in the one that it is ``like``."""
    file = resources.files("weft.prediction") / "data" / "engines" / f"{name}.json"
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    base = document.pop("like", None)
    return document if base is None else _document(base) | document


def profile_from_json(document: Any) -> EngineProfile:
    """The profile that a ``weft.engine-profile/1`` object describes; unknown keys are errors."""
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise FileFormatError(f"is not an engine profile (schema is not {SCHEMA!r})")
    odd = sorted(set(document) ^ {"schema", *(field.name for field in fields(EngineProfile))})
    if odd:
        raise FileFormatError(f"engine profile: missing or unknown key {odd[0]!r}")
    if document["conventions"] not in ENGINES or document["all_reduce"] not in get_args(
        AllReduceRule
    ):
        raise FileFormatError("engine profile: unknown conventions or all_reduce rule")
    return EngineProfile(**{key: _value(key, document[key]) for key in document if key != "schema"})


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return Quantity.from_json(name, value)
    return tuple(value) if isinstance(value, list) else value
