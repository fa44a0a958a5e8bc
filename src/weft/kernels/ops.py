"""torch operators, so that calls can be traced by torch.compile and captured in graphs.

A reducer travels as its integer handle. Registered at import, for every device:

- ``weft::all_reduce_(Tensor(a!) tensor, int reducer, str algorithm) -> ()``
- ``weft::all_reduce(Tensor tensor, int reducer, str algorithm) -> Tensor``
- ``weft::all_reduce_residual_rms_norm(Tensor tensor, Tensor(a!) residual, Tensor weight,
  float epsilon, int reducer) -> Tensor``
"""

from __future__ import annotations

from typing import Any

import torch

from weft.kernels.reducer import find

_library: Any = torch.library.Library  # untyped in torch
LIBRARY = _library("weft", "FRAGMENT")


def _all_reduce_(tensor: torch.Tensor, reducer: int, algorithm: str) -> None:
    find(reducer).all_reduce(tensor, algorithm=algorithm)


def _all_reduce(tensor: torch.Tensor, reducer: int, algorithm: str) -> torch.Tensor:
    return find(reducer).all_reduce(tensor, torch.empty_like(tensor), algorithm=algorithm)


def _all_reduce_residual_rms_norm(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    reducer: int,
) -> torch.Tensor:
    out = torch.empty_like(tensor)
    return find(reducer).all_reduce_residual_rms_norm(tensor, residual, weight, epsilon, out)


def _nothing(*_: Any) -> None:
    return None


def _like_first(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(tensor)


_NORM = (
    "all_reduce_residual_rms_norm(Tensor tensor, Tensor(a!) residual, Tensor weight, "
    "float epsilon, int reducer) -> Tensor"
)

for _schema, _real, _fake in (
    ("all_reduce_(Tensor(a!) tensor, int reducer, str algorithm) -> ()", _all_reduce_, _nothing),
    ("all_reduce(Tensor tensor, int reducer, str algorithm) -> Tensor", _all_reduce, _like_first),
    (_NORM, _all_reduce_residual_rms_norm, _like_first),
):
    _name = _schema.partition("(")[0]
    LIBRARY.define(_schema)
    LIBRARY.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"weft::{_name}", _fake, lib=LIBRARY)
