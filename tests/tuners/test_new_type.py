"""A new adapter type is one folder: config, layer, model, registration. Here all of it is in one file."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import PeftType
from torch import nn

import point_peft_hf as pp
from point_peft_hf.slots import OutputSlot, PromptSlot
from point_peft_hf.tuners import register_point_peft_method
from point_peft_hf.tuners.base import SlotLayer, SlotTuner
from point_peft_hf.tuners.config import PointTunerConfig
from point_peft_hf.tuners.inserting_layer import InsertingLayer


@dataclass
class TokenScaleConfig(PointTunerConfig):
    start: float = field(default=1.0, metadata={"help": "Scale of a fresh adapter."})

    _peft_type_name: ClassVar[str] = "TOKEN_SCALE"


class Scale(nn.Module):
    def __init__(self, hidden_size: int, start: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), start))


class TokenScaleLayer(SlotLayer):
    prefix = "token_scale_"


class TokenScaleOutputLayer(TokenScaleLayer):
    parts = ("factor",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"factor": Scale(self.slot.hidden_size, config.start)}

    def forward(self, hidden_states, context, prompts=()):
        hidden_states = self.base_layer(hidden_states, context, prompts)
        for name in self.working_adapters():
            hidden_states = hidden_states * self.part("factor", name).weight
        return hidden_states


class TokenScaleModel(SlotTuner):
    prefix = "token_scale_"
    tuner_layer_cls = TokenScaleLayer
    default_target_modules = ("output_slot",)
    layer_classes = {OutputSlot: TokenScaleOutputLayer}


def test_toy_type_is_registered_trained_saved_and_loaded(
    backbone, make_backbone, backbone_name, points, logits, train, tmp_path
):
    member = register_point_peft_method("token_scale", TokenScaleConfig, TokenScaleModel)
    assert register_point_peft_method("token_scale", TokenScaleConfig, TokenScaleModel) is member
    assert member is PeftType.TOKEN_SCALE is PeftType("TOKEN_SCALE")
    before = logits(backbone, points)
    model = get_peft_model(backbone, TokenScaleConfig())
    assert torch.equal(logits(model, points), before)
    train(model)
    expected = logits(model, points)
    assert not torch.allclose(expected, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_backbone(backbone_name), tmp_path), points), expected)


@dataclass
class GlobalTokenConfig(PointTunerConfig):
    _peft_type_name: ClassVar[str] = "GLOBAL_TOKEN"


class GlobalTokenLayer(SlotLayer):
    prefix = "global_token_"


class GlobalTokenPromptLayer(InsertingLayer, GlobalTokenLayer):
    """A prompt of a cloud: the maximum over its patch tokens, scaled."""

    parts = ("factor",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"factor": Scale(self.slot.hidden_size, 0.5)}

    def prompt_count(self, config):
        return 1

    def make_prompts(self, name, hidden_states, context):
        tokens = hidden_states[:, -context.group_centers.shape[1] :]
        return tokens.amax(dim=1, keepdim=True) * self.part("factor", name).weight


class GlobalTokenModel(SlotTuner):
    prefix = "global_token_"
    tuner_layer_cls = GlobalTokenLayer
    default_target_modules = ("prompt_slot",)
    layer_classes = {PromptSlot: GlobalTokenPromptLayer}

    def wants_slot(self, peft_config, slot):
        return slot.layer_index == slot.num_layers - 1


@pytest.mark.parametrize("is_first", [True, False])
def test_a_type_that_inserts_tokens_goes_with_others(backbone, points, logits, is_first):
    register_point_peft_method("global_token", GlobalTokenConfig, GlobalTokenModel)
    others = {"geometry": pp.GeometryAdapterConfig(init_weights=False), "prompts": pp.PointPriorPromptConfig()}
    own = {"own": GlobalTokenConfig()}
    model = pp.add_adapters(backbone, {**own, **others} if is_first else {**others, **own})
    slots = [module.prompt_counts for module in model.modules() if isinstance(module, GlobalTokenPromptLayer)]
    assert [counts["own"] for counts in slots] == [1]
    together = logits(model, points)
    torch.testing.assert_close(logits(model, points[:2]), together[:2], rtol=1e-5, atol=1e-5)
    pp.set_adapters(model, ["geometry", "prompts"])
    assert not torch.allclose(logits(model, points), together)


def test_a_card_names_a_type_that_says_nothing_of_itself():
    assert TokenScaleConfig.describe({}) == ("TOKEN_SCALE", ())


def test_a_taken_or_ill_formed_name_is_refused():
    with pytest.raises(ValueError, match="PEFT already has a method LORA"):
        register_point_peft_method("lora", TokenScaleConfig, type("LoraLike", (SlotTuner,), {"prefix": "lora_"}))
    with pytest.raises(ValueError, match="must be in lower case"):
        register_point_peft_method("TOKEN_SCALE", TokenScaleConfig, TokenScaleModel)
    with pytest.raises(ValueError, match="prefix of TokenScaleModel must be 'other_'"):
        register_point_peft_method("other", TokenScaleConfig, TokenScaleModel)
