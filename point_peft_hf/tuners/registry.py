"""Registration with PEFT: the only file that touches PEFT's list of types.

PEFT has no entry point for methods from outside: `register_peft_method` wants a member of the enum `PeftType`, and an
enum cannot be extended by its own means. So the member is made the way `enum` makes members. Should PEFT ever define a
type of the same name itself, registering is refused instead of replacing it.
"""

from __future__ import annotations

from collections.abc import Callable

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def register_method(name: str, config_cls: type[PeftConfig]) -> Callable[[type[BaseTuner]], type[BaseTuner]]:
    """Make a PEFT type known to `peft`, so that `get_peft_model`, `PeftModel.from_pretrained` and all others find it.

    A decorator of the tuner:

        @register_method("token_scale", TokenScaleConfig)
        class TokenScaleModel(SlotTuner):
            layer_classes = {OutputSlot: TokenScaleLayer}

    Args:
        name: Name of the type in lower case, such as "geometry_adapter".
        config_cls: Its configuration.

    Returns:
        What takes the tuner and returns it. Registering the same classes again does nothing.

    Raises:
        ValueError: If the name is not in lower case, or if another method has it.
    """

    def register(model_cls: type[BaseTuner]) -> type[BaseTuner]:
        _register(name, config_cls, model_cls)
        return model_cls

    return register


def _register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> PeftType:
    if not name.islower() or name.endswith("_"):
        raise ValueError(f"The name of a PEFT method must be in lower case and not end with '_', got {name!r}.")
    member_name = name.upper()
    if member_name in PeftType.__members__:
        member = PeftType[member_name]
        registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
        if registered is config_cls:
            return member
        if registered is not None or not getattr(member, "_added_by_point_peft_hf", False):
            owner = registered.__module__ if registered else "peft"
            raise ValueError(
                f"PEFT already has a method {member_name} (from {owner}), so {config_cls.__module__} cannot register "
                "its own under that name. Use a version of peft without it, or rename the method."
            )
    else:
        member = _add_member(member_name)
    # The prefix of all parameters of the type, and what its configurations are called in a file.
    model_cls.prefix = f"{name}_"
    config_cls._peft_type_name = member_name
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    return member


def _add_member(name: str) -> PeftType:
    """Add a member whose value is its name, as all members of `PeftType` have it."""
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)
    member.__objclass__ = PeftType
    member._added_by_point_peft_hf = True
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Python 3.13 keeps the hashable values in a list of their own.
    if hasattr(PeftType, "_hashable_values_"):
        PeftType._hashable_values_.append(name)
    return member
