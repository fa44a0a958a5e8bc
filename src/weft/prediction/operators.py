"""What one rank computes in one step: operators with their work, timed by a roofline.

Where the device has curves of the engine's kernels (weft.prediction.kernels) they time it.
Elsewhere a matrix product takes its fixed call time plus a smooth maximum (3-norm) of memory and
compute time: near the ridge the two overlap badly, far from it the larger one decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from weft.prediction.engine_device import EngineDevice
from weft.prediction.layer_work import (
    AttentionWork,
    ExpertsWork,
    FeedForwardWork,
    Layers,
    layers_of,
)
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.weight_formats import FORMATS, WeightFormat

Part = Literal["matmul", "attention", "elementwise"]

_RIDGE_NORM: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """One engine step of one replica (or of one micro-batch of it).

    Decoding sequences each bring one token and read ``decode_context`` tokens of cache;
    ``prefill_tokens`` of ``prefill_sequences`` prompts read ``prefill_context`` tokens
    each on average (half the chunk, plus what went before). Averages may be fractions.
    everywhere: rows of all replicas that share experts; 0: the others' steps are like this one.
    decode_rows: rows of each decoding sequence (its last token, and drafts to be checked).
    """

    decode_sequences: float = 0.0
    decode_context: float = 0.0
    prefill_tokens: float = 0.0
    prefill_sequences: float = 0.0
    prefill_context: float = 0.0
    everywhere: float = 0.0
    decode_rows: int = 1

    @property
    def rows(self) -> float:
        return self.decode_sequences * self.decode_rows + self.prefill_tokens

    @property
    def logit_rows(self) -> float:
        return self.decode_sequences * self.decode_rows + self.prefill_sequences

    @property
    def sequences(self) -> float:
        return self.decode_sequences + self.prefill_sequences

    def part(self, parts: int) -> StepLoad:
        """One of ``parts`` equal steps that do this one's work together."""
        return StepLoad(
            decode_sequences=self.decode_sequences / parts,
            decode_context=self.decode_context,
            prefill_tokens=self.prefill_tokens / parts,
            prefill_sequences=self.prefill_sequences / parts,
            prefill_context=self.prefill_context,
            decode_rows=self.decode_rows,
        )


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Device time in µs by part; experts_us is of routed experts, beside matmul_us."""

    matmul_us: float = 0.0
    experts_us: float = 0.0
    attention_us: float = 0.0
    elementwise_us: float = 0.0

    @property
    def total_us(self) -> float:
        return self.matmul_us + self.experts_us + self.attention_us + self.elementwise_us

    def plus(self, other: PartTimes, times: float = 1.0) -> PartTimes:
        return PartTimes(
            matmul_us=self.matmul_us + times * other.matmul_us,
            experts_us=self.experts_us + times * other.experts_us,
            attention_us=self.attention_us + times * other.attention_us,
            elementwise_us=self.elementwise_us + times * other.elementwise_us,
        )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a model that one rank of a tensor-parallel group holds.

    Activations, embedding and head are in the model's own type, the cache too unless
    ``cache_dtype`` says otherwise. Experts over ``ep`` ranks are shared by the replicas that these
    are spread over.
    """

    spec: ModelSpec
    layout: Layout
    cache_dtype: str | None = None

    @property
    def tp(self) -> int:
        return self.layout.tp

    @property
    def sharing(self) -> int:
        """Replicas that share experts."""
        return max(1, self.layout.ep // self.tp)

    @cached_property
    def layers(self) -> Layers:
        """The kinds of layers and how many there are of each."""
        return layers_of(self.spec, self.tp, self.layout.ep)

    @property
    def activation_bytes(self) -> int:
        return element_bytes(self.spec.dtype)

    @property
    def cache_bytes(self) -> float:
        """One element of the cache, as a share of the ranks that hold other positions."""
        return element_bytes(self.cache_dtype or self.spec.dtype) / self.layout.dcp

    @property
    def cache_bytes_per_token(self) -> float:
        """Cache of one position in all layers on this rank."""
        return self.cache_bytes * sum(count * work.cache_elements for count, work, _ in self.layers)


def matmul_us(
    rows: float,
    n: float,
    k: float,
    form: WeightFormat,
    activation_bytes: int,
    device: EngineDevice,
) -> float:
    """Time of [rows, k] x [k, n] with weights in ``form``."""
    traffic = n * k * form.bytes + rows * (n + k) * activation_bytes
    operations = 2 * rows * n * k
    known = device.product_curve(form)
    if known is not None and device.kernels is not None:
        roof = device.kernels.roofline_us(traffic, operations, form)
        return device.product_share * known.time_us(rows, roof)
    return device.call_us(rows) + _roofline_us(traffic, operations, form, device)


def _roofline_us(
    traffic: float, operations: float, form: WeightFormat, device: EngineDevice
) -> float:
    rate = device.matmul_tflops
    if form.rate and device.matmul8_tflops:
        rate = device.matmul8_tflops
    memory = traffic * 1e-3 / device.stream_gb_s
    compute = operations * 1e-6 / rate
    return float((memory**_RIDGE_NORM + compute**_RIDGE_NORM) ** (1 / _RIDGE_NORM))


def layer_times(shard: Shard, step: StepLoad, device: EngineDevice) -> PartTimes:
    """The mean transformer layer of ``step`` on one rank."""
    total = PartTimes()
    for count, attention, feed_forward in shard.layers:
        layer = _layer_times(shard, step, device, attention, feed_forward)
        total = total.plus(layer, count / shard.spec.num_layers)
    return total


def _layer_times(
    shard: Shard,
    step: StepLoad,
    device: EngineDevice,
    attention: AttentionWork,
    feed_forward: FeedForwardWork,
) -> PartTimes:
    rows, size = step.rows, shard.activation_bytes
    products = sum(
        matmul_us(rows, n, k, form, size, device)
        for n, k, form in (*attention.products, *feed_forward.products)
    )
    experts = 0.0
    if feed_forward.experts is not None:
        experts = _experts_us(shard, step, feed_forward.experts, device)
    return PartTimes(
        matmul_us=products,
        experts_us=experts,
        attention_us=_attention_us(shard, step, attention, device),
        elementwise_us=_elementwise_us(shard, rows, attention, feed_forward, device),
    )


def _experts_us(shard: Shard, step: StepLoad, work: ExpertsWork, device: EngineDevice) -> float:
    """Grouped products over the experts that at least one token chose (uniform routing).

    With expert parallelism a rank holds some of the experts; the tokens of the busiest rank are
    taken as the mean.
    """
    hidden, form, size = shard.spec.hidden_size, work.format, shard.activation_bytes
    rows = step.everywhere or step.rows * shard.sharing
    touched = work.held * (1 - (1 - work.chosen / work.total) ** rows)
    pairs = rows * work.chosen * work.held / work.total
    weights = touched * hidden * work.inner * form.bytes
    moved = pairs * (hidden + work.inner) * size
    operations = 2 * pairs * hidden * work.inner
    known = device.experts_curve(form)
    if known is not None and device.kernels is not None:
        roof = device.kernels.roofline_us(3 * weights + 2 * moved, 3 * operations, form)
        return device.experts_share * known.time_us(rows, roof) + device.experts_layer_us
    return device.experts_layer_us + sum(
        device.matmul_call_us
        + _roofline_us(count * weights + moved, count * operations, form, device)
        for count in (2, 1)
    )


def _attention_us(shard: Shard, step: StepLoad, work: AttentionWork, device: EngineDevice) -> float:
    """Decode reads the cache; prefill computes, the faster the longer its context is."""
    total, window, dtype = 0.0, work.window, shard.cache_dtype or shard.spec.dtype
    if step.decode_sequences:
        context = min(step.decode_context, window or step.decode_context)
        pairs = step.decode_sequences * context
        operations = pairs * step.decode_rows * work.decode_operations
        decode = device.attention_line(work, "decode", dtype)
        total += decode.us(pairs * work.cache_elements * shard.cache_bytes, operations)
        state = 2 * step.decode_sequences * work.state_bytes
        total += state * 1e-3 / device.cache_gb_s
    if step.prefill_tokens:
        context = min(step.prefill_context, window or step.prefill_context)
        prefill = device.attention_line(work, "prefill", dtype)
        operations = step.prefill_tokens * context * work.prefill_operations
        total += prefill.prompt_us(operations, 2 * context)
        state = 2 * step.prefill_tokens * work.state_bytes / _STATE_CHUNK
        total += state * 1e-3 / device.cache_gb_s
    return total


_STATE_CHUNK: Final = 64
"""Tokens of a prompt between two uses of a linear attention's state."""


def _elementwise_us(
    shard: Shard,
    rows: float,
    attention: AttentionWork,
    feed_forward: FeedForwardWork,
    device: EngineDevice,
) -> float:
    """Bytes read and written by norms, rotary embedding, cache write and activation."""
    hidden, size = shard.spec.hidden_size, shard.activation_bytes
    norms = 8 * hidden / shard.layout.sp
    quantize, kernels = 0.0, device.layer_kernels + attention.kernels
    is_small = min(form.bytes for *_, form in attention.products) < size
    if is_small and device.quantize_kernels:
        quantize = 1.5 * (2 * hidden + attention.width / 2 + feed_forward.width / 3)
        kernels += device.quantize_kernels
    traffic = rows * (norms + attention.width + feed_forward.width + quantize) * size
    return kernels * device.elementwise_call_us + traffic * 1e-3 / device.copy_gb_s


def embedding_times(shard: Shard, step: StepLoad, device: EngineDevice) -> PartTimes:
    """Look up and write the token rows (first stage)."""
    traffic = 2 * step.rows * shard.spec.hidden_size * shard.activation_bytes
    fixed = device.elementwise_call_us
    return PartTimes(elementwise_us=fixed + traffic * 1e-3 / device.copy_gb_s)


def head_times(shard: Shard, step: StepLoad, device: EngineDevice) -> PartTimes:
    """Final norm and logits of the sequences that sample (last stage)."""
    shape = (shard.spec.vocab_size / shard.tp, shard.spec.hidden_size)
    form, size = FORMATS[shard.spec.dtype], shard.activation_bytes
    return PartTimes(
        matmul_us=matmul_us(step.logit_rows, *shape, form, size, device),
        elementwise_us=device.elementwise_call_us,
    )
