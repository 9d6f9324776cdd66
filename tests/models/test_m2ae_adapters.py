import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from point_peft_hf import (
    PointM2AEConfig,
    PointM2AEForClassification,
    PointPeftConfig,
    PointPriorBank,
    PointPriorPromptConfig,
    build_point_prior_bank,
    set_point_prior_bank,
)

# The paper's method on Point-M2AE for ScanObjectNN. The published total, 661,046, has 15 gates of the feed-forward
# networks on top, which are 0 at the start and so switch the frozen networks off; here they do not exist.
COMPONENTS = {
    "classifier": 267_535,
    "ffn_bottleneck": 111_120,
    "output_bottleneck": 111_120,
    "prompt_bottleneck": 32_680,
    "prompt_embedding": 53_760,
    "point_peft_bias": 26_880,
    "local_attention": 49_056 + 1_344,
    "pooled_bn": 6_720,
    "layernorm": 768,
    "prompt_coordinates": 48,
}


def test_trainable_parameters_by_component():
    config = PointM2AEConfig(num_labels=15, pooling="concat", group_sizes=[32, 16, 16])
    with torch.device("meta"):
        backbone = PointM2AEForClassification(config)
        model = get_peft_model(backbone, PointPeftConfig(num_prompt_tokens=16, prompt_depth=None))
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (component,) = [component for component in COMPONENTS if component in name]
            counts[component] += parameter.numel()
    assert counts == COMPONENTS
    assert sum(counts.values()) == 661_046 - 15
    assert model.get_nb_trainable_parameters()[0] == sum(counts.values())


@pytest.fixture
def model_type():
    return "point_m2ae"


@pytest.fixture
def model(make_classifier):
    return get_peft_model(make_classifier(), PointPeftConfig(num_prompt_tokens=4, prompt_depth=None))


@torch.no_grad()
@pytest.mark.parametrize("config_class", [PointPeftConfig, PointPriorPromptConfig])
def test_the_default_prompts_reach_the_stage_that_uses_the_bank(config_class, make_classifier, points):
    config = config_class(num_prompt_tokens=4, init_weights=False)
    model = get_peft_model(make_classifier(depths=[3, 3, 2]), config).eval()
    assert config.prompt_depth is None
    torch.manual_seed(0)
    logits = []
    for _ in range(2):
        bank = PointPriorBank(torch.randn(8, 24), torch.zeros(8, dtype=torch.long), torch.arange(8))
        set_point_prior_bank(model, bank)
        logits.append(model(points).logits)
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)


def test_prompts_that_no_bank_reaches_are_refused(make_classifier):
    message = r"Only the blocks \[6, 7\] of this backbone use a bank, and prompts are in the blocks \[0, 1"
    for fields in ({"prompt_depth": 6}, {"layers_to_transform": [0, 1]}):
        with pytest.raises(ValueError, match=message):
            get_peft_model(make_classifier(depths=[3, 3, 2]), PointPeftConfig(num_prompt_tokens=4, **fields))
    plain = PointPeftConfig(num_prompt_tokens=4, prompt_depth=6, use_bank=False)
    get_peft_model(make_classifier(depths=[3, 3, 2]), plain)


def test_one_local_attention_a_stage_and_one_set_of_coordinates(model):
    encoder = model.base_model.model.point_m2ae
    local = [stage.token_slot.part("local_attention", "default") for stage in encoder.stages]
    assert [attention.norm_weight.shape[0] for attention in local] == [12, 16, 24]
    assert encoder.point_slot.part("prompt_coordinates", "default").weight.shape == (4, 3)


def test_bank_and_enhanced_prompts_only_in_the_last_stage(model, points):
    encoder = model.base_model.model.point_m2ae
    banks = [sum(type(m).__name__ == "BankBuffers" for m in stage.modules()) for stage in encoder.stages]
    assert banks == [0, 0, 1]
    bottlenecks = [
        layer.entry_slot.part("prompt_bottleneck", "default") is not None
        for stage in encoder.stages
        for layer in stage.layers
    ]
    assert bottlenecks == [False, False, False, True]
    bank = build_point_prior_bank(model, [{"points": points}], progress=False)
    assert bank.features.shape == (4, 24)


@torch.no_grad()
def test_coordinates_of_prompts_reach_every_stage(model, points):
    """Moving them changes neighbourhoods, and with them the tokens, from the first stage on."""
    config = model.peft_config["default"]
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "point_peft_pooled_bn"):
            for batch_norm in module.point_peft_pooled_bn.values():
                torch.nn.init.ones_(batch_norm.weight)
    assert config.use_prompt_coordinates
    model.eval()
    before = model(points, output_hidden_states=True).hidden_states
    encoder = model.base_model.model.point_m2ae
    encoder.point_slot.part("prompt_coordinates", "default").weight += 3.0
    after = model(points, output_hidden_states=True).hidden_states
    assert torch.equal(before[0], after[0])
    assert all(not torch.allclose(b, a, atol=1e-6) for b, a in zip(before[1:], after[1:], strict=True))


def test_numbers_of_blocks_count_over_stages(make_classifier):
    model = get_peft_model(
        make_classifier(), PointPriorPromptConfig(num_prompt_tokens=2, prompt_depth=2, use_bank=False)
    )
    stages = model.base_model.model.point_m2ae.stages
    prompted = [isinstance(layer.entry_slot, BaseTunerLayer) for stage in stages for layer in stage.layers]
    assert prompted == [True, True, False, False]
    assert [layer.ffn_slot.layer_index for stage in stages for layer in stage.layers] == [0, 1, 2, 3]
    assert {layer.ffn_slot.stage.total_layers for stage in stages for layer in stage.layers} == {4}
