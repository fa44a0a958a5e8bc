"""What the collectives themselves say about the model: layers, hidden size, vocabulary, dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from weft.importer.layout_inference import RunLayout
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.vocabulary.dtypes import MODEL_DTYPES
from weft.vocabulary.families import BUILTIN_MODELS
from weft.vocabulary.layout import GroupKind
from weft.vocabulary.model_spec import ModelSpec

_INTEGERS: Final = ("int32", "int64")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Dimensions read off the trace; None where the trace does not show them.

    ``vocab_size`` is the padded size that the engine splits; ``stage_layers`` holds
    the layers of the pipeline stages that were seen all-reducing.
    """

    hidden_size: int | None = None
    vocab_size: int | None = None
    dtype: str | None = None
    stage_layers: Mapping[int, int] = field(default_factory=dict)
    num_stages: int = 1

    @property
    def num_layers(self) -> int | None:
        if len(self.stage_layers) != self.num_stages:
            return None
        return sum(self.stage_layers.values())

    def differences(self, spec: ModelSpec, vocab_multiple: int | None) -> list[str]:
        """The dimensions in which ``spec`` disagrees with the trace, each as one sentence.

        ``vocab_multiple``: what the vocabulary is padded to; None where no logits travel.
        """
        multiple = vocab_multiple or 1
        padded = -(-spec.vocab_size // multiple) * multiple
        pairs = (
            ("num_layers", self.num_layers, spec.num_layers),
            ("hidden_size", self.hidden_size, spec.hidden_size),
            ("vocab_size", self.vocab_size if vocab_multiple else None, padded),
            ("dtype", self.dtype, spec.dtype),
        )
        return [
            f"{name}: the trace shows {seen}, {spec.name} has {expected}"
            for name, seen, expected in pairs
            if seen is not None and seen != expected
        ]

    def matching_models(self) -> list[ModelSpec]:
        """Built-in models that agree with everything the trace shows (two facts at least)."""
        known = [self.num_layers, self.hidden_size, self.vocab_size]
        if sum(fact is not None for fact in known) < 2:
            return []
        return [spec for spec in BUILTIN_MODELS.values() if not self.differences(spec, 64)]

    def stand_in(self) -> ModelSpec:
        """A nameless model with these dimensions, and 1 where the trace shows none."""
        return dimensions_only(
            "unknown",
            self.num_layers or self.num_stages,
            self.hidden_size or 1,
            self.vocab_size or 1,
            self.dtype or "bfloat16",
        )


def dimensions_only(
    name: str, num_layers: int, hidden_size: int, vocab_size: int, dtype: str
) -> ModelSpec:
    """A dense decoder of which nothing else is known."""
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        intermediate_size=1,
        vocab_size=vocab_size,
        dtype=dtype,
    )


def read_facts(traces: Mapping[int, RankTrace], run: RunLayout) -> ModelFacts:
    """Read the dimensions off labelled steps; the most frequent value of each counts."""
    layout = run.layout
    hidden: Counter[int] = Counter()
    vocabulary: Counter[int] = Counter()
    dtypes: Counter[str] = Counter()
    stage_layers: dict[int, int] = {}
    kinds: set[GroupKind] = set()
    for rank, trace in traces.items():
        stage = layout.stage_of(rank)
        for call in trace.calls:
            kinds.add(kind := run.group_of(call, rank)[0])
            if kind in ("tp", "pp") and call.dtype not in _INTEGERS:
                _see_call(call, trace, run, hidden, vocabulary)
            if (
                call.operation == "all_reduce"
                and call.dtype in MODEL_DTYPES
                and call.step is not None
            ):
                dtypes[call.dtype] += 1
        layers = _layers(trace.calls, is_first=stage == 0)
        if layers is not None:
            stage_layers[stage] = layers
    for rows in (1, layout.tp) if layout.ep > 1 else ():
        # rows that come back from experts are gathered like logits
        vocabulary.pop((_most_frequent(hidden) or 0) * rows, None)
    activation = next((t.activation_dtype for t in traces.values() if t.activation_dtype), None)
    return ModelFacts(
        hidden_size=_most_frequent(hidden),
        vocab_size=_most_frequent(vocabulary),
        dtype=max(dtypes, key=lambda name: dtypes[name], default=activation),
        stage_layers=stage_layers if layout.tp > 1 and "ep" not in kinds else {},
        num_stages=layout.pp,
    )


def _see_call(
    call: TracedCall,
    trace: RankTrace,
    run: RunLayout,
    hidden: Counter[int],
    vocabulary: Counter[int],
) -> None:
    if call.step is None:
        return
    label = trace.busy_steps[call.step].label
    tokens, sequences = label.num_tokens, label.num_sequences
    shape = call.tensors[0][0] if call.tensors else call.input_shape
    elements = call.input_elements
    if shape is not None and len(shape) == 1:
        elements, shape = shape[0], None
    layout = run.layout
    if call.operation in ("all_reduce", "send", "recv") and tokens and call.source != "gloo":
        # over NCCL each tensor-parallel rank sends its slice of a pipeline tensor
        is_whole = call.operation == "all_reduce" or call.tensors or call.source != "record"
        parts = 1 if is_whole else layout.tp
        if shape is not None and len(shape) == 2:
            hidden[shape[1] * parts] += 1
        elif elements and elements % tokens == 0:
            hidden[elements // tokens * parts] += 1
    elif call.operation == "all_gather" and not (call.gathers_slices or call.returns_rows):
        if shape is not None and len(shape) == 2:
            vocabulary[shape[1] * layout.tp] += 1
        elif elements and sequences and elements % sequences == 0:
            vocabulary[elements // sequences * layout.tp] += 1


def _layers(calls: Iterable[TracedCall], *, is_first: bool) -> int | None:
    """Layers of a stage: two all-reduces each, and one for the embedding on the first stage."""
    counts = Counter(
        call.step
        for call in calls
        if call.operation == "all_reduce" and call.dtype not in _INTEGERS
    )
    counts.pop(None, None)
    usual = _most_frequent(Counter(counts.values()))
    if usual is None or (usual - is_first) % 2 or usual <= is_first:
        return None
    return (usual - is_first) // 2


def _most_frequent(counter: Counter[int]) -> int | None:
    return max(counter, key=lambda value: counter[value], default=None)
