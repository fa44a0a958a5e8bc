"""The least bytes of weights that a decode step reads."""

from __future__ import annotations

from weft.models.decoder import DecoderStage
from weft.vocabulary.model_spec import ModelSpec


def weight_bytes(stage: DecoderStage, batch: int) -> float:
    """Bytes of weights that one step of ``batch`` rows reads (of the embedding only its rows)."""
    total = 0.0
    share = _expert_share(stage.spec, batch)
    for name, parameter in stage.named_parameters():
        if name == "embedding.weight" and stage.head is None:
            continue
        if name == "embedding.weight" and not stage.spec.tie_embeddings:
            continue
        total += parameter.nbytes * (share if ".experts." in name else 1.0)
    return total


def _expert_share(spec: ModelSpec, batch: int) -> float:
    """Share of the experts that ``batch`` rows are expected to touch."""
    if not spec.is_moe:
        return 1.0
    return 1.0 - (1.0 - spec.experts_per_token / spec.num_experts) ** batch
