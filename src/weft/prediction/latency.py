"""Latency, throughput and memory of one batch of equal requests on one layout.

TTFT is the time until every request of the batch has its first token, TPOT the time
between two tokens afterwards, (E2E - TTFT) / (n - 1); both as `LLM.generate` shows them.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.errors import LayoutError, WorkloadError
from weft.prediction.memory import Memory, memory_of
from weft.prediction.operators import StepLoad
from weft.prediction.pipeline import Fill, decode_period, fill
from weft.prediction.prediction import Machine, PhaseTime, Prediction
from weft.prediction.quantity import Estimate, root_sum_square
from weft.prediction.step_time import StageTime, StepTimer, merge_collectives
from weft.vocabulary.conventions import engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload


def step_timer(
    spec: ModelSpec, layout: Layout, machine: Machine, speculation: Speculation | None = None
) -> StepTimer:
    """The timer of single steps of ``spec`` on ``layout``."""
    return StepTimer(
        spec=machine.stored(spec),
        layout=layout,
        accelerator=machine.accelerator,
        pricing=machine.pricing,
        profile=machine.profile,
        speculation=speculation,
        cache_dtype=machine.cache_dtype,
    )


def predict_latency(
    spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
) -> Prediction:
    """Predict one batch of ``workload`` on each replica of ``layout``.

    The batch is split over the dp replicas. The prediction is made whether or not it
    fits; ``memory.fits`` says so. Raises LayoutError and WorkloadError as the schedule does,
    and those of :func:`check_question`.
    """
    check_question(spec, layout, workload)
    return _Predictor(spec, layout, workload, machine).prediction()


def check_question(spec: ModelSpec, layout: Layout, workload: Workload) -> None:
    """Raise LayoutError or WorkloadError for what cannot run or cannot be predicted."""
    layout.check_model(spec)
    if layout.tp % layout.ep and (layout.ep % layout.tp or layout.pp > 1):
        raise LayoutError(
            f"`ep` {layout.ep}: times are predicted where it divides `tp` {layout.tp}, or is a "
            "multiple of it without `pp`"
        )
    longest = workload.prompt_tokens + workload.decode_tokens
    if longest > spec.max_position:
        raise WorkloadError(
            f"`prompt_tokens` {workload.prompt_tokens}: with `decode_tokens` {workload.decode_tokens} it is "
            f"{longest} tokens, but {spec.name} has {spec.max_position} positions"
        )


class _Predictor:
    def __init__(
        self, spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
    ) -> None:
        self.spec, self.machine = machine.stored(spec), machine
        self.layout, self.workload = layout, workload
        self.profile = machine.profile
        self.batch = -(-workload.batch // layout.dp)
        self.timer = step_timer(spec, layout, machine)

    def prediction(self) -> Prediction:
        start = self._fill()
        period = decode_period(self.batch, self.layout.pp, self._decode_stages)
        host_us = self._host_us()
        prefill = self._prefill_phase(host_us, start)
        decode = _phase(period.time_us, period.steps, with_hops=period.follows_path)
        steps = self.workload.num_decode_steps
        ttft = Estimate.around(prefill.total_ms, self._ttft_deviation_ms(prefill, host_us))
        tpot = Estimate.around(decode.total_ms, self._tpot_deviation_ms(decode))
        e2e = _sum_of(ttft, tpot, steps)
        return Prediction(
            spec=self.spec,
            layout=self.layout,
            workload=self.workload,
            machine=self.machine,
            memory=self._memory(),
            ttft_ms=ttft,
            tpot_ms=tpot,
            e2e_ms=e2e,
            tokens_per_s=e2e.inverse(1e3 * self.workload.batch * self.workload.decode_tokens),
            prefill=prefill,
            decode=decode,
        )

    def _host_us(self) -> float:
        many = self.layout.tp * self.layout.pp > 1
        return self.profile.request_us.value + many * self.profile.ranks_us.value

    def _fill(self) -> Fill:
        limit = self.profile.max_batched_tokens / self.workload.prompt_tokens
        profile = self.profile
        if limit > 1 and engine_named(profile.conventions).micro_batches:
            limit = min(limit, -(-self.batch // self.layout.pp))
        return fill(
            self.batch,
            limit if limit < 1 else float(int(limit)),
            self.layout.pp,
            arrival_us=profile.arrival_us.value if self.layout.pp > 1 else 0.0,
            schedule_us=profile.schedule_us.value if self.layout.pp > 1 else 0.0,
            stage_times=self._prefill_stages,
            early_launch=profile.early_launch,
        )

    def _prefill_stages(self, requests: float) -> list[StageTime]:
        prompt = self.workload.prompt_tokens
        step = StepLoad(
            prefill_tokens=requests * prompt,
            prefill_sequences=max(requests, 1.0),
            prefill_context=prompt / 2,
        )
        return self.timer.stages(step)

    def _decode_stages(self, sequences: float) -> list[StageTime]:
        context = self.workload.prompt_tokens + self.workload.decode_tokens / 2
        return self.timer.stages(StepLoad(decode_sequences=sequences, decode_context=context))

    def _memory(self) -> Memory:
        load = self.workload
        rows = min(self.batch * load.prompt_tokens, self.profile.max_batched_tokens)
        return memory_of(
            self.timer.shard,
            tokens=self.batch * (load.prompt_tokens + load.decode_tokens),
            accelerator=self.machine.accelerator,
            profile=self.profile,
            step_rows=rows,
            sequences=self.batch,
        )

    def _prefill_phase(self, host_us: float, start: Fill) -> PhaseTime:
        """Parts of the busiest stage over all steps of the start; the rest is waiting."""
        times = [self._prefill_stages(chunk) for chunk in start.chunks]
        columns = list(zip(*times, strict=True))
        busiest = max(columns, key=lambda steps: sum(step.busy_us for step in steps))
        return _phase(host_us + start.first_tokens_us, busiest, with_hops=False)

    def _tpot_deviation_ms(self, phase: PhaseTime) -> float:
        device, profile = self.machine.accelerator, self.profile
        model = profile.tpot_spread.value * phase.total_ms
        return root_sum_square(
            (
                model,
                phase.matmul_ms * device.stream_gb_s.spread,
                phase.attention_ms * device.cache_gb_s.spread,
                phase.attention_ms * profile.cache_rate_share.spread,
                phase.elementwise_ms * device.elementwise_call_us.spread,
                phase.elementwise_ms * profile.kernel_call_share.spread,
                phase.fixed_ms * profile.step_us.spread,
                phase.waiting_ms * profile.hop_us.spread * 0.2,
                _communication_deviation_ms(phase),
            )
        )

    def _ttft_deviation_ms(self, phase: PhaseTime, host_us: float) -> float:
        device, profile = self.machine.accelerator, self.profile
        model = profile.ttft_spread.value * phase.total_ms
        return root_sum_square(
            (
                model,
                phase.matmul_ms * device.matmul_tflops.spread,
                phase.matmul_ms * profile.matmul_rate_share.spread,
                phase.attention_ms * device.attention_tflops.spread,
                phase.elementwise_ms * device.copy_gb_s.spread,
                host_us * 1e-3 * profile.request_us.spread,
                phase.waiting_ms * profile.arrival_us.spread * 0.2,
                _communication_deviation_ms(phase),
            )
        )


def _phase(total_us: float, steps: Sequence[StageTime], *, with_hops: bool) -> PhaseTime:
    """Add up the steps on the critical path; what they do not explain is waiting."""
    items = [item for step in steps for item in step.collectives]
    if with_hops:
        items += [item for step in steps for item in step.sends]
    matmul = sum(step.parts.matmul_us + step.parts.experts_us for step in steps)
    attention = sum(step.parts.attention_us for step in steps)
    elementwise = sum(step.parts.elementwise_us for step in steps)
    fixed = sum(step.fixed_us for step in steps)
    communication = sum(item.time_us for item in items)
    known = matmul + attention + elementwise + fixed + communication
    return PhaseTime(
        total_ms=total_us * 1e-3,
        matmul_ms=matmul * 1e-3,
        attention_ms=attention * 1e-3,
        elementwise_ms=elementwise * 1e-3,
        fixed_ms=fixed * 1e-3,
        communication_ms=communication * 1e-3,
        waiting_ms=max(0.0, total_us - known) * 1e-3,
        collectives=tuple(merge_collectives(items)),
    )


def _communication_deviation_ms(phase: PhaseTime) -> float:
    return sum(item.deviation_us for item in phase.collectives) * 1e-3


def _sum_of(ttft: Estimate, tpot: Estimate, steps: int) -> Estimate:
    """TTFT and ``steps`` decode steps; the model's errors of the two are taken as one."""
    return Estimate(
        value=ttft.value + steps * tpot.value,
        low=ttft.low + steps * tpot.low,
        high=ttft.high + steps * tpot.high,
    )
