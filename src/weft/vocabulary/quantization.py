"""Read ``quantization_config``: which format each matrix of a checkpoint is stored in.

Sources: transformers' quantization configs (fp8, fbgemm_fp8, mxfp4, awq, gptq), compressed-tensors'
``config_groups`` and ModelOpt's ``hf_quant_config.json``. Embedding, head, routers and norms keep the
model's own type, as engines load them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from weft.errors import ModelConfigError
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.tensor_names import TensorNames
from weft.vocabulary.weight_formats import FORMATS, LayerFormats, WeightFormat

Groups = Sequence[tuple[WeightFormat, Sequence[str] | None]]
"""Formats with the matrices that they are for (None: all that are not left out)."""


def read_quantization(
    config: ConfigReader, spec: ModelSpec, names: TensorNames
) -> tuple[LayerFormats, ...]:
    """The formats of the layers of ``spec``: one where all are the same, else one a layer.

    Raises ModelConfigError for methods that are unknown and for matrices that weft keeps
    together and the checkpoint does not.
    """
    given = config.within(config.mapping("quantization_config"), {})
    method = given.get("quant_method") or ("modelopt" if given.has("quant_algo") else None)
    if method not in _METHODS:
        raise config.error(
            f"quantization_config has quant_method {method!r}; weft has {', '.join(_METHODS)}"
        )
    groups, left_out = _METHODS[method](given)
    rule = _Rule(
        groups=tuple((form, None if of is None else _Names(of)) for form, of in groups),
        left_out=_Names(left_out),
        plain=FORMATS[spec.dtype],
    )
    layers = [_layer(config, rule, spec, names, layer) for layer in range(spec.num_layers)]
    return tuple(layers if len(set(layers)) > 1 else layers[:1])


class _Names:
    """Modules as checkpoints list them: whole names or parts of them, ``*``, ``re:`` patterns."""

    def __init__(self, patterns: Iterable[str]) -> None:
        every = set(patterns)
        wild = {pattern for pattern in every if "*" in pattern or pattern.startswith("re:")}
        self._plain = every - wild
        self._wild = [_compiled(pattern) for pattern in sorted(wild)]

    def __contains__(self, name: str) -> bool:
        parts = name.split(".")
        ends = range(1, len(parts) + 1)
        spans = (".".join(parts[start:end]) for end in ends for start in range(end))
        return any(span in self._plain for span in spans) or any(
            pattern.match(name) for pattern in self._wild
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(_expression(pattern))
    except re.error as error:
        raise ModelConfigError(
            f"quantization_config leaves out {pattern!r}: not a regular expression ({error})"
        ) from None


def _expression(pattern: str) -> str:
    if pattern.startswith("re:"):
        return pattern.removeprefix("re:")
    return fnmatch.translate(pattern) + "|" + fnmatch.translate(f"{pattern}.*")


@dataclass(frozen=True, kw_only=True)
class _Rule:
    groups: tuple[tuple[WeightFormat, _Names | None], ...]
    left_out: _Names
    plain: WeightFormat

    def of(self, name: str) -> WeightFormat:
        if name not in self.left_out:
            for form, targets in self.groups:
                if targets is None or name in targets:
                    return form
        return self.plain


def _layer(
    config: ConfigReader, rule: _Rule, spec: ModelSpec, names: TensorNames, layer: int
) -> LayerFormats:
    kind = spec.attention(layer)
    block = f"{names.model}.layers.{layer}"
    attention, inner = f"{block}.{getattr(names, kind.part)}", f"{block}.{names.feed_forward}"

    def one_of(prefix: str, matrices: Iterable[str]) -> WeightFormat:
        found = {rule.of(f"{prefix}.{matrix}"): matrix for matrix in matrices}
        if len(found) > 1:
            different = " and ".join(f"{prefix}.{matrix}" for matrix in found.values())
            raise config.error(
                f"quantization_config stores {different} in different formats, which weft "
                "takes as one part"
            )
        return next(iter(found))

    gated = ("gate_proj", "up_proj", "down_proj")
    has_experts = spec.has_experts(layer)
    dense = f"{inner}.{names.shared_experts}" if has_experts else inner
    return LayerFormats(
        inputs=one_of(attention, kind.input_names),
        output=one_of(attention, (kind.output_name,)),
        dense=one_of(dense, gated),
        experts=one_of(f"{inner}.experts", names.expert_matrices),
    )


Read = tuple[Groups, Iterable[str]]


def _fp8(given: ConfigReader) -> Read:
    block = given.items("weight_block_size")
    return [(_block_fp8(given, block), None)], given.items("modules_to_not_convert")


def _block_fp8(given: ConfigReader, block: Sequence[Any]) -> WeightFormat:
    """128 x 128 is the field's; other blocks differ by the size of their scales."""
    if not block:
        return FORMATS["float8_e4m3fn"]
    if len(block) != 2 or not all(isinstance(side, int) and side > 0 for side in block):
        raise given.error(f"weight_block_size is {list(block)}, must be two sizes")
    form = FORMATS["fp8_block"].grouped(8, block[0] * block[1], 4)
    return replace(form, columns=block[1])


def _mxfp4(given: ConfigReader) -> Read:
    return [(FORMATS["mxfp4"], None)], given.items("modules_to_not_convert")


def _awq(given: ConfigReader) -> Read:
    """16-bit scales and a zero point of the weights' own width a group."""
    return [(_integers(given), None)], given.items("modules_to_not_convert")


def _gptq(given: ConfigReader) -> Read:
    given.refuse("dynamic", "modules_in_block_to_quantize")
    return [(_integers(given), None)], ()


def _integers(given: ConfigReader) -> WeightFormat:
    bits = given.integer("bits" if "bits" in given else "w_bit")
    group = given.get("group_size") if "group_size" in given else given.get("q_group_size")
    if bits not in (4, 8) or not isinstance(group, int):
        raise given.error(f"quantization_config has bits {bits} and group_size {group}")
    return FORMATS[f"int{bits}"].grouped(bits, max(group, 0), 2 + bits / 8)


def _compressed_tensors(given: ConfigReader) -> Read:
    given.refuse("transform_config")
    groups = [_group(given, group) for group in given.mapping("config_groups").values()]
    if not groups:
        raise given.error("quantization_config has no config_groups")
    return groups, given.items("ignore")


def _group(given: ConfigReader, group: Any) -> tuple[WeightFormat, Sequence[str] | None]:
    if not isinstance(group, Mapping):
        raise given.error(f"quantization_config has a group {group!r}, must be an object")
    reader = given.within(group, {"targets": ["Linear"]})
    targets = reader.items("targets")
    form = _tensor_format(given.within(reader.mapping("weights"), {"symmetric": True}))
    return form, None if "Linear" in targets else targets


def _tensor_format(weights: ConfigReader) -> WeightFormat:
    """From compressed-tensors' num_bits, type, group_size, strategy and block_structure."""
    bits, kind = weights.integer("num_bits"), weights.get("type")
    group = max(weights.get("group_size") or 0, 0)
    if (kind, bits) == ("float", 8):
        return _block_fp8(weights, weights.items("block_structure"))
    if (kind, bits) == ("float", 4) and group in (16, 32):
        return FORMATS["nvfp4" if group == 16 else "mxfp4"]
    if kind == "int" and bits in (4, 8):
        zero_point = 0.0 if weights.flag("symmetric") else bits / 8
        return FORMATS[f"int{bits}"].grouped(bits, group, 2 + zero_point)
    raise weights.error(f"quantization_config has {bits}-bit {kind} weights in groups of {group}")


def _modelopt(given: ConfigReader) -> Read:
    if given.has("config_groups"):
        return _compressed_tensors(given)
    algorithm = given.get("quant_algo")
    if algorithm not in _MODELOPT:
        raise given.error(
            f"quantization_config has quant_algo {algorithm!r}; weft has {', '.join(_MODELOPT)}"
        )
    form = FORMATS[_MODELOPT[algorithm]]
    return [(form, None)], given.items("exclude_modules") or given.items("ignore")


_MODELOPT: Final = {
    "FP8": "float8_e4m3fn",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP4": "mxfp4",
}

_METHODS: Final[Mapping[Any, Callable[[ConfigReader], Read]]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
}
