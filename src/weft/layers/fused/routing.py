"""The choice of experts in one kernel: router logits [R, E] -> ids and weights [R, k]."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options
from weft.vocabulary.feed_forward_kinds import Routing
from weft.vocabulary.routes import Routes


@triton.jit
def _only_best_groups(
    merit, GROUPS: tl.constexpr, KEPT: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Minus infinity outside the KEPT groups with the best expert, or the best two (PAIRS)."""
    by_group = tl.reshape(merit, [GROUPS, BLOCK // GROUPS])
    worth = tl.max(by_group, axis=1)
    if PAIRS:
        inside = tl.arange(0, BLOCK // GROUPS)[None, :]
        first = tl.where(by_group == worth[:, None], inside, BLOCK)
        is_first = inside == tl.min(first, axis=1)[:, None]
        worth += tl.max(tl.where(is_first, float("-inf"), by_group), axis=1)
    groups = tl.arange(0, GROUPS)
    kept = groups < 0
    for _ in tl.static_range(KEPT):
        best = tl.max(tl.where(kept, float("-inf"), worth), axis=0)
        first = tl.min(tl.where(kept | (worth != best), GROUPS, groups), axis=0)
        kept = kept | (groups == first)
    return tl.reshape(tl.where(kept[:, None], by_group, float("-inf")), [BLOCK])


@triton.jit
def _choose(
    logits_ptr, correction_ptr, ids_ptr, weights_ptr, scale,
    COUNT: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_TOP: tl.constexpr,
    SIGMOID: tl.constexpr, CORRECTED: tl.constexpr, NORMALIZE: tl.constexpr,
    GROUPS: tl.constexpr, KEPT: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    is_expert = experts < COUNT
    begin(DEPENDENT)
    logits = tl.load(logits_ptr + row * COUNT + experts, mask=is_expert, other=float("-inf"))
    logits = logits.to(tl.float32)
    if SIGMOID:
        scores = tl.sigmoid(logits)
    else:
        raised = tl.exp(logits - tl.max(logits, axis=0))
        scores = raised / tl.sum(raised, axis=0)
    merit = scores
    if CORRECTED:
        merit += tl.load(correction_ptr + experts, mask=is_expert, other=0.0)
    merit = tl.where(merit == merit, merit, float("-inf"))  # noqa: PLR0124 - NaN is not itself
    merit = tl.where(is_expert, merit, float("-inf"))
    if GROUPS > 1:
        merit = _only_best_groups(merit, GROUPS, KEPT, CORRECTED, BLOCK)
    places = tl.arange(0, BLOCK_TOP)
    ids = tl.full([BLOCK_TOP], 0, tl.int32)
    weights = tl.full([BLOCK_TOP], 0, tl.float32)
    free = experts >= 0
    for place in tl.static_range(TOP):
        value = tl.max(tl.where(free, merit, float("-inf")), axis=0)
        first = tl.min(tl.where(free & (merit == value), experts, BLOCK), axis=0)
        free = free & (experts != first)
        ids = tl.where(places == place, first, ids)
        weights = tl.where(
            places == place, tl.sum(tl.where(experts == first, scores, 0.0), axis=0), weights
        )
    if NORMALIZE:
        weights = weights / tl.sum(weights, axis=0)
    at = row * TOP + places
    tl.store(ids_ptr + at, ids.to(tl.int64), mask=places < TOP)
    tl.store(weights_ptr + at, weights * scale, mask=places < TOP)


def choose(
    logits: torch.Tensor, correction: torch.Tensor | None, rule: Routing, experts_per_token: int
) -> Routes:
    """Logits [R, E] -> the routes by the rule, which ``takes`` knows."""
    num_rows, count = logits.shape
    shape = num_rows, experts_per_token
    ids = torch.empty(shape, dtype=torch.int64, device=logits.device)
    weights = torch.empty(shape, dtype=torch.float32, device=logits.device)
    _choose[(num_rows,)](
        logits, logits if correction is None else correction, ids, weights, rule.scale,
        COUNT=count, TOP=experts_per_token, BLOCK=triton.next_power_of_2(count),
        BLOCK_TOP=triton.next_power_of_2(experts_per_token),
        SIGMOID=rule.scores == "sigmoid", CORRECTED=correction is not None,
        NORMALIZE=rule.normalize, GROUPS=rule.groups, KEPT=rule.groups_per_token,
        num_warps=1 if count <= 128 else 4, **launch_options(logits),
    )  # fmt: skip
    return Routes(ids=ids, weights=weights, nobody=count)


def takes(logits: torch.Tensor, rule: Routing) -> bool:
    """Whether the kernel knows the rule for so many experts."""
    count = logits.shape[1]
    return rule.groups == 1 or count == triton.next_power_of_2(count)
