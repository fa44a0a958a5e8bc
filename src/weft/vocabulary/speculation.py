"""Speculation: tokens that are guessed ahead and checked by the model in one step."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from weft.errors import WorkloadError
from weft.vocabulary.model_spec import ModelSpec

Method = Literal["ngram", "mtp", "eagle"]
_METHODS: Final = ("ngram", "mtp", "eagle")
MOST_DRAFTS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """``num_drafts`` tokens guessed for every sequence of a decode step.

    method: ``ngram`` looks them up in what was said before, on the host; ``mtp`` asks a layer like
    the model's last one, ``eagle`` a dense layer, each fed with the model's last hidden states.
    accepted: drafts that a step keeps on average (default: all); a step gives one token more.
    """

    method: Method
    num_drafts: int
    accepted: float | None = None

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise WorkloadError(
                f"`speculate` {self.method}: unknown; choose one of {', '.join(_METHODS)}"
            )
        if not 1 <= self.num_drafts <= MOST_DRAFTS:
            raise WorkloadError(
                f"`speculate` {self.num_drafts}: must be 1 to {MOST_DRAFTS} drafts a step"
            )
        if self.accepted is not None and not 0 <= self.accepted <= self.num_drafts:
            raise WorkloadError(
                f"`speculate` {self.accepted}: accepted drafts a step must be 0 to {self.num_drafts}"
            )

    @classmethod
    def parse(cls, text: str) -> Speculation:
        """Read ``ngram:4``, or ``mtp:2:1.7`` for 1.7 accepted drafts a step."""
        match = re.fullmatch(r"([a-z]+):(\d{1,18})(?::(\d+(?:\.\d*)?))?", text)
        if match is None:
            raise WorkloadError(
                f"`speculate` {text}: write method:drafts or method:drafts:accepted, e.g. ngram:4, "
                "mtp:2:1.7"
            )
        accepted = None if match[3] is None else float(match[3])
        return cls(method=match[1], num_drafts=int(match[2]), accepted=accepted)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """Token rows of each sequence in a decode step: the last token and its drafts."""
        return 1 + self.num_drafts

    @property
    def has_layer(self) -> bool:
        return self.method != "ngram"

    def num_steps(self, num_tokens: int) -> int:
        """Decode steps that give ``num_tokens`` tokens of a sequence."""
        accepted = self.num_drafts if self.accepted is None else self.accepted
        return -int(-num_tokens // (1 + accepted))

    def layer_of(self, spec: ModelSpec) -> ModelSpec:
        """The draft layer as a model of one layer, with the model's embedding and head."""
        last = spec.num_layers - 1
        is_dense = self.method == "eagle" or not spec.has_experts(last)
        return replace(
            spec,
            num_layers=1,
            attentions=(spec.attention(last),),
            dense_layers=(0,) if is_dense else (),
            formats=spec.formats[-1:],
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "num_drafts": self.num_drafts,
            "accepted": self.num_drafts if self.accepted is None else self.accepted,
        }


def check_speculation(spec: ModelSpec, speculation: Speculation) -> None:
    """WorkloadError where a rejected draft could not be undone."""
    if spec.has_state:
        raise WorkloadError(
            f"`speculate` {speculation.method}: {spec.name} keeps a state of each sequence that a "
            "rejected draft would change; leave `speculate` out"
        )
