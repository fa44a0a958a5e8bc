"""Shapes for calls whose trace gives less: element counts, the peer's side, or the model.

Provenance: ``shape`` where the trace recorded dimensions (of this rank or of the
peer that sent), ``metadata`` where it recorded element counts (or nothing: the shape
is None), ``model`` where only the model and the step label tell the size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from weft.importer.labels import StepLabel
from weft.importer.rank_trace import Size, TracedCall
from weft.vocabulary.conventions import Conventions, bytes_of_dispatched_row
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Provenance

_RESIZING: Final = ("gather", "scatter", "all_gather", "reduce_scatter")
_OWN: Final = re.compile(r"(dispatch|combine)_rows\b")
"""weft's kernels of the exchange, whose sizes are those of its schedule."""
_ROWS_OF_TOKENS: Final = ("all_reduce", "reduce_scatter", "send", "recv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sized:
    """Shapes of one call and where they come from; None where nothing tells them."""

    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    dtype: str | None
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Sizer:
    """What may be used to size a call: the model where known, the layout, the engine's habits."""

    spec: ModelSpec | None
    layout: Layout
    conventions: Conventions | None
    activation_dtype: str | None

    @property
    def dtype(self) -> str | None:
        return self.activation_dtype or (self.spec.dtype if self.spec else None)

    def size(self, call: TracedCall, label: StepLabel | None, group_size: int | None) -> Sized:
        """Shapes of ``call`` over a group of ``group_size`` ranks in the step of ``label``."""
        shape = call.input_shape
        is_flat = shape is not None and len(shape) == 1 and call.output_shape is None
        if call.input_elements or is_flat:
            return self._from_elements(call, label, group_size)
        if shape is not None:
            output = call.output_shape or _output(call.operation, shape, group_size)
            return Sized(
                input_shape=shape,
                output_shape=output,
                dtype=call.dtype or self.dtype,
                provenance="shape",
            )
        return self._from_model(call, label, group_size)

    def exchanged(self, call: TracedCall, label: StepLabel, everywhere: int | None) -> list[Sized]:
        """Shapes of a call around experts: of three where one kernel gathers rows and choices.

        ``everywhere``: rows of all expert-parallel ranks together, where it is known.
        """
        own = -(-(label.num_tokens or 0) // self.layout.tp)
        every = self.layout.ep * own if call.operation == "all_to_all" else everywhere
        is_told = call.input_shape is not None or call.input_elements is not None
        if not is_told and self.spec is not None and (own_kernel := _OWN.match(call.name)):
            return [self._by_own_kernel(own_kernel[1], self.spec, every)]
        if is_told or self.spec is None or call.operation not in _RESIZING:
            sized = self.size(call, label, self.layout.ep)
            sized = replace(sized, dtype=None) if call.variant else sized
            return [self._by_rows(call, sized, own, every)]
        hidden, chosen = self.spec.hidden_size, self.spec.experts_per_token
        unknown = Sized(input_shape=None, output_shape=None, dtype=None, provenance="model")
        found = []
        for width, dtype in ((hidden, self.dtype), (chosen, "float32"), (chosen, "int32")):
            shapes = ((own, width), (every, width)) if every else (None, None)
            if call.operation == "reduce_scatter":
                shapes = shapes[::-1]
            found.append(
                replace(unknown, input_shape=shapes[0], output_shape=shapes[1], dtype=dtype)
            )
        return found[:1] if call.operation == "reduce_scatter" else found

    def _by_own_kernel(self, name: str, spec: ModelSpec, rows: int | None) -> Sized:
        """Room for all rows of a rank at each: bytes of rows with their choices, or sums."""
        width, dtype = spec.hidden_size, spec.dtype
        if name == "dispatch":
            row_bytes = width * element_bytes(dtype)
            width, dtype = bytes_of_dispatched_row(row_bytes, spec.experts_per_token), "uint8"
        shape = (rows, width) if rows else None
        return Sized(input_shape=shape, output_shape=shape, dtype=dtype, provenance="model")

    def _by_rows(self, call: TracedCall, sized: Sized, own: int, every: int | None) -> Sized:
        """The same sizes with the rows of the exchange, where they divide the elements."""
        if sized.input_shape is None or call.input_shape is not None or not own:
            return sized
        given = prod(sized.input_shape)
        taken = call.output_elements or prod(sized.output_shape or (given,))
        rows = {"all_gather": (own, None), "reduce_scatter": (None, own)}
        before, after = rows.get(call.operation, (every, every))
        width = given // before if before else taken // (after or 1)
        if not width or given % width or taken % width:
            return sized
        return replace(
            sized, input_shape=(given // width, width), output_shape=(taken // width, width)
        )

    def _from_elements(
        self, call: TracedCall, label: StepLabel | None, group_size: int | None
    ) -> Sized:
        flat, is_flat = call.input_shape or (), call.input_elements is None
        elements = prod(flat) if is_flat else call.input_elements or 0
        rows = self._rows_of_experts(call, label, elements) or _rows(call, label, elements)
        shape = (elements,) if rows is None else (rows, elements // rows)
        if (call.operation == "gather" and rows == 1) or self._is_flat_ids(call):
            shape = (elements,)
        output = _output(call.operation, shape, group_size, joined_columns=call.gathers_slices)
        if call.output_elements and output and prod(output) != call.output_elements:
            output = (call.output_elements,)
        return Sized(
            input_shape=shape,
            output_shape=call.output_shape or output,
            dtype=call.dtype or (self.dtype if is_flat else None),
            provenance="shape" if is_flat else "metadata",
        )

    def _is_flat_ids(self, call: TracedCall) -> bool:
        return (
            call.operation == "broadcast"
            and self.conventions is not None
            and self.conventions.sampled_ids == "broadcast"
        )

    def _rows_of_experts(
        self, call: TracedCall, label: StepLabel | None, elements: int
    ) -> int | None:
        """A rank's share of the rows, where the experts' outputs are put together in a replica."""
        if self.spec is None or label is None or self.layout.ep == 1:
            return None
        share = -(-(label.num_tokens or 0) // self.layout.tp)
        is_share = elements == share * self.spec.hidden_size
        return share if is_share and call.operation == "all_gather" else None

    def _from_model(
        self, call: TracedCall, label: StepLabel | None, group_size: int | None
    ) -> Sized:
        unknown = Sized(
            input_shape=None,
            output_shape=None,
            dtype=call.dtype or self.dtype,
            provenance="metadata",
        )
        if self.spec is None or label is None or call.variant is not None:
            return unknown
        shape: tuple[int, ...] | None = None
        if call.operation in _ROWS_OF_TOKENS and label.num_tokens:
            sliced = call.operation in ("send", "recv") and self._sends_slices
            width = self.spec.hidden_size // (self.layout.tp if sliced else 1)
            shape = (label.num_tokens, width)
        elif call.returns_rows and label.num_tokens:
            shape = (-(-label.num_tokens // self.layout.tp), self.spec.hidden_size)
        elif call.operation == "all_gather" and self.conventions is not None:
            if self.conventions.logits == "candidates":
                unknown = replace(unknown, dtype="float32")
                shape = (label.num_sequences, 2)
            else:
                width = self.conventions.logits_shard(self.spec.vocab_size, self.layout.tp)
                shape = (label.num_sequences, width)
        if shape is None:
            return unknown
        output = _output(call.operation, shape, group_size)
        return replace(unknown, input_shape=shape, output_shape=output, provenance="model")

    @property
    def _sends_slices(self) -> bool:
        return self.conventions is not None and self.conventions.boundary_sliced

    @property
    def tensors_per_transfer(self) -> int:
        return self.conventions.boundary_tensors if self.conventions else 1


def _rows(call: TracedCall, label: StepLabel | None, elements: int) -> int | None:
    """Rows of a flat element count: tokens of the step, or its sequences for logits and ids."""
    is_told = call.input_elements is None and (
        call.dtype == "int32" or call.operation == "broadcast"
    )
    if label is None or is_told:
        return None
    if call.operation == "broadcast" and elements == 2 * label.num_sequences:
        return 2 if call.dtype == "int32" else label.num_sequences
    of_tokens = call.operation in _ROWS_OF_TOKENS or call.gathers_slices
    rows = label.num_tokens if of_tokens else label.num_sequences
    return rows if rows and elements % rows == 0 else None


def _output(
    operation: str, shape: tuple[int, ...], group_size: int | None, *, joined_columns: bool = False
) -> tuple[int, ...] | None:
    """What a rank holds after the call: gathered rows under one another, or joined columns."""
    if group_size is None:
        return None if operation in _RESIZING else shape
    if operation == "gather" or (operation == "all_gather" and joined_columns):
        return (*shape[:-1], shape[-1] * group_size) if shape else shape
    if operation == "all_gather" and shape:
        return (shape[0] * group_size, *shape[1:])
    if operation == "reduce_scatter" and shape:
        return (shape[0] // group_size, *shape[1:])
    return shape


def is_header(tensor: Size) -> bool:
    """The pickled description that travels last in a list of tensors."""
    shape, dtype = tensor
    return len(shape) == 1 and dtype in (None, "uint8")
