"""Which slots an adapter attaches to: one pure function of its configuration and of the slots that there are."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ..slots import AdapterSlot

if TYPE_CHECKING:
    from .config import PointTunerConfig
    from .slot_layer import SlotLayer

Selection = dict[str, tuple[type["SlotLayer"], ...]]


def select_slots(
    config: PointTunerConfig, slots: Mapping[str, AdapterSlot], layer_classes: Sequence[type[SlotLayer]]
) -> Selection:
    """The slots that an adapter attaches to, and what it puts around each.

    `target_modules` and `exclude_modules` choose by name, `layers_to_transform` by number of the block. Slots outside
    of the blocks follow from those inside: their layers serve the blocks that are attached to, so whoever names blocks
    need not know of them.

    Args:
        config: The configuration. `target_modules` is a collection of names (the end of a slot's name, up to a dot) or
            one regular expression, `None` for all slots that the method uses.
        slots: The slots of the model, by name.
        layer_classes: The layers of the method.

    Returns:
        By name of the slot the layers that go around it, in the order of the model.

    Raises:
        ValueError: If a name matches no slot, or if no block is left.
    """
    _check_names(config, slots)
    usable: dict[str, list[type[SlotLayer]]] = {}
    for name, slot in slots.items():
        for layer in layer_classes:
            if isinstance(slot, layer.slot_class) and layer.wants(config, slot):
                usable.setdefault(name, []).append(layer)
    inside = [name for name in usable if slots[name].is_in_block]
    chosen = _chosen(config, {name: slots[name] for name in inside})
    if config.layers_to_transform is not None and not chosen:
        numbers = sorted({slots[name].layers[0] for name in inside})
        use = f"attaches to the blocks {numbers}" if numbers else "attaches to no block, so leave it out"
        raise ValueError(
            f"`layers_to_transform`={config.layers_to_transform!r} leaves no block to attach to: with this "
            f"configuration the method {use}."
        )

    def serves(layer: type[SlotLayer], name: str) -> bool:
        if not any(isinstance(slots[other], layer.serves) for other in inside):
            # Nothing in the blocks follows from it, so it is chosen by name as they are.
            return config.target_modules is None or _matches(config.target_modules, name)
        return any(
            isinstance(slots[other], layer.serves) and slots[other].layers[0] in slots[name].layers for other in chosen
        )

    selected = {}
    for name, layers in usable.items():
        if not slots[name].is_in_block:
            is_excluded = _matches(config.exclude_modules, name)
            layers = [] if is_excluded else [layer for layer in layers if serves(layer, name)]
        elif name not in chosen:
            continue
        if layers:
            selected[name] = tuple(layers)
    return selected


def check_prompted(config: PointTunerConfig, prompted: Collection[int]) -> None:
    """Refuse blocks that are chosen by number if prompts would be in none of them.

    Args:
        config: A configuration with `prompt_depth`.
        prompted: Numbers of the chosen blocks with prompts.

    Raises:
        ValueError: If there is none, because `prompt_depth` counts from the first block.
    """
    if config.layers_to_transform is None or config.prompt_depth is None or prompted:
        return
    raise ValueError(
        f"No block would have prompts: `prompt_depth`={config.prompt_depth!r} puts them in the first "
        f"{config.prompt_depth} blocks, of which `layers_to_transform`={config.layers_to_transform!r} has none. Pass "
        "`prompt_depth=None` for prompts in all the blocks you chose."
    )


def matching(targets: Collection[str] | str | None, names: Collection[str]) -> list[str]:
    """The names that `target_modules` matches."""
    return [name for name in names if _matches(targets, name)]


def _chosen(config: PointTunerConfig, slots: Mapping[str, AdapterSlot]) -> set[str]:
    """The slots in the blocks that are chosen by name and by number of the block."""
    names = set(slots) if config.target_modules is None else set(matching(config.target_modules, slots))
    if config.exclude_modules:
        names.difference_update(matching(config.exclude_modules, slots))
    wanted = config.layers_to_transform
    if wanted is not None:
        numbers = [wanted] if isinstance(wanted, int) else wanted
        names = {name for name in names if slots[name].layers[0] in numbers}
    return names


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
