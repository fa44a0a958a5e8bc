"""What a family's checkpoint calls its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Names of a layer's parts; ``model`` stands in front of all but the head.

    after_attention, after_feed_forward: norms of the blocks' outputs, where there are.
    experts: gate, up and down of one expert. ignored: beginnings of tensors of other inputs.
    """

    model: str = "model"
    head: str = "lm_head"
    attention: str = "self_attn"
    feed_forward: str = "mlp"
    input_norm: str = "input_layernorm"
    feed_forward_norm: str = "post_attention_layernorm"
    after_attention: str | None = None
    after_feed_forward: str | None = None
    experts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared_experts: str = "shared_experts"
    ignored: tuple[str, ...] = ()

    @property
    def expert_matrices(self) -> tuple[str, ...]:
        """Matrices of the first expert."""
        return tuple(f"0.{matrix}" for matrix in self.experts)

    def attention_of(self, kind: object) -> str:  # noqa: ARG002
        """Where the checkpoint keeps an attention of that kind."""
        return self.attention
