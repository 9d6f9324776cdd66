"""Which slots an adapter attaches to: one pure function of its configuration and of the slots that there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from ..slots import AdapterSlot
from .config import PointTunerConfig


def select_slots(
    config: PointTunerConfig, slots: Mapping[str, AdapterSlot], has_use_for: Callable[[AdapterSlot], bool]
) -> list[str]:
    """The slots that an adapter attaches to.

    `target_modules` and `exclude_modules` choose by name, `layers_to_transform` by number of the block. Slots outside
    of the blocks follow from those inside: they serve the blocks that are attached to, so whoever names blocks need not
    know of them.

    Args:
        config: The configuration. `target_modules` is a collection of names (the end of a slot's name, up to a dot) or
            one regular expression, `None` for all slots that the method uses.
        slots: The slots of the model, by name.
        has_use_for: Whether the method, with this configuration, has anything to put around a slot.

    Returns:
        Names of slots, in the order of the model.

    Raises:
        ValueError: If a name matches no slot, or if no block is left.
    """
    _check_names(config, slots)
    usable = {name: slot for name, slot in slots.items() if has_use_for(slot)}
    blocks = {
        name: slot
        for name, slot in usable.items()
        if slot.is_in_block and _is_targeted(config, name) and _is_in_layers(config, slot)
    }
    if config.layers_to_transform is not None and not blocks:
        numbers = sorted({slot.layers[0] for slot in usable.values() if slot.is_in_block})
        raise ValueError(
            f"`layers_to_transform`={config.layers_to_transform!r} leaves no block to attach to: with this "
            f"configuration the method has a use for the blocks {numbers or 'none'}."
        )
    serves_blocks = any(slot.is_in_block for slot in usable.values())
    attached = {slot.layers[0] for slot in blocks.values()}
    selected = []
    for name, slot in usable.items():
        if slot.is_in_block:
            chosen = name in blocks
        else:
            chosen = not _matches(config.exclude_modules, name)
            if serves_blocks:
                chosen = chosen and not attached.isdisjoint(slot.layers)
            elif config.target_modules is not None:
                chosen = chosen and _matches(config.target_modules, name)
        if chosen:
            selected.append(name)
    return selected


def matching(targets: Collection[str] | str | None, names: Collection[str]) -> list[str]:
    """The names that `target_modules` matches."""
    return [name for name in names if _matches(targets, name)]


def _is_targeted(config: PointTunerConfig, name: str) -> bool:
    is_targeted = config.target_modules is None or _matches(config.target_modules, name)
    return is_targeted and not _matches(config.exclude_modules, name)


def _is_in_layers(config: PointTunerConfig, slot: AdapterSlot) -> bool:
    wanted = config.layers_to_transform
    return wanted is None or slot.layers[0] in ([wanted] if isinstance(wanted, int) else wanted)


def _matches(targets: Collection[str] | str | None, name: str) -> bool:
    if targets is None:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name in targets or any(name.endswith(f".{target}") for target in targets)


def _check_names(config: PointTunerConfig, slots: Mapping[str, AdapterSlot]) -> None:
    targets = config.target_modules
    if targets is None:
        return
    for target in [targets] if isinstance(targets, str) else sorted(targets):
        if not matching(target if isinstance(targets, str) else {target}, slots):
            known = sorted({name.rpartition(".")[2] for name in slots})
            raise ValueError(
                f"`target_modules` has {target!r}, but the backbone has no such slot. Its slots are {known}."
            )
