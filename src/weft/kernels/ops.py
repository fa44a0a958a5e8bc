"""torch operators, so that calls can be traced by torch.compile and captured in graphs.

A communicator travels as its integer handle. Registered at import:

- ``weft::device_all_reduce_(Tensor(a!) tensor, int communicator) -> ()``
- ``weft::device_all_reduce(Tensor tensor, int communicator) -> Tensor``
- ``weft::device_all_reduce_residual_rms_norm(Tensor tensor, Tensor(a!) residual,
  Tensor weight, float epsilon, int communicator) -> Tensor``
"""

from __future__ import annotations

from typing import Any

import torch

from weft.kernels.communicator import find

_library: Any = torch.library.Library  # untyped in torch
LIBRARY = _library("weft", "FRAGMENT")


def _all_reduce_(tensor: torch.Tensor, communicator: int) -> None:
    find(communicator).all_reduce(tensor)


def _all_reduce(tensor: torch.Tensor, communicator: int) -> torch.Tensor:
    return find(communicator).all_reduce(tensor, torch.empty_like(tensor))


def _all_reduce_residual_rms_norm(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    communicator: int,
) -> torch.Tensor:
    device = find(communicator)
    return device.all_reduce_residual_rms_norm(tensor, residual, weight, epsilon)


def _nothing(tensor: torch.Tensor, communicator: int) -> None:
    del tensor, communicator


def _like(tensor: torch.Tensor, communicator: int) -> torch.Tensor:
    del communicator
    return torch.empty_like(tensor)


def _like_first(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    communicator: int,
) -> torch.Tensor:
    del residual, weight, epsilon, communicator
    return torch.empty_like(tensor)


def _register() -> None:
    LIBRARY.define("device_all_reduce_(Tensor(a!) tensor, int communicator) -> ()")
    LIBRARY.define("device_all_reduce(Tensor tensor, int communicator) -> Tensor")
    LIBRARY.define(
        "device_all_reduce_residual_rms_norm(Tensor tensor, Tensor(a!) residual, Tensor weight, "
        "float epsilon, int communicator) -> Tensor"
    )
    for name, real, fake in (
        ("device_all_reduce_", _all_reduce_, _nothing),
        ("device_all_reduce", _all_reduce, _like),
        ("device_all_reduce_residual_rms_norm", _all_reduce_residual_rms_norm, _like_first),
    ):
        LIBRARY.impl(name, real, "CUDA")
        torch.library.register_fake(f"weft::{name}", fake, lib=LIBRARY)


_register()
