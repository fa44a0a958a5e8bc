"""What-if: the same question on a machine with other numbers (``--set inter.bandwidth=100``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from weft.errors import UserError
from weft.fabric.fabric import Fabric, Tier
from weft.prediction.accelerator import Accelerator
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Quantity

Owner = TypeVar("Owner", Accelerator, EngineProfile)

_TIER_FIELDS: Final = {
    "latency": "latency_us",
    "latency_us": "latency_us",
    "bandwidth": "bandwidth_gb_s",
    "bandwidth_gb_s": "bandwidth_gb_s",
}


def with_settings(machine: Machine, settings: Sequence[str]) -> Machine:
    """``machine`` with every ``OWNER.FIELD=VALUE`` applied, VALUE a number or a factor (``x2``).

    Owners: ``intra`` and ``inter`` (latency in µs, bandwidth in GB/s), ``accelerator`` and
    ``engine`` (their files' fields). Changing a tier drops what was measured on it.
    Raises UserError naming the setting and what can be set.
    """
    for setting in settings:
        machine = _apply(machine, setting)
    return machine


def _apply(machine: Machine, setting: str) -> Machine:
    name, _, text = setting.partition("=")
    owner, _, field = name.strip().partition(".")
    if owner in ("intra", "inter"):
        return replace(machine, fabric=_with_tier(machine.fabric, owner, field, text, setting))
    if owner == "accelerator":
        return replace(machine, accelerator=_with_number(machine.accelerator, field, text, setting))
    if owner == "engine":
        return replace(machine, profile=_with_number(machine.profile, field, text, setting))
    raise UserError(
        f"`settings` {setting}: unknown; set intra.FIELD, inter.FIELD (latency, bandwidth), "
        "accelerator.FIELD or engine.FIELD"
    )


def _with_tier(fabric: Fabric, owner: str, field: str, text: str, setting: str) -> Fabric:
    if field not in _TIER_FIELDS:
        raise UserError(f"`settings` {setting}: a tier has latency (µs) and bandwidth (GB/s)")
    tier: Tier = fabric.tier(owner)
    known = _TIER_FIELDS[field]
    value = _value(text, getattr(tier, known), setting)
    kind = known.rsplit("_us", maxsplit=1)[0].removesuffix("_gb_s")
    changes: dict[str, Any] = {known: value, f"{kind}_source": f"set by hand: {setting}"}
    changed = replace(tier, **changes)
    tables = tuple(t for t in fabric.tables if (t.nodes > 1) != (owner == "inter"))
    if owner == "inter":
        return replace(fabric, inter=changed, tables=tables)
    return replace(fabric, intra=changed, tables=tables)


def _with_number(owner: Owner, field: str, text: str, setting: str) -> Owner:
    names = [item.name for item in fields(owner)]
    old = getattr(owner, field, None) if field in names else None
    if not isinstance(old, Quantity):
        known = [name for name in names if isinstance(getattr(owner, name), Quantity)]
        raise UserError(f"`settings` {setting}: no such field; choose one of {', '.join(known)}")
    new = Quantity(
        value=_value(text, old.value, setting),
        spread=old.spread,
        origin="assumed",
        source=f"set by hand: {setting}",
    )
    changes: dict[str, Any] = {field: new}
    return replace(owner, **changes)


def _value(text: str, old: float, setting: str) -> float:
    is_factor = text.strip().startswith("x")
    try:
        number = float(text.strip().removeprefix("x"))
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserError(
            f"`settings` {setting}: the value must be a number above 0, or a factor such as x2"
        )
    return number * old if is_factor else number
