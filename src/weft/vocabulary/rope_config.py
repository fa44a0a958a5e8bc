"""Read rotary embeddings from a ``config.json``: old and new spelling, every scaling.

Source: transformers' ``RotaryEmbeddingConfigMixin`` (which value wins where two are given)
and ``ROPE_INIT_FUNCTIONS`` (defaults of each scaling).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from weft.errors import ModelConfigError
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.rope import (
    LinearScaling,
    Llama3Scaling,
    Rope,
    Scaling,
    YarnScaling,
    yarn_magnitude,
)


def read_rope(
    config: ConfigReader,
    *,
    head_dim: int,
    partial: bool = False,
    interleaved: bool = False,
    default: Mapping[str, Any] | None = None,
) -> Rope:
    """The one rope of all layers; ``partial``: the family may turn a part of each head."""
    key = "rope_scaling" if config.mapping("rope_scaling") else "rope_parameters"
    given = dict(config.mapping(key))
    for name in ("rope_theta", "partial_rotary_factor"):
        if name not in given and config.get(name) is not None:
            given[name] = config.get(name)
    given = dict(default or {}) | given
    return rope_of(config, given, head_dim=head_dim, partial=partial, interleaved=interleaved)


def rope_of(
    config: ConfigReader,
    given: Mapping[str, Any],
    *,
    head_dim: int,
    partial: bool = False,
    interleaved: bool = False,
) -> Rope:
    """A rope from the content of ``rope_parameters`` (with rope_theta in it)."""
    nested = [key for key, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise config.error(f"rope parameters of their own for {nested[0]!r} are not supported")
    rope = config.within(given, {"partial_rotary_factor": 1.0})
    share = rope.number("partial_rotary_factor")
    if share != 1 and not partial:
        raise config.error(f"partial_rotary_factor {share} is not supported for this family")
    if share > 1:
        raise config.error(f"partial_rotary_factor {share}: heads have {head_dim} elements")
    rotary_dim = int(head_dim * share)
    try:
        return Rope(
            theta=rope.number("rope_theta"),
            rotary_dim=None if rotary_dim == head_dim else rotary_dim,
            interleaved=interleaved,
            scaling=_scaling(config, rope),
        )
    except ModelConfigError as error:
        text = str(error)
        raise (error if text.startswith("model ") else config.error(text)) from None


def _scaling(config: ConfigReader, rope: ConfigReader) -> Scaling | None:
    kind = rope.get("rope_type") if rope.has("rope_type") else rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise config.error(
            f"rope scaling {kind!r} is not supported; weft has {', '.join(_SCALINGS)}"
        )
    return _SCALINGS[kind](config, rope)


def _default(config: ConfigReader, rope: ConfigReader) -> None:  # noqa: ARG001
    return None


def _linear(config: ConfigReader, rope: ConfigReader) -> Scaling:  # noqa: ARG001
    return LinearScaling(factor=rope.number("factor"))


def _dynamic(config: ConfigReader, rope: ConfigReader) -> None:  # noqa: ARG001
    """NTK scaling grows with lengths beyond max_position_embeddings, which weft refuses."""
    if rope.number("factor") <= 0:
        raise ModelConfigError(
            f"rope factor is {rope.number('factor')!r}, must be a number above 0"
        )


def _llama3(config: ConfigReader, rope: ConfigReader) -> Scaling:
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position=_original(config, rope),
    )


def _yarn(config: ConfigReader, rope: ConfigReader) -> Scaling:
    original = _original(config, rope)
    if "factor" in rope and not rope.has("factor"):
        factor = config.integer("max_position_embeddings") / original
    else:
        factor = rope.number("factor")
    attention_factor = rope.optional_number("attention_factor")
    one, all_dims = (rope.optional_number(key) or 0.0 for key in ("mscale", "mscale_all_dim"))
    if attention_factor is None:
        attention_factor = yarn_magnitude(factor)
        if one and all_dims:
            attention_factor = yarn_magnitude(factor, one) / yarn_magnitude(factor, all_dims)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        attention_factor=attention_factor,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        truncate=rope.flag("truncate") if "truncate" in rope else True,
        score_factor=yarn_magnitude(factor, all_dims) ** 2 if all_dims else 1.0,
    )


def _original(config: ConfigReader, rope: ConfigReader) -> int:
    """The context before scaling: the config's own field wins, then the rope's, then the whole."""
    key = "original_max_position_embeddings"
    if config.has(key):
        return config.integer(key)
    return rope.integer(key) if key in rope else config.integer("max_position_embeddings")


_SCALINGS: Final[Mapping[str, Callable[[ConfigReader, ConfigReader], Scaling | None]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
