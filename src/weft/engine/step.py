"""Step: what one scheduled step computes, as host arrays, taken when it is scheduled.

Requests go on changing while steps are under way; a step keeps what it needs of them. It goes
from hand to hand: a Batch of tensors is made of it, a stage turns that into its output, the
sampler that into ids, which are booked for its chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weft.engine.graphs import Replay
from weft.engine.request import Request, SamplingParams
from weft.engine.scheduler import Chunk
from weft.vocabulary.schedule import Phase

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """M rows of prompts whose next token, known already, is asked for its log-probability.

    spans: (request, place in the prompt of the first of these tokens, how many); rows [M]: of
    the step; targets [M]: the tokens; num_top: most likeliest tokens that one of them wants.
    """

    spans: Sequence[tuple[Request, int, int]] = ()
    rows: Sequence[int] = ()
    targets: Sequence[int] = ()

    @property
    def num_top(self) -> int:
        return max((one.sampling.prompt_logprobs or 0 for one, _, _ in self.spans), default=0)

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> PromptRows:
        """Those of a step's chunks, in their order."""
        spans: list[tuple[Request, int, int]] = []
        rows: list[int] = []
        targets: list[int] = []
        first = 0
        for chunk in chunks:
            request = chunk.request
            if request.sampling.prompt_logprobs is not None:
                after = request.prompt[chunk.start + 1 : chunk.start + 1 + chunk.count]
                spans.append((request, chunk.start + 1, len(after)))
                rows += range(first, first + len(after))
                targets += after
            first += chunk.count
        return cls(spans=spans, rows=rows, targets=targets)


@dataclass(frozen=True, kw_only=True)
class Entering:
    """A request that has just got its ``row``, with the tokens that it had then."""

    row: int
    sampling: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]

    @classmethod
    def of(cls, request: Request) -> Entering:
        return cls(
            row=request.row,
            sampling=request.sampling,
            prompt=request.prompt,
            output=tuple(request.output),
        )


@dataclass(kw_only=True)
class Step:
    """One step of T token rows, S sequences and N sequences that are sampled; fed ones first.

    A draft is a sequence of one row: its own past, and those of the drafts before it.

    token_ids, positions [T]; fed_rows [T]: the request row whose last sampled id is the
    token, or -1 where token_ids has it; query_lengths, context_lengths [S]: rows of the
    step and positions including them; blocks: each sequence's cache blocks; rows [S]:
    request rows; logit_rows [N + M]: those sampled, then those of ``prompt_rows``;
    new_blocks [.., 3]: (request row, place, block) that the device's table lacks;
    entering: requests that have just got their row; num_everywhere: most rows of the step on
    one of the replicas that share experts, which all replay the graphs ``replay``.
    """

    chunks: Sequence[Chunk]
    token_ids: Integers
    positions: Integers
    fed_rows: Integers
    query_lengths: Integers
    context_lengths: Integers
    blocks: Sequence[Sequence[int]]
    rows: Integers
    logit_rows: Integers
    prompt_rows: PromptRows
    new_blocks: Integers
    entering: Sequence[Entering]
    num_everywhere: int = 0
    replay: Replay | None = None

    @classmethod
    def idle(cls, spare_row: int) -> Step:
        """One row of nobody, for a replica that has nothing to do while others need its experts."""
        zero, one = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
        return cls(
            chunks=(),
            token_ids=zero,
            positions=zero,
            fed_rows=-one,
            query_lengths=one,
            context_lengths=one,
            blocks=[[0]],
            rows=spare_row * one,
            logit_rows=np.zeros(0, dtype=np.int64),
            prompt_rows=PromptRows(),
            new_blocks=np.zeros((0, 3), dtype=np.int64),
            entering=(),
        )

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Step:
        """The step of ``chunks``, those that the device feeds first."""
        chunks = sorted(chunks, key=lambda chunk: (not chunk.is_fed, not chunk.is_decode))
        counts = np.array([chunk.count for chunk in chunks], dtype=np.int64)
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        ends = counts.cumsum()
        prompt_rows = PromptRows.of(chunks)
        first_rows: Integers = np.repeat(starts - (ends - counts), counts)
        return cls(
            chunks=chunks,
            token_ids=np.array([i for c in chunks for i in _known_ids(c)], dtype=np.int64),
            positions=np.arange(len(first_rows)) + first_rows,
            fed_rows=np.repeat([c.request.row if c.is_fed else -1 for c in chunks], counts),
            query_lengths=counts,
            context_lengths=starts + counts,
            blocks=[chunk.request.blocks for chunk in chunks],
            rows=np.array([chunk.request.row for chunk in chunks], dtype=np.int64),
            logit_rows=np.array(
                [
                    *(end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.samples),
                    *prompt_rows.rows,
                ],
                dtype=np.int64,
            ),
            prompt_rows=prompt_rows,
            entering=[Entering.of(c.request) for c in chunks if not c.request.blocks_sent],
            new_blocks=_new_blocks(chunks),
        )

    @property
    def has_failed(self) -> bool:
        """Whether a request of the step has failed on this rank: its cache holds no numbers."""
        return any(chunk.request.error for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def phase(self) -> Phase:
        kinds = {chunk.is_decode for chunk in self.chunks}
        if not kinds:
            return "other"
        return "mixed" if len(kinds) == 2 else "decode" if True in kinds else "prefill"

    @property
    def label(self) -> str:
        """Its name in traces: requests and token rows of prompts and of decoding, rows of logits."""
        prompts = len(self.chunks) - self.num_decodes
        rows = self.num_tokens - self.num_decodes
        decodes = f"generation_{self.num_decodes}({self.num_decodes})"
        return f"weft_context_{prompts}({rows})_{decodes}_logits_{len(self.logit_rows)}"

    @cached_property
    def sampling(self) -> list[Chunk]:
        """The chunks after which a token is sampled, in the order of the logits."""
        return [chunk for chunk in self.chunks if chunk.samples]

    @cached_property
    def sampled(self) -> tuple[Integers, Integers]:
        """Request rows [N] and context lengths [N] of :attr:`sampling`."""
        chosen = [chunk.samples for chunk in self.chunks]
        return self.rows[chosen], self.context_lengths[chosen]

    @cached_property
    def sampled_places(self) -> tuple[Integers, Integers, int]:
        """Of each sampled row which request it belongs to and the how many-th; and of how many."""
        seen: dict[Request, list[int]] = {}
        places = [(chunk.request, seen.setdefault(chunk.request, [])) for chunk in self.sampling]
        order = {request: number for number, request in enumerate(seen)}
        found = []
        for request, own in places:
            found.append((order[request], len(own)))
            own.append(len(found))
        requests, which = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return requests, which, len(order)

    @cached_property
    def is_greedy(self) -> bool:
        return all(chunk.request.sampling.is_greedy for chunk in self.sampling)

    @cached_property
    def is_plain(self) -> bool:
        """Whether every token is the likeliest, or drawn by temperature alone."""
        return all(chunk.request.sampling.is_plain for chunk in self.sampling)

    @cached_property
    def num_decodes(self) -> int:
        """Sequences in front that have one row, fed with the last sampled id."""
        return int((self.fed_rows >= 0).sum())

    def slots(self, block_size: int) -> Integers:
        """Cache slots [T] of the step's rows."""
        starts = self.context_lengths - self.query_lengths
        parts = [
            context_slots(blocks, end, block_size)[start:]
            for blocks, start, end in zip(self.blocks, starts, self.context_lengths, strict=True)
        ]
        return np.concatenate(parts)


def context_slots(blocks: Sequence[int], length: int, block_size: int) -> Integers:
    """Cache slots of the positions 0..length-1."""
    first = np.array(blocks, dtype=np.int64)[:, None] * block_size
    return (first + np.arange(block_size)).ravel()[:length]


def _known_ids(chunk: Chunk) -> list[int]:
    if chunk.is_fed:
        return [0]
    if chunk.draft is not None:
        return [chunk.draft]
    request, stop = chunk.request, chunk.start + chunk.count
    if stop <= len(request.prompt):
        return request.prompt[chunk.start : stop]
    return request.tokens[chunk.start : stop]


def _new_blocks(chunks: Sequence[Chunk]) -> Integers:
    found: list[tuple[int, int, int]] = []
    for request in (chunk.request for chunk in chunks):
        new = range(request.blocks_sent, len(request.blocks))
        found += [(request.row, place, request.blocks[place]) for place in new]
        request.blocks_sent = len(request.blocks)
    return np.array(found, dtype=np.int64).reshape(-1, 3)
