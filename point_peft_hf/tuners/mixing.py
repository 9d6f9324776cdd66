"""Several adapters of different types on one backbone: ours, LoRA, and whatever else PEFT can inject.

    model = AutoModelForPointCloudClassification.from_pretrained(...)
    add_adapters(model, {"geometry": GeometryAdapterConfig(), "low_rank": LoraConfig(r=8)})
    ... train as any model of transformers ...
    save_adapters(model, "adapters")    # adapters/geometry, adapters/low_rank: each loads on its own, too
    load_adapters(backbone, "adapters")

A `PeftModel` cannot do this: its `add_adapter` takes one type only, `PeftMixedModel` has a closed list of types, and
`get_peft_model` must not be called twice. So the adapters are injected into the backbone itself, which stays the
class that it is. The order of the adapters does not matter for what is saved, and for what is computed only where two
adapters change the same tokens at the same place.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from peft import PeftConfig, PeftMixedModel, PeftModel
from peft.functional import (
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import save_file
from torch import nn

from ..attaching import RandomPartsGuard, activate, active_adapters, all_or_nothing
from ..io.files import check_files, find_adapter, write_json
from ..io.weights import KEY_PREFIX, load_weights
from ..slots import ReadoutSlot
from .base import head_name, slots_by_name
from .config import PointTunerConfig

# Beside the folders of the adapters: their order, which matters where two of them change the same tokens.
INDEX_NAME = "adapters.json"


def add_adapters(model: nn.Module, configs: Mapping[str, PeftConfig]) -> nn.Module:
    """Attach several adapters, of any injectable types, to a backbone; all of them are active and trained.

    The head, and whatever else the backbone declares as part of the task, goes to the adapter that names it in
    `modules_to_save`, or else to the adapter of ours that reads out features of its own, or else to the first of ours:
    two active adapters cannot both bring it. If one adapter fails, none is attached.

    Args:
        model: The backbone, not wrapped by `get_peft_model`; it is changed in place. It may carry adapters already,
            which stay active.
        configs: The configurations by adapter name. They are copied.

    Returns:
        The same model.

    Raises:
        ValueError: If the model is wrapped, a name is taken, two adapters name the same module to save or both need a
            head of their own, or an adapter cannot be attached.
    """
    _check_backbone(model)
    taken = getattr(model, "peft_config", {})
    for name in configs:
        if name in taken:
            raise ValueError(
                f"The model already has an adapter {name!r} (of type {taken[name].peft_type.value}). Use another "
                "name, or delete that one first."
            )
    active = active_adapters(model)
    configs = _share_out_task_modules(model, configs)
    with _all_or_nothing(model):
        for name, config in configs.items():
            if isinstance(config, PointTunerConfig):
                # Types may bring more than the task has, and two of them the same.
                config._brought_by_others += tuple(_modules_brought_by(model, active))
            _inject(model, name, config)
            active.append(name)
        set_adapters(model, active)
    return model


def set_adapters(model: nn.Module, adapter_names: str | Iterable[str], *, is_trainable: bool = True) -> None:
    """Choose the adapters that are active, for example between the requests of two customers.

    Args:
        model: A backbone with adapters.
        adapter_names: One or several of them.
        is_trainable: Whether the chosen adapters are trained; the others never are.

    Raises:
        ValueError: If there is no such adapter, or two of them bring the same module.
    """
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
    _check_known(model, names)
    activate(model, names, inference_mode=not is_trainable)


def save_adapters(
    model: nn.Module, save_directory: str | Path, adapter_names: Iterable[str] | None = None
) -> dict[str, Path]:
    """Save each adapter to a folder of its own, as PEFT does: `PeftModel.from_pretrained(backbone, folder)` loads it.

    Args:
        model: A backbone with adapters.
        save_directory: Where the folders go; they have the adapters' names.
        adapter_names: Which adapters; default: all.

    Returns:
        The folders by adapter name.

    Raises:
        ValueError: If there is no such adapter.
    """
    _check_backbone(model)
    names = list(getattr(model, "peft_config", {}) if adapter_names is None else adapter_names)
    _check_known(model, names)
    folders = {}
    for name in names:
        folders[name] = folder = Path(save_directory) / name
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        # Two types at one module sit inside of each other; which one is outside must not show in a file. Clones,
        # because safetensors refuses tensors that share memory.
        tensors = {
            KEY_PREFIX + key.replace(".base_layer.", "."): value.detach().clone().contiguous()
            for key, value in state_dict.items()
        }
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config = copy.copy(model.peft_config[name])
        config.inference_mode = True
        config.save_pretrained(str(folder))
    write_json(Path(save_directory) / INDEX_NAME, {"adapter_names": names})
    return folders


def load_adapters(
    model: nn.Module,
    directory: str | Path,
    adapter_names: Iterable[str] | None = None,
    *,
    is_trainable: bool = False,
) -> list[str]:
    """Load adapters that [`save_adapters`] saved, and activate them together with those that are active already.

    Args:
        model: The backbone that they were made for, not wrapped by `get_peft_model`; it is changed in place.
        directory: The folder with a folder for each adapter.
        adapter_names: Which adapters; default: all that are there, in the order of the saved model.
        is_trainable: Whether they are going to be trained on.

    Returns:
        The names of the adapters that were loaded.

    Raises:
        ValueError: If there is no such folder, a name is taken, or an adapter does not fit the backbone.
    """
    _check_backbone(model)
    directory = Path(directory)
    index = directory / INDEX_NAME
    order = json.loads(index.read_text(encoding="utf-8"))["adapter_names"] if index.is_file() else []
    folders = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}"))
    found = [*(name for name in order if name in folders), *(name for name in folders if name not in order)]
    names = found if adapter_names is None else list(adapter_names)
    if not names or set(names) - set(found):
        missing = ", ".join(map(repr, sorted(set(names) - set(found)))) or "adapters"
        raise ValueError(
            f"There are no {missing} in {directory}; it has {found or 'none'}. Save with `save_adapters`."
        )
    taken = sorted(set(names) & set(getattr(model, "peft_config", {})))
    if taken:
        raise ValueError(
            f"The model already has adapters {taken}. Delete them first, or leave them out of `adapter_names`."
        )
    active = active_adapters(model)
    with _all_or_nothing(model):
        for name in names:
            _load(model, name, directory / name, is_trainable)
        set_adapters(model, [*active, *names], is_trainable=is_trainable)
        if isinstance(model, RandomPartsGuard):
            model.check_no_random_parts(names)
    return names


def _modules_brought_by(model: nn.Module, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield from getattr(model.peft_config[name], "modules_to_save", None) or ()


def _load(model: nn.Module, name: str, folder: Path, is_trainable: bool) -> None:
    # By way of its own class, as PEFT does it: those of ours look at the file of the weights as well.
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftConfig._get_peft_type(str(folder))].from_pretrained(str(folder))
    config.inference_mode = not is_trainable
    _inject(model, name, config)
    load_weights(model, name, check_files(find_adapter(folder)))


def _inject(model: nn.Module, name: str, config: PeftConfig) -> None:
    config.base_model_name_or_path = config.base_model_name_or_path or model.__dict__.get("name_or_path") or None
    was_training = model.training
    with warnings.catch_warnings():
        # PEFT warns of what this module is for.
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        inject_adapter_in_model(config, model, adapter_name=name)
    model.train(was_training)
    # What transformers looks for before `save_pretrained`, `disable_adapters` and the like.
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = True


def _share_out_task_modules(model: nn.Module, configs: Mapping[str, PeftConfig]) -> dict[str, PeftConfig]:
    """Copies of the configurations in which each module of the task belongs to one adapter."""
    configs = {name: copy.copy(config) for name, config in configs.items()}
    known = getattr(model, "peft_config", {})
    together = {name: known.get(name) or configs[name] for name in (*active_adapters(model), *configs)}
    owners = {}
    for name, config in together.items():
        for module in getattr(config, "modules_to_save", None) or ():
            if module in owners:
                raise ValueError(
                    f"Adapters {owners[module]!r} and {name!r} both have {module!r} in `modules_to_save`, but only "
                    "one of the adapters that are active together can bring it. Take it out of one of them."
                )
            owners[module] = name
    in_need = _in_need_of_head(model, together, owners)
    undecided = [n for n, c in configs.items() if isinstance(c, PointTunerConfig) and c.modules_to_save is None]
    heir = in_need if in_need in undecided else next(iter(undecided), None)
    for name, config in configs.items():
        if isinstance(config, PointTunerConfig):
            brought = [module for module, owner in owners.items() if owner != name]
            brought += [] if heir in (None, name) else getattr(model, "task_module_names", ())
            config._brought_by_others = tuple(brought)
    return configs


def _in_need_of_head(model: nn.Module, configs: Mapping[str, PeftConfig], owners: Mapping[str, str]) -> str | None:
    """Name of the adapter that reads out other features than the backbone, which its own head must take."""
    own = {name: config for name, config in configs.items() if isinstance(config, PointTunerConfig)}
    names = [name for name, config in own.items() if _reads_out_anew(config, model)]
    if len(names) > 1:
        types = " and ".join(f"{name!r} ({own[name].peft_type.value})" for name in names[:2])
        raise ValueError(
            f"The adapters {types} cannot be active together: each reads out features of its own for a head of its "
            "own, and a model has one head. Use one of them, or give each its own copy of the backbone."
        )
    owner = owners.get(head_name(model))
    if names and owner not in (None, *names):
        raise ValueError(
            f"Adapter {names[0]!r} of type {own[names[0]].peft_type.value} needs a head of its own, but adapter "
            f"{owner!r} brings {head_name(model)!r}. Attach {owner!r} without it: leave out its `modules_to_save` and "
            "attach both in one call of `add_adapters`, or pass `modules_to_save=[]`."
        )
    return next(iter(names), None)


def _reads_out_anew(config: PointTunerConfig, model: nn.Module) -> bool:
    """Whether an adapter reads out features of another width than the backbone."""
    if config.target_modules == DUMMY_TARGET_MODULES:
        return False
    # Not initialised, which would attach it: what is asked of it depends on the configuration alone.
    tuner = object.__new__(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type])
    readouts = [slot for slot in slots_by_name(model).values() if isinstance(slot, ReadoutSlot) and slot.is_read]
    layers = [layer for layer in tuner.layers_of(config) if issubclass(layer.slot_class, ReadoutSlot)]
    return any(
        layer.wants(config, slot) and tuner.readout_size(config, slot) != slot.hidden_size
        for layer in layers
        for slot in readouts
    )


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    several = model.several_adapters() if isinstance(model, RandomPartsGuard) else nullcontext()
    with all_or_nothing(model), several:
        yield


def _check_backbone(model: nn.Module) -> None:
    if isinstance(model, PeftModel | PeftMixedModel):
        raise ValueError(
            f"Adapters of several types attach to the backbone itself, but the model is a {type(model).__name__}. "
            "Pass the backbone as it is before `get_peft_model`, or get it back with `model.unload()`."
        )


def _check_known(model: nn.Module, names: list[str]) -> None:
    known = list(getattr(model, "peft_config", {}))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"There are no adapters {unknown or '(an empty list)'} on this model; it has {known}.")
