"""What one rank computes in one step: operators with their work, timed by a roofline.

A matrix product takes its fixed call time plus a smooth maximum (3-norm) of memory and
compute time: near the ridge the two overlap badly, far from it the larger one decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from weft.prediction.engine_device import EngineDevice
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.model_spec import ModelSpec

Part = Literal["matmul", "attention", "elementwise"]

_RIDGE_NORM: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One engine step of one replica (or of one micro-batch of it).

    Decoding sequences each bring one token and read ``decode_context`` tokens of cache;
    ``prefill_tokens`` of ``prefill_sequences`` prompts read ``prefill_context`` tokens
    each on average (half the chunk, plus what went before). Averages may be fractions.
    """

    decode_sequences: float = 0.0
    decode_context: float = 0.0
    prefill_tokens: float = 0.0
    prefill_sequences: float = 0.0
    prefill_context: float = 0.0

    @property
    def rows(self) -> float:
        return self.decode_sequences + self.prefill_tokens

    @property
    def sequences(self) -> float:
        return self.decode_sequences + self.prefill_sequences


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Device time in µs by part."""

    matmul_us: float = 0.0
    attention_us: float = 0.0
    elementwise_us: float = 0.0

    @property
    def total_us(self) -> float:
        return self.matmul_us + self.attention_us + self.elementwise_us

    def plus(self, other: PartTimes, times: float = 1.0) -> PartTimes:
        return PartTimes(
            matmul_us=self.matmul_us + times * other.matmul_us,
            attention_us=self.attention_us + times * other.attention_us,
            elementwise_us=self.elementwise_us + times * other.elementwise_us,
        )


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a model that one rank of a tensor-parallel group holds.

    weight_dtype: type of the layers' weights (a 16-bit type or float8_e4m3fn);
    activations, cache and head stay in the model's own type.
    """

    spec: ModelSpec
    tp: int
    sp: int
    ep: int
    weight_dtype: str

    @property
    def activation_bytes(self) -> int:
        return element_bytes(self.spec.dtype)

    @property
    def weight_bytes(self) -> int:
        return element_bytes(self.weight_dtype)

    @property
    def query_size(self) -> float:
        return self.spec.num_heads * self.spec.head_dim / self.tp

    @property
    def kv_size(self) -> float:
        """Elements of one token's keys (or values) on this rank; KV heads are copied beyond tp."""
        return max(self.spec.num_kv_heads / self.tp, 1.0) * self.spec.head_dim

    @property
    def cache_bytes_per_token_layer(self) -> float:
        return 2 * self.kv_size * self.activation_bytes


def matmul_us(
    rows: float, n: float, k: float, shard_bytes: tuple[int, int], device: EngineDevice
) -> float:
    """Time of [rows, k] x [k, n]; ``shard_bytes`` are the bytes of a weight and of an activation."""
    weight_bytes, activation_bytes = shard_bytes
    traffic = n * k * weight_bytes + rows * (n + k) * activation_bytes
    operations = 2 * rows * n * k
    return device.call_us(rows) + _roofline_us(traffic, operations, weight_bytes, device)


def _roofline_us(
    traffic: float, operations: float, weight_bytes: int, device: EngineDevice
) -> float:
    rate = device.matmul_tflops
    if weight_bytes == 1 and device.matmul8_tflops:
        rate = device.matmul8_tflops
    memory = traffic * 1e-3 / device.stream_gb_s
    compute = operations * 1e-6 / rate
    return float((memory**_RIDGE_NORM + compute**_RIDGE_NORM) ** (1 / _RIDGE_NORM))


def layer_times(shard: Shard, step: Step, device: EngineDevice) -> PartTimes:
    """One transformer layer of ``step`` on one rank."""
    spec, rows = shard.spec, step.rows
    sizes = (shard.weight_bytes, shard.activation_bytes)
    qkv = shard.query_size + 2 * shard.kv_size
    products = matmul_us(rows, qkv, spec.hidden_size, sizes, device)
    products += matmul_us(rows, spec.hidden_size, shard.query_size, sizes, device)
    products += _feed_forward_us(shard, rows, device)
    return PartTimes(
        matmul_us=products,
        attention_us=_attention_us(shard, step, device),
        elementwise_us=_elementwise_us(shard, rows, device),
    )


def _feed_forward_us(shard: Shard, rows: float, device: EngineDevice) -> float:
    spec = shard.spec
    sizes = (shard.weight_bytes, shard.activation_bytes)
    if not spec.is_moe:
        width = spec.intermediate_size / shard.tp
        up = matmul_us(rows, 2 * width, spec.hidden_size, sizes, device)
        return up + matmul_us(rows, spec.hidden_size, width, sizes, device)
    router = matmul_us(rows, spec.num_experts, spec.hidden_size, (2, 2), device)
    return router + _experts_us(shard, rows, device)


def _experts_us(shard: Shard, rows: float, device: EngineDevice) -> float:
    """Two grouped products over the experts that at least one token chose (uniform routing).

    Without expert parallelism every rank holds a slice of all experts, with it 1/ep of them;
    the tokens of the busiest expert-parallel rank are taken as the mean.
    """
    spec = shard.spec
    chosen = spec.experts_per_token / spec.num_experts
    touched = spec.num_experts * (1 - (1 - chosen) ** rows)
    share = 1 / (shard.ep if shard.ep > 1 else shard.tp)
    weights = touched * spec.hidden_size * spec.expert_intermediate_size * share
    pairs = rows * spec.experts_per_token * share
    activations = pairs * (spec.hidden_size + spec.expert_intermediate_size)
    operations = 2 * pairs * spec.hidden_size * spec.expert_intermediate_size
    if shard.ep == 1:
        pairs = rows * spec.experts_per_token
        activations = pairs * (spec.hidden_size + spec.expert_intermediate_size * share)
    times = [
        device.matmul_call_us
        + _roofline_us(
            count * weights * shard.weight_bytes + activations * shard.activation_bytes,
            count * operations,
            shard.weight_bytes,
            device,
        )
        for count in (2, 1)
    ]
    return sum(times)


def _attention_us(shard: Shard, step: Step, device: EngineDevice) -> float:
    """Decode reads the cache; prefill computes, the faster the longer its context is."""
    window = shard.spec.sliding_window
    total = device.attention_call_us
    if step.decode_sequences:
        context = min(step.decode_context, window or step.decode_context)
        traffic = step.decode_sequences * context * shard.cache_bytes_per_token_layer
        total += traffic * 1e-3 / device.cache_gb_s
    if step.prefill_tokens:
        context = min(step.prefill_context, window or step.prefill_context)
        operations = 4 * step.prefill_tokens * context * shard.query_size
        ramp = device.attention_ramp_tokens
        rate = device.attention_tflops * 2 * context / (2 * context + ramp)
        total += operations * 1e-6 / rate
    return total


def _elementwise_us(shard: Shard, rows: float, device: EngineDevice) -> float:
    """Bytes read and written by norms, rotary embedding, cache write and activation."""
    spec, b = shard.spec, shard.activation_bytes
    norms = 2 * 4 * spec.hidden_size / shard.sp
    rotary = 2 * (shard.query_size + shard.kv_size) * (2 if spec.qk_norm else 1)
    cache = 4 * shard.kv_size
    width = spec.intermediate_size / shard.tp
    if spec.is_moe:
        width = spec.experts_per_token * spec.expert_intermediate_size / shard.tp
    activation = 3 * width
    quantize = 0.0
    kernels = device.layer_kernels + spec.qk_norm
    if shard.weight_bytes == 1:
        quantize = 1.5 * (2 * spec.hidden_size + shard.query_size + width)
        kernels += 4
    traffic = rows * (norms + rotary + cache + activation + quantize) * b
    fixed = kernels * device.elementwise_call_us
    return fixed + traffic * 1e-3 / device.copy_gb_s


def embedding_times(shard: Shard, step: Step, device: EngineDevice) -> PartTimes:
    """Look up and write the token rows (first stage)."""
    traffic = 2 * step.rows * shard.spec.hidden_size * shard.activation_bytes
    fixed = device.elementwise_call_us
    return PartTimes(elementwise_us=fixed + traffic * 1e-3 / device.copy_gb_s)


def head_times(shard: Shard, step: Step, device: EngineDevice) -> PartTimes:
    """Final norm and logits of the sequences that sample (last stage)."""
    sizes = (shard.activation_bytes, shard.activation_bytes)
    shape = (shard.spec.vocab_size / shard.tp, shard.spec.hidden_size)
    return PartTimes(
        matmul_us=matmul_us(step.sequences, *shape, sizes, device),
        elementwise_us=device.elementwise_call_us,
    )
