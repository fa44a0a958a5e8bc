"""Where a checkpoint keeps the matrices of experts: one by one, or stacked in one tensor.

Shapes: E experts, h hidden size, i inner size of an expert.
"""

from __future__ import annotations

from weft.layers.shards import Piece
from weft.vocabulary.feed_forward_kinds import Experts
from weft.vocabulary.tensor_names import Stacked


class ExpertTensors:
    """Pieces of whole matrices and biases; gate and up projection are halves 0 and 1."""

    def __init__(
        self, prefix: str, names: tuple[str, str, str] | Stacked, kind: Experts, hidden_size: int
    ) -> None:
        self._prefix, self._names = prefix, names
        self._count, self._inner, self._hidden = (
            kind.num_experts,
            kind.intermediate_size,
            hidden_size,
        )

    def half(self, expert: int, half: int) -> Piece:
        """Of [i, h]: rows are divided."""
        if isinstance(self._names, Stacked):
            return self._in_stack(self._names.gate_up, (self._hidden,), expert, half)
        name = f"{self._prefix}.{expert}.{self._names[half]}.weight"
        return _whole(name, (self._inner, self._hidden), 0)

    def down(self, expert: int) -> Piece:
        """Of [h, i]: columns are divided."""
        if isinstance(self._names, Stacked):
            shape = (self._count, self._inner, self._hidden)
            name = f"{self._prefix}.{self._names.down}"
            return Piece(source=name, shape=shape, dim=1, start=0, stop=self._inner, index=expert)
        name = f"{self._prefix}.{expert}.{self._names[2]}.weight"
        return _whole(name, (self._hidden, self._inner), 1)

    def half_bias(self, expert: int, half: int) -> Piece:
        """Of [i]."""
        if isinstance(self._names, Stacked):
            return self._in_stack(f"{self._names.gate_up}_bias", (), expert, half)
        return _whole(f"{self._prefix}.{expert}.{self._names[half]}.bias", (self._inner,), 0)

    def down_bias(self, expert: int) -> Piece:
        """Of [h]."""
        if isinstance(self._names, Stacked):
            name, shape = f"{self._prefix}.{self._names.down}_bias", (self._count, self._hidden)
            return Piece(source=name, shape=shape, dim=0, start=0, stop=self._hidden, index=expert)
        return _whole(f"{self._prefix}.{expert}.{self._names[2]}.bias", (self._hidden,), 0)

    def _in_stack(self, name: str, rest: tuple[int, ...], expert: int, half: int) -> Piece:
        """One half of the gates and up projections, which alternate or follow each other."""
        assert isinstance(self._names, Stacked)
        alternate = self._names.interleaved
        return Piece(
            source=f"{self._prefix}.{name}",
            shape=(self._count, *rest, 2 * self._inner),
            dim=0,
            start=0,
            stop=self._inner,
            index=expert,
            first=half if alternate else half * self._inner,
            step=2 if alternate else 1,
        )


def _whole(name: str, shape: tuple[int, ...], dim: int) -> Piece:
    return Piece(source=name, shape=shape, dim=dim, start=0, stop=shape[dim])
