"""RMSNorm, with the residual addition that always precedes it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.linear import Placement
from weft.layers.shards import Piece, sharded_parameter


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, name: str, size: int, eps: float, where: Placement) -> None:
        super().__init__()
        piece = Piece(source=f"{name}.weight", shape=(size,), dim=0, start=0, stop=size)
        self.weight = sharded_parameter((size,), [piece], dtype=where.dtype, device=where.device)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def add(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(hidden + residual), hidden + residual); shapes [T, h]; ``residual`` in place."""
        if residual is not None:
            return add_rms_norm(hidden, residual, self.weight, self.eps), residual
        if fused.takes(hidden):
            from weft.layers.fused import elementwise

            return elementwise.add_rms_norm(hidden, None, self.weight, self.eps), hidden
        return self(hidden), hidden


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """rms_norm(hidden + residual) * weight [T, h]; ``residual`` becomes the sum, in place."""
    if fused.takes(hidden):
        from weft.layers.fused import elementwise

        return elementwise.add_rms_norm(hidden, residual, weight, eps)
    return F.rms_norm(residual.add_(hidden), weight.shape, weight, eps)


class OffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight), in fp32 (Gemma)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x)

    def add(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = hidden if residual is None else hidden + residual
        return self(total), total


class NormAfterBlock:
    """A norm of a block's output, before it joins the residual, and the next block's norm."""

    def __init__(self, after: RMSNorm, following: RMSNorm) -> None:
        self._after, self._following = after, following

    def add(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(following(after(hidden) + residual), after(hidden) + residual); shapes [T, h]."""
        return self._following.add(self._after(hidden), residual)


BlockNorm = RMSNorm | NormAfterBlock


def rms_norm(name: str, size: int, eps: float, offset: float, where: Placement) -> RMSNorm:
    """The norm whose weights are what they are (offset 0) or what they are beside one."""
    return (OffsetRMSNorm if offset else RMSNorm)(name, size, eps, where)


def following(after: RMSNorm | None, norm: RMSNorm) -> BlockNorm:
    """What is done to a block's output: added to the residual, or normalised and added."""
    return norm if after is None else NormAfterBlock(after, norm)
