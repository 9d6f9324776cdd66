"""Toy adapter types, one for each thing that the contract between backbones and adapters carries."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from point_peft_hf.slots import (
    BranchSlot,
    EntrySlot,
    LayerSlot,
    OutputSlot,
    PointSlot,
    ReadoutSlot,
    TokenSlot,
)
from point_peft_hf.tuners.base import SlotTuner
from point_peft_hf.tuners.config import PointTunerConfig
from point_peft_hf.tuners.registry import register_method
from point_peft_hf.tuners.slot_layer import BranchLayer, SlotLayer


class Vector(nn.Module):
    def __init__(self, *shape: int, start: float = 0.0, std: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, start) + std * torch.randn(shape))


def vector(config, *shape: int, start: float = 0.0) -> Vector:
    return Vector(*shape, start=start, std=0.0 if config.init_weights is True else 0.3)


def linear(config, in_size: int, out_size: int) -> nn.Linear:
    layer = nn.Linear(in_size, out_size, bias=False)
    if config.init_weights is True:
        nn.init.zeros_(layer.weight)
    return layer


# -- Points that are changed before they are grouped ------------------------------------------------------------------


@dataclass
class MovedPointsConfig(PointTunerConfig):
    pass


class MovedPointsLayer(SlotLayer):
    slot_class = PointSlot
    parts = ("shift",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"shift": vector(config, 3)}

    def adapt(self, name, cloud, backbone):
        return replace(cloud, points=cloud.points + self.part("shift", name).weight)


@register_method("moved_points", MovedPointsConfig)
class MovedPointsModel(SlotTuner):
    layer_classes = (MovedPointsLayer,)


# -- A token that stays, with its own position, and in the head -------------------------------------------------------


@dataclass
class KeptTokenConfig(PointTunerConfig):
    pass


class KeptTokenLayer(SlotLayer):
    slot_class = EntrySlot
    parts = ("token", "place")

    @classmethod
    def wants(cls, config, slot):
        return slot.layer_index == max(slot.stage.total_layers - 2, 0)

    def create_parts(self, adapter_name, config, slot_name):
        return {part: Vector(self.slot.hidden_size, std=0.5) for part in self.parts}

    def adapt(self, name, tokens):
        rows = [self.part(part, name).weight.expand(len(tokens.features), 1, -1) for part in self.parts]
        return tokens.insert(self.key(name), *rows, keeps=True)


class KeptTokenReadout(SlotLayer):
    slot_class = ReadoutSlot
    serves = (EntrySlot,)

    def adapt(self, name, pooled, tokens, levels):
        return torch.cat([pooled, levels[-1].of(self.key(name)).mean(dim=1)], dim=-1)


@register_method("kept_token", KeptTokenConfig)
class KeptTokenModel(SlotTuner):
    layer_classes = (KeptTokenLayer, KeptTokenReadout)

    def readout_size(self, peft_config, slot):
        return slot.hidden_size + slot.stage.hidden_size


# -- Scale and shift after every norm, linear layer and embedding -----------------------------------------------------


@dataclass
class AffineConfig(PointTunerConfig):
    pass


class AffineLayer(SlotLayer):
    slot_class = LayerSlot
    parts = ("gamma", "beta")

    def create_parts(self, adapter_name, config, slot_name):
        return {"gamma": vector(config, self.slot.hidden_size), "beta": vector(config, self.slot.hidden_size)}

    def adapt(self, name, output, inputs):
        return output * (1 + self.part("gamma", name).weight) + self.part("beta", name).weight


@register_method("affine", AffineConfig)
class AffineModel(SlotTuner):
    layer_classes = (AffineLayer,)


# -- The input of a linear layer at its output ------------------------------------------------------------------------


@dataclass
class BypassConfig(PointTunerConfig):
    pass


class BypassLayer(SlotLayer):
    slot_class = LayerSlot
    parts = ("bypass",)

    @classmethod
    def wants(cls, config, slot):
        return slot.layer in ("q_proj", "v_proj", "out_proj")

    def create_parts(self, adapter_name, config, slot_name):
        return {"bypass": linear(config, self.slot.hidden_size, self.slot.hidden_size)}

    def adapt(self, name, output, inputs):
        return output + self.part("bypass", name)(inputs)


@register_method("bypass", BypassConfig)
class BypassModel(SlotTuner):
    layer_classes = (BypassLayer,)


# -- A branch that sees its input, its output and the residual stream -------------------------------------------------


@dataclass
class ParallelConfig(PointTunerConfig):
    pass


class ParallelLayer(BranchLayer):
    slot_class = BranchSlot
    parts = ("inside", "outside")

    def create_parts(self, adapter_name, config, slot_name):
        return {part: linear(config, self.slot.hidden_size, self.slot.hidden_size) for part in self.parts}

    def adapt_output(self, name, output, inputs, tokens):
        return output + self.part("inside", name)(inputs), tokens

    def adapt_update(self, name, update, inputs, tokens):
        return update + self.part("outside", name)(tokens.features), tokens


@register_method("parallel", ParallelConfig)
class ParallelModel(SlotTuner):
    layer_classes = (ParallelLayer,)


# -- A state that is carried over blocks ------------------------------------------------------------------------------


@dataclass
class CarriedConfig(PointTunerConfig):
    pass


class CarriedLayer(SlotLayer):
    slot_class = OutputSlot
    parts = ("gather", "spread")

    def create_parts(self, adapter_name, config, slot_name):
        size = self.slot.hidden_size
        return {"gather": nn.Linear(size, 5), "spread": linear(config, 5, size)}

    def adapt(self, name, tokens):
        state = tokens.carry.get(self.key(name), 0) + self.part("gather", name)(tokens.patches).mean(dim=1)
        update = self.part("spread", name)(torch.tanh(state))[:, None].expand_as(tokens.patches)
        return tokens.carrying(self.key(name), state).add_to("patch", update)


@register_method("carried", CarriedConfig)
class CarriedModel(SlotTuner):
    layer_classes = (CarriedLayer,)


# -- A second set of tokens from the backbone's own grouping and embedding --------------------------------------------


@dataclass
class SecondSetConfig(PointTunerConfig):
    pass


class SecondSetLayer(SlotLayer):
    slot_class = TokenSlot
    parts = ("gain",)

    @classmethod
    def wants(cls, config, slot):
        return slot.stage.index == 0

    def create_parts(self, adapter_name, config, slot_name):
        return {"gain": vector(config, self.slot.hidden_size, start=1.0)}

    def adapt(self, name, tokens, backbone):
        features, positions, centers = backbone.embed(tokens.cloud.points, 4, 8)
        return tokens.insert(self.key(name), features * self.part("gain", name).weight, positions, centers, keeps=True)


@register_method("second_set", SecondSetConfig)
class SecondSetModel(SlotTuner):
    layer_classes = (SecondSetLayer,)


# -- A module that the blocks of a stage share ------------------------------------------------------------------------


@dataclass
class SharedConfig(PointTunerConfig):
    pass


class SharedOwner(SlotLayer):
    slot_class = TokenSlot
    parts = ("mix",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"mix": linear(config, self.slot.hidden_size, self.slot.hidden_size)}

    def adapt(self, name, tokens, backbone):
        return tokens.sharing(self.key(name), self.part("mix", name))


class SharedUser(SlotLayer):
    slot_class = EntrySlot

    def adapt(self, name, tokens):
        return tokens.add_to("patch", tokens.cloud.shared[self.key(name)](tokens.patches))


@register_method("shared", SharedConfig)
class SharedModel(SlotTuner):
    layer_classes = (SharedOwner, SharedUser)


# -- A loss of its own ------------------------------------------------------------------------------------------------


@dataclass
class SparseConfig(PointTunerConfig):
    pass


class SparseLayer(SlotLayer):
    slot_class = TokenSlot
    parts = ("gate",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"gate": vector(config, self.slot.hidden_size, start=1.0)}

    def adapt(self, name, tokens, backbone):
        gate = self.part("gate", name).weight
        return tokens.with_features(tokens.features * gate).with_loss(gate.abs().mean())


@register_method("sparse", SparseConfig)
class SparseModel(SlotTuner):
    layer_classes = (SparseLayer,)


# -- Parts of the backbone that are saved, but not trained ------------------------------------------------------------


@dataclass
class SavedNormConfig(PointTunerConfig):
    pass


class SavedNormLayer(SlotLayer):
    slot_class = OutputSlot
    parts = ("factor",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"factor": vector(config, self.slot.hidden_size, start=1.0)}

    def adapt(self, name, tokens):
        return tokens.with_features(tokens.features * self.part("factor", name).weight)


@register_method("saved_norm", SavedNormConfig)
class SavedNormModel(SlotTuner):
    layer_classes = (SavedNormLayer,)

    def frozen_modules(self, peft_config, model):
        return model.final_norm_names


# -- Something that is computed once a cloud, and can be handed in ----------------------------------------------------


@dataclass
class OnceConfig(PointTunerConfig):
    pass


class OnceLayer(SlotLayer):
    slot_class = EntrySlot
    parts = ("factor",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"factor": vector(config, self.slot.hidden_size)}

    def adapt(self, name, tokens):
        cloud = tokens.cloud
        radius = cloud.memo.once(f"{self.key(name)}.radius", lambda: cloud.source.norm(dim=-1).mean(1), per_cloud=True)
        return tokens.with_features(tokens.features + radius[:, None, None] * self.part("factor", name).weight)


@register_method("once", OnceConfig)
class OnceModel(SlotTuner):
    layer_classes = (OnceLayer,)


TOYS = {
    "moved_points": MovedPointsConfig,
    "kept_token": KeptTokenConfig,
    "affine": AffineConfig,
    "bypass": BypassConfig,
    "parallel": ParallelConfig,
    "carried": CarriedConfig,
    "second_set": SecondSetConfig,
    "shared": SharedConfig,
    "sparse": SparseConfig,
    "saved_norm": SavedNormConfig,
    "once": OnceConfig,
}
# Further tokens join the attention.
ACTIVE_TOYS = {"kept_token", "second_set"}
