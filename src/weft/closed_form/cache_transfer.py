"""The cache of prompts on its way from prefill ranks to decode ranks, in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from weft.vocabulary.attention_kinds import AttentionKind
from weft.vocabulary.cache_transfer import links
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Operation, Phase
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload


def transfer_rows(
    spec: ModelSpec,
    prefill: Layout,
    decode: Layout,
    workload: Workload,
    speculation: Speculation | None,
) -> Iterator[Collective]:
    """What rank 0 of each prefill stage sends and rank 0 of each decode stage receives.

    A layer's cache of one prompt is one message a link; a state is a second one. A draft layer's
    goes with the last stages'.
    """
    group_size = prefill.tp * prefill.pp + decode.tp * decode.pp
    ends: tuple[tuple[Layout, Operation, Phase], ...] = (
        (prefill, "send", "prefill"),
        (decode, "recv", "decode"),
    )
    for layout, op, phase in ends:
        for stage, layers in enumerate(layout.layers_of_stages(spec.num_layers)):
            kinds = Counter(spec.attention(layer) for layer in layers)
            if speculation is not None and speculation.has_layer and stage == layout.pp - 1:
                kinds[speculation.layer_of(spec).attention(0)] += 1
            for kind, num_layers in kinds.items():
                num_messages, num_parts = _messages(kind, prefill.tp, decode.tp, op)
                for shape, dtype in kind.part_shapes(workload.prompt_tokens, num_parts):
                    yield Collective(
                        stage=stage,
                        phase=phase,
                        op=op,
                        group="kv",
                        group_size=group_size,
                        count=num_messages * num_layers * workload.batch,
                        input_shape=shape,
                        output_shape=shape,
                        dtype=dtype or spec.dtype,
                        provenance="formula",
                    )


def _messages(kind: AttentionKind, tp_from: int, tp_to: int, op: Operation) -> tuple[int, int]:
    """Messages that rank 0 of that end has a layer, and into how many parts the cache is cut."""
    every = list(links(kind, tp_from, tp_to))
    mine = [link for link in every if (link.src if op == "send" else link.dst) == 0]
    return len(mine), every[0].num_parts
