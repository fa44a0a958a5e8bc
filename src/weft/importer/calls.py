"""Join the layers of each collective into one call.

record + kernel     by "External id" (torch.distributed over NCCL)
operator + kernel   by "External id" (pynccl and custom all-reduce: no record)
kernel alone        a call by itself (replays of CUDA graphs)
operator + gloo     in order of time: the annotation runs on a worker thread
operator + nccl:*   the same, where the records have no names (before torch 2.1)
kernel + launch     by "correlation", where no "External id" leads to the call
operator around anything above: the same call, and not counted again
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import prod
from typing import Any, Final

from weft.importer.events import Args, dtype_name
from weft.importer.layers import Layer, Layers
from weft.importer.rank_trace import Size, Source, TracedCall
from weft.importer.sources import Kind, operation_of

MOST_RANKS: Final = 1 << 16
_MOST_NESTED: Final = 6
_NO_TRANSFER: Final = frozenset({"wait", "init", "coalesced", "start_coalescing", "end_coalescing"})
_KERNEL_DTYPES: Final = (
    (re.compile(r"_bf16|bfloat16", re.IGNORECASE), "bfloat16"),
    (re.compile(r"_f16|_half|__half|float16", re.IGNORECASE), "float16"),
    (re.compile(r"_[iu]32"), "int32"),
    (re.compile(r"_f32|_float|<float", re.IGNORECASE), "float32"),
)


def join_layers(layers: Layers) -> tuple[list[TracedCall], dict[str, int]]:
    """All calls in order of issue, and counts of layers that move no bytes (``wait``)."""
    joiner = _Joiner(layers)
    calls = sorted(joiner.calls(), key=lambda call: call.issued_us)
    return calls, dict(joiner.ignored)


class _Joiner:
    def __init__(self, layers: Layers) -> None:
        self.records = layers.by_kind[Kind.RECORD]
        self.kernels = layers.by_kind[Kind.KERNEL]
        self.shared = layers.by_kind[Kind.SHARED_MEMORY]
        self.gloo = sorted(layers.by_kind[Kind.GLOO], key=_start)
        is_named = any(record.args.collective for record in self.records)
        self.backend = [] if is_named else sorted(layers.by_kind[Kind.BACKEND], key=_start)
        self.wrappers = sorted(layers.by_kind[Kind.WRAPPER], key=_start)
        self.graphs, self.launches = layers.graphs, layers.launches
        self.ignored: Counter[str] = Counter()
        self._leaf_starts: dict[bytes, list[float]] = {}

    def calls(self) -> Iterator[TracedCall]:
        kernels_of = self._kernels_by_external_id()
        yield from self._recorded(kernels_of)
        for layer in self.shared:
            self._mark(layer)
            yield _shared_memory_call(layer)
        yield from self._wrapped_kernels(kernels_of)
        lone = [kernel for kernels in kernels_of.values() for kernel in kernels]
        launches = self.launches.of({kernel.args.correlation for kernel in lone})
        launched = self._by_launch(lone, launches)
        linked = {id(kernel) for kernels in launched.values() for kernel in kernels}
        yield from (
            self._lone_kernel(kernel, launches) for kernel in lone if id(kernel) not in linked
        )
        operators = [w for w in self.wrappers if w.name.startswith("c10d::")]
        waiting = [w for w in operators if not self._holds_leaf(w)]
        for layer in [*self.gloo, *self.backend]:
            yield self._annotated(layer, waiting, launched.get(id(layer), []))
        yield from self._lone_wrappers()

    def _mark(self, layer: Layer) -> None:
        """Remember a counted call's start, so that operators around it are not counted."""
        insort(self._leaf_starts.setdefault(layer.thread, []), layer.start_us)

    def _kernels_by_external_id(self) -> dict[Any, list[Layer]]:
        found: dict[Any, list[Layer]] = defaultdict(list)
        for number, kernel in enumerate(self.kernels):
            identity = kernel.args.external_id
            found[("lone", number) if identity is None else identity].append(kernel)
        return found

    def _recorded(self, kernels_of: dict[Any, list[Layer]]) -> Iterator[TracedCall]:
        for record in self.records:
            if self.backend and not record.args.collective:
                continue
            self._mark(record)
            name = str(record.args.collective or "unnamed")
            if name in _NO_TRANSFER:
                self.ignored[name] += 1
                continue
            kernels = kernels_of.pop(record.args.external_id, [])
            call = _call(record, operation_of(name) or name, "record", kernels)
            _set_parameters(call, record.args)
            yield call

    def _wrapped_kernels(self, kernels_of: dict[Any, list[Layer]]) -> Iterator[TracedCall]:
        """Operators whose own id is on a kernel: one call each, sized by the operator's inputs."""
        for wrapper in self.wrappers:
            identity = wrapper.args.external_id
            if identity is None or identity not in kernels_of:
                continue
            kernels = kernels_of.pop(identity)
            self._mark(wrapper)
            call = _call(wrapper, wrapper.operation, "kernel", kernels)
            _set_dims(call, wrapper.args)
            self._take_rows(call, wrapper)
            call.dtype = call.dtype or _kernel_dtype(kernels[0].name)
            yield call

    def _lone_kernel(self, kernel: Layer, launches: dict[int, tuple[bytes, float]]) -> TracedCall:
        call = _call(kernel, kernel.operation, "kernel", [kernel])
        launch = launches.get(kernel.args.correlation)
        call.host_us = self.graphs.get(kernel.args.correlation, launch and launch[1])
        call.dtype = _kernel_dtype(kernel.name)
        if kernel.args.collective:
            call.operation = operation_of(str(kernel.args.collective)) or call.operation
            _set_parameters(call, kernel.args)
        return call

    def _by_launch(
        self, kernels: Sequence[Layer], launches: dict[int, tuple[bytes, float]]
    ) -> dict[int, list[Layer]]:
        """Kernels that the host launched within an annotation, by ``id`` of the annotation."""
        threads: dict[bytes, list[Layer]] = defaultdict(list)
        for annotation in self.backend:
            threads[annotation.thread].append(annotation)
        found: dict[int, list[Layer]] = defaultdict(list)
        for kernel in kernels:
            thread, time = launches.get(kernel.args.correlation, (b"", 0.0))
            index = bisect_right(threads[thread], time, key=_start) - 1
            if index >= 0 and time <= threads[thread][index].end_us:
                found[id(threads[thread][index])].append(kernel)
        return found

    def _annotated(
        self, layer: Layer, waiting: list[Layer], kernels: Sequence[Layer]
    ) -> TracedCall:
        """The call that a backend announced by an annotation, with the operator that asked."""
        operator = _take_matching(waiting, layer)
        source: Source = "gloo" if layer.kind is Kind.GLOO else "backend"
        call = _call(layer, layer.operation, source, kernels)
        if layer.kind is Kind.BACKEND:
            self._mark(layer)
        _set_dims(call, layer.args)
        if operator is not None:
            self._mark(operator)
            call.host_us = operator.start_us
            if call.source == "gloo" and call.operation == "send":
                _begin_with(call, operator)
            _refine_by_operator(call, operator)
        return call

    def _take_rows(self, call: TracedCall, inner: Layer) -> None:
        """The operator around the one that launched the kernel may know the rows of a flat tensor."""
        if call.input_shape is None or len(call.input_shape) > 1:
            return
        last = bisect_right(self.wrappers, inner.start_us, key=_start)
        for outer in reversed(self.wrappers[max(0, last - _MOST_NESTED) : last]):
            dims = _tensors(outer.args)
            if (
                outer is not inner
                and outer.thread == inner.thread
                and outer.end_us >= inner.end_us
                and dims
                and prod(dims[0][0]) == call.input_shape[0]
            ):
                call.input_shape = dims[0][0]

    def _lone_wrappers(self) -> Iterator[TracedCall]:
        """Operators with nothing of theirs below: traces without kernels or records."""
        nearest: dict[bytes, float] = {}
        for wrapper in reversed(self.wrappers):
            inner = nearest.get(wrapper.thread)
            if self._holds_leaf(wrapper) or (inner is not None and inner <= wrapper.end_us):
                continue
            nearest[wrapper.thread] = wrapper.start_us
            call = _call(wrapper, wrapper.operation, "operator", [])
            _set_dims(call, wrapper.args)
            yield call

    def _holds_leaf(self, wrapper: Layer) -> bool:
        starts = self._leaf_starts.get(wrapper.thread)
        if starts is None:
            return False
        index = bisect_left(starts, wrapper.start_us)
        return index < len(starts) and starts[index] <= wrapper.end_us


def _begin_with(call: TracedCall, operator: Layer) -> None:
    """Gloo hands the bytes over before it announces a send, so these may be there earlier."""
    call.duration_us += call.start_us - operator.start_us
    call.start_us = operator.start_us


def _start(layer: Layer) -> float:
    return layer.start_us


def _call(layer: Layer, operation: str, source: Source, kernels: Sequence[Layer]) -> TracedCall:
    """A call with the times of its kernels, or of the layer itself where it has none."""
    spans = kernels or [layer]
    start, traffic = min(map(_start, spans)), layer.traffic or spans[0].traffic
    end = max(span.end_us for span in spans)
    return TracedCall(
        operation=operation,
        source=source,
        name=spans[0].name,
        start_us=start,
        duration_us=spans[0].duration_us if len(spans) == 1 else end - start,
        host_us=layer.start_us,
        function_id=layer.args.function_id,
        on_device=bool(kernels),
        variant=traffic.variant if traffic else None,
        fused=traffic.fused if traffic else None,
    )


def _set_parameters(call: TracedCall, args: Args) -> None:
    """Sizes and group as torch.distributed recorded them."""
    call.dtype = dtype_name(args.dtype)
    call.input_elements = _count(args.in_elements)
    call.output_elements = _count(args.out_elements)
    call.group_name = None if args.group_name is None else str(args.group_name)
    call.group_description = (
        args.group_description if isinstance(args.group_description, str) else None
    )
    size = _count(args.group_size)
    call.group_size = size if size and size <= MOST_RANKS else None
    call.ranks = _ranks(args)
    peer = args.source if call.operation == "recv" else args.destination
    call.peer = peer if isinstance(peer, int) else None
    if args.dims is not None and call.input_elements is None:
        _set_dims(call, args)
    if _is_shape(args.out_dims):
        call.output_shape = tuple(args.out_dims)


def _ranks(args: Args) -> tuple[int, ...] | None:
    """Global ranks of the group; a list that torch shortened is rebuilt from start and stride."""
    text = args.group_ranks if isinstance(args.group_ranks, str) else ""
    if "..." not in text:
        ranks = tuple(int(number) for number in re.findall(r"\d+", text))
        return ranks or None
    start, stride, size = map(_count, (args.group_start, args.group_stride, args.group_size))
    if start is None or not stride or size is None or size > MOST_RANKS:
        return None
    return tuple(range(start, start + stride * size, stride))


def _set_dims(call: TracedCall, args: Args) -> None:
    """Shapes from the recorded inputs: the first tensor, or every one of the first list."""
    tensors = next(iter(_arguments(args)), None) or _tensors(args)[:1]
    if len(tensors) > 1:
        call.tensors = tuple(tensors)
    if tensors:
        call.input_shape, call.dtype = tensors[0]


def _tensors(args: Args) -> list[Size]:
    """Shape and dtype of every tensor among the inputs, lists of tensors unfolded."""
    return [tensor for tensors in _arguments(args) for tensor in tensors]


def _arguments(args: Args) -> list[list[Size]]:
    """The tensors of each input: one, those of a list, or none."""
    dims = args.dims if isinstance(args.dims, list) else []
    types = args.types if isinstance(args.types, list) else []
    return [
        [
            (tuple(shape), dtype_name(kind))
            for shape in ([entry] if _is_shape(entry) else entry)
            if _is_shape(shape) and shape
        ]
        for entry, kind in zip_longest(dims, types[: len(dims)])
        if isinstance(entry, list)
    ]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value
    )


def _shared_memory_call(layer: Layer) -> TracedCall:
    """``_C::shm_*`` of vLLM on CPU: (handle, input[, output]) or (handle, tensor list, peer)."""
    call = _call(layer, layer.operation, "shared-memory", [])
    tensors = _tensors(layer.args)
    if layer.operation in ("send", "recv"):
        call.tensors = tuple(tensors) or None
    elif tensors:
        call.input_shape, call.dtype = tensors[0]
        if layer.operation == "all_gather" and len(tensors) > 1:
            call.output_shape = tensors[1][0]
    return call


_SAME_UNDER_GLOO: Final = {"reduce_scatter": "all_reduce"}


def _take_matching(waiting: list[Layer], annotation: Layer) -> Layer | None:
    """The earliest operator that began before the annotation and asks for its operation."""
    for position, operator in enumerate(waiting):
        if operator.start_us > annotation.start_us:
            return None
        wanted = operator.operation
        if annotation.operation in (wanted, _SAME_UNDER_GLOO.get(wanted)):
            return waiting.pop(position)
    return None


def _refine_by_operator(call: TracedCall, operator: Layer) -> None:
    """Gloo reduces-and-scatters by an all-reduce: the call is what the program asked for."""
    call.operation = operator.operation
    tensors = _tensors(operator.args)
    if operator.name.endswith("_base_") and len(tensors) > 1:
        call.output_shape, call.input_shape = tensors[0][0], tensors[1][0]
        call.group_size = call.group_size or _ratio(call)
    elif call.input_shape is None:
        _set_dims(call, operator.args)


def _ratio(call: TracedCall) -> int | None:
    """How many ranks share what is gathered or scattered, by the sizes of both sides."""
    if call.operation not in ("all_gather", "reduce_scatter"):
        return None
    small, large = sorted((prod(call.input_shape or (0,)), prod(call.output_shape or (0,))))
    return large // small if small and not large % small else None


def _kernel_dtype(name: str) -> str | None:
    return next((dtype for pattern, dtype in _KERNEL_DTYPES if pattern.search(name)), None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
