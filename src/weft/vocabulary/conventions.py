"""Conventions: how an engine moves what must move between ranks.

Engines run the same decoder with different communication around it. The choices
are few, so they are a value: the closed form reads it to write the schedule down,
and weft's own engine reads it to run that way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from weft.errors import LayoutError, UserError
from weft.vocabulary.attention_kinds import Latent
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec

DeepEP = Literal["", "low_latency", "high_throughput", "auto"]
ALL_REDUCE_CHOICES: Final = ("auto", "weft", "library")
"""Whose all-reduce a run uses: weft's where it can be used, weft's, nccl's or gloo's own."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """One engine's choices.

    boundary_tensors: tensors of [tokens, hidden] that cross a pipeline boundary
        (2: hidden states and residual apart; 1: their sum).
    boundary_sliced: with tensor parallelism each rank sends its 1/tp slice and the
        receiving group gathers it; otherwise every rank sends the whole tensor.
    logits: ``gather`` to the first tensor-parallel rank, ``all_gather`` to all, or
        ``candidates``: an all-gather of each rank's best (value, token id) pair.
    sampled_ids: how the last pipeline stage tells the others: ``host`` (outside the
        collectives), ``broadcast`` (one tensor of int64 ids), ``broadcast_int32`` (one
        column of int32 ids, vLLM's first model runner) or ``broadcast_async`` (int64 ids
        and two int32 a sequence, its second model runner).
    vocab_multiple: the vocabulary is padded to a multiple of this before it is split.
    expert_exchange: with expert parallelism, ``all_reduce`` (every rank runs its experts on
        all rows; the sum is that of plain tensor parallelism) or ``all_to_all`` (each rank
        sends its share of the rows to the ranks of their experts and back).
    gathers_replicas: experts may also be spread over all ranks of all replicas; each rank's
        share of the rows and their choices are gathered by all, outputs reduce-scattered (vLLM
        0.33, all2all.py: AgRsAll2AllManager, in the model's own type; the int32 all-reduce of
        the replicas' rows goes over the host by default and is no row).
    joins_up_to_bytes: SGLang's attention data parallelism (0.5.23, dp_attention.py): every
        feed-forward block sees the rows of all replicas and is split over their ranks. Steps with
        prompts, and those whose rows are at most so many bytes on one node, put the rows together
        by a sum (SUM_LEN), others by gathering shares (MAX_LEN); outputs go back the same way.
    deepep: with experts over replicas, DeepEP's kernels carry rows and outputs: those of
        ``low_latency``, of ``high_throughput``, or ``auto`` (the former where no prompt is).
    expert_kernels: kernels of a library (DeepEP) that carry the rows instead, each as its variant
        and its launches a layer; how many bytes they move depends on the rows' choices.
    micro_batches: whether the requests are divided over as many groups as there are
        pipeline stages, one step each, so that the stages work at the same time.
    """

    name: str
    boundary_tensors: Literal[1, 2]
    boundary_sliced: bool
    logits: Literal["gather", "all_gather", "candidates"]
    sampled_ids: Literal["host", "broadcast", "broadcast_int32", "broadcast_async"]
    vocab_multiple: int = 1
    expert_exchange: Literal["all_to_all", "all_reduce"] = "all_reduce"
    gathers_replicas: bool = False
    joins_up_to_bytes: int | None = None
    deepep: DeepEP = ""
    expert_kernels: tuple[tuple[str, int], ...] = ()
    micro_batches: bool = False

    def logits_shard(self, vocab_size: int, tp: int) -> int:
        """Vocabulary entries of one tensor-parallel rank."""
        padded = -(-vocab_size // self.vocab_multiple) * self.vocab_multiple
        return -(-padded // tp)

    def tells_drafts(self, of_layer: bool) -> bool:
        """Whether the last pipeline stage broadcasts its drafts (those of a layer nobody else has)."""
        every = self.sampled_ids == "broadcast_async"
        return every or (of_layer and self.sampled_ids == "broadcast")

    @property
    def spreads_experts(self) -> bool:
        """Whether weft knows how the engine exchanges rows with experts on other replicas."""
        joins = self.joins_up_to_bytes is not None
        return self.gathers_replicas or joins or self.expert_exchange == "all_to_all"

    def exchange_of(self, layout: Layout) -> Exchange:
        """How rows reach experts. LayoutError where the engine does it in no way that weft knows."""
        if layout.ep == 1:
            return "none"
        if self.expert_kernels:
            return "kernels"
        if self.expert_exchange == "all_to_all":
            return "all_to_all"
        if layout.tp % layout.ep == 0:
            return "all_reduce"
        if not self.spreads_experts or layout.ep != layout.tp * layout.dp:
            everywhere = f" or {layout.tp * layout.dp}" if self.spreads_experts else ""
            raise LayoutError(
                f"`ep` {layout.ep}: engine {self.name} adds up its experts over the "
                f"tensor-parallel group; set `ep` {layout.tp}{everywhere} or `engine` weft"
            )
        if self.deepep:
            return "deepep"
        return "all_gather" if self.gathers_replicas else "joined"

    def joins_rows(self, spec: ModelSpec, layout: Layout) -> bool:
        """Whether dense blocks and the head see the rows of all replicas (SGLang).

        LayoutError where they cannot be split over the ranks of all replicas.
        """
        if self.joins_up_to_bytes is None or not spec.is_moe or not layout.joins_replicas:
            return False
        if layout.sp > 1:
            raise LayoutError(
                f"`sp` {layout.sp}: engine {self.name} has whole rows where experts are spread over "
                "replicas; set `sp` 1"
            )
        if self.exchange_of(layout) == "deepep" and layout.tp > 1:
            raise LayoutError(
                f"`tp` {layout.tp}: with DeepEP weft describes SGLang's replicas of one rank; "
                f"set `tp` 1 and `dp` {layout.ep}, or `engine` sglang"
            )
        sizes = (spec.intermediate_size if spec.dense_layers else 0, spec.shared_expert_size)
        odd = next((size for size in sizes if size % layout.ep), None)
        if odd is not None:
            raise LayoutError(
                f"`ep` {layout.ep}: engine {self.name} splits dense layers over the replicas too, "
                f"and it does not divide their {odd} inner elements; choose a divisor"
            )
        return True

    def sums_rows(self, layout: Layout, num_bytes: int, *, has_prompts: bool) -> bool:
        """Whether so many bytes of joined rows are put together by a sum."""
        assert self.joins_up_to_bytes is not None
        small = layout.nodes == 1 and num_bytes <= self.joins_up_to_bytes
        return has_prompts or small

    def deepep_shapes(
        self, spec: ModelSpec, ranks: int, rows: int, *, has_prompts: bool
    ) -> tuple[tuple[str, tuple[int, int], str | None], ...]:
        """(variant, shape, type) of what one rank sends at most of ``rows`` rows, there and back.

        Low latency (csrc/kernels/internode_ll.cu): a message for every choice, 16 bytes and the
        row in 8 bits with a fp32 scale for every 128 elements, and back in 16 bits. High throughput
        (intranode.cu): a row once to each rank that holds one of its experts, with its
        choices (int64) and their weights (fp32). Rows go in 8 bits where the experts are, else in
        the model's type.
        """
        chosen, hidden = spec.experts_per_token, spec.hidden_size
        experts = next(filter(spec.has_experts, range(spec.num_layers)))
        eight = spec.feed_forward(experts).format.rate == 1
        row = hidden + 4 * -(-hidden // 128) if eight else hidden * element_bytes(spec.dtype)
        quick = self.deepep == "low_latency" or (self.deepep == "auto" and not has_prompts)
        copies = rows * (chosen if quick else min(chosen, ranks))
        there = (copies, row + (16 if quick else 12 * chosen))
        return ("deepep_dispatch", there, "uint8"), ("deepep_combine", (copies, hidden), None)

    def scatters_rows(self, spec: ModelSpec, layout: Layout) -> bool:
        """Whether attention before experts is reduced to each rank's share of the rows.

        vLLM's DeepSeek layers (models/deepseek_v2.py: use_sequence_parallel_moe), where the rows
        are gathered from all replicas and there is one stage.
        """
        is_latent = any(isinstance(kind, Latent) for kind in spec.attentions)
        scatters = is_latent and layout.tp > 1 and layout.pp == 1 and self.gathers_replicas
        return scatters and self.exchange_of(layout) in ("all_gather", "deepep")


Exchange = Literal["none", "all_to_all", "all_reduce", "all_gather", "joined", "deepep", "kernels"]


def bytes_of_dispatched_row(row_bytes: int, experts_per_token: int) -> int:
    """What weft sends of a row to a rank of its experts: itself, and its experts with weights."""
    return row_bytes + 8 * experts_per_token


_BY_NAME: Final = {
    "weft": Conventions(
        name="weft",
        boundary_tensors=1,
        boundary_sliced=True,
        logits="candidates",
        sampled_ids="broadcast",
        expert_exchange="all_to_all",
        micro_batches=True,
    ),
    "vllm": Conventions(
        name="vllm",
        boundary_tensors=2,
        boundary_sliced=True,
        logits="all_gather",
        sampled_ids="broadcast_async",
        vocab_multiple=64,
        gathers_replicas=True,
    ),
    "vllm-v0": Conventions(
        name="vllm-v0",
        boundary_tensors=2,
        boundary_sliced=True,
        logits="gather",
        sampled_ids="host",
        vocab_multiple=64,
    ),
    "vllm-cpu": Conventions(
        name="vllm-cpu",
        boundary_tensors=2,
        boundary_sliced=False,
        logits="all_gather",
        sampled_ids="host",
        vocab_multiple=64,
    ),
    "sglang": Conventions(
        name="sglang",
        boundary_tensors=2,
        boundary_sliced=True,
        logits="all_gather",
        sampled_ids="host",
        vocab_multiple=64,
        joins_up_to_bytes=16 << 20,
    ),
    "trtllm": Conventions(
        name="trtllm",
        boundary_tensors=2,
        boundary_sliced=False,
        logits="all_gather",
        sampled_ids="host",
    ),
}
_DEEPEP: Final[dict[str, tuple[str, DeepEP]]] = {
    "vllm-deepep": ("vllm", "low_latency"),
    "vllm-deepep-ht": ("vllm", "high_throughput"),
    "sglang-deepep": ("sglang", "auto"),
}
ENGINES: Final = _BY_NAME | {
    name: replace(_BY_NAME[base], name=name, deepep=how) for name, (base, how) in _DEEPEP.items()
}


def engine_named(name: str) -> Conventions:
    """The conventions of the named engine, or a UserError that lists the names."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UserError(f"`engine` {name}: unknown; choose one of {', '.join(ENGINES)}") from None


def check_all_reduce(name: str) -> None:
    """UserError unless ``name`` is one of ALL_REDUCE_CHOICES."""
    if name not in ALL_REDUCE_CHOICES:
        raise UserError(f"`all_reduce` {name}: choose one of {', '.join(ALL_REDUCE_CHOICES)}")
