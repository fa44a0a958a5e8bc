"""What a family's checkpoint calls its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """All experts of a layer in one tensor, transposed: [E, h, 2 i] and [E, i, h] (and biases).

    The gate's columns stand before the up projection's, or the two alternate (interleaved).
    """

    gate_up: str = "gate_up_proj"
    down: str = "down_proj"
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Names of a layer's parts; ``model`` stands in front of all but the head.

    after_attention, after_feed_forward: norms of the blocks' outputs, where there are.
    experts: gate, up and down of one expert, or how they are stacked. router and correction:
    of the experts' choice. ignored: beginnings of tensors of other inputs.
    """

    model: str = "model"
    head: str = "lm_head"
    attention: str = "self_attn"
    linear_attention: str = "linear_attn"
    feed_forward: str = "mlp"
    input_norm: str = "input_layernorm"
    feed_forward_norm: str = "post_attention_layernorm"
    after_attention: str | None = None
    after_feed_forward: str | None = None
    experts: tuple[str, str, str] | Stacked = ("gate_proj", "up_proj", "down_proj")
    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    shared_experts: str = "shared_experts"
    shared_gate: str = "shared_expert_gate"
    ignored: tuple[str, ...] = ()

    @property
    def expert_matrices(self) -> tuple[str, ...]:
        """Matrices of the first expert, or of all where they are stacked."""
        if isinstance(self.experts, Stacked):
            return (self.experts.gate_up, self.experts.down)
        return tuple(f"0.{matrix}" for matrix in self.experts)
