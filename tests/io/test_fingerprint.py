"""The fingerprint tells backbones apart by their weights, and by nothing else."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from point_peft_hf import GeometryAdapterConfig
from point_peft_hf.io.backbone import common_precision, fingerprint


@pytest.mark.parametrize("backbone", ["point_mae", "point_bert", "point_m2ae"])
def test_it_does_not_depend_on_head_adapters_or_mode(backbone, load_backbone):
    expected = fingerprint(load_backbone(backbone))
    assert set(expected) == {"float32", "bfloat16", "float16"}
    torch.manual_seed(1)  # another random head, and for Point-MAE another class token
    model = load_backbone(backbone)
    assert fingerprint(model) == expected
    wrapped = get_peft_model(
        model, GeometryAdapterConfig(init_weights=False, modules_to_save=["classifier", "layernorm"])
    )
    wrapped.train()(points=torch.rand(4, 64, 3), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert fingerprint(wrapped.get_base_model()) == expected
    low_rank = get_peft_model(load_backbone(backbone), LoraConfig(target_modules=["q_proj"]))
    assert fingerprint(low_rank.get_base_model()) == expected


@pytest.mark.parametrize(
    "name", ["patch_embedding.first_norm1.running_mean", "layernorm.bias", "encoder.layers.0.mlp.fc1.weight"]
)
def test_it_changes_with_every_weight_and_statistic(name, load_backbone):
    model = load_backbone()
    expected = fingerprint(model)
    tensor = model.point_mae.state_dict()[name]
    tensor.view(-1)[-1] += 0.01
    got = fingerprint(model)
    assert all(got[precision] != expected[precision] for precision in expected)


def test_a_cast_is_still_the_same_backbone(load_backbone):
    model = load_backbone()
    expected = fingerprint(model)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        got = fingerprint(copy.deepcopy(model).to(dtype))
        precision = common_precision(expected, got)
        assert got[precision] == expected[precision]
    back = fingerprint(copy.deepcopy(model).to(torch.bfloat16).float())
    assert back["bfloat16"] == expected["bfloat16"]
    assert back["float32"] != expected["float32"]
    assert common_precision(fingerprint(copy.deepcopy(model).half()), fingerprint(model.bfloat16())) is None
    with torch.device("meta"):
        assert fingerprint(torch.nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_loads_on_a_backbone_in_half_precision(dtype, make_adapter, load_backbone, tmp_path, read_json):
    make_adapter("geometry").save_pretrained(tmp_path)
    expected = read_json(tmp_path / "adapter_config.json")["backbone"]["weights"]
    model = PeftModel.from_pretrained(load_backbone(dtype=dtype), tmp_path)
    model.save_pretrained(tmp_path / "again")
    assert read_json(tmp_path / "again" / "adapter_config.json")["backbone"]["weights"] == expected
    other = load_backbone(dtype=dtype)
    with torch.no_grad():
        other.point_mae.layernorm.bias[0] += 1
    with pytest.raises(ValueError, match="with other weights"):
        PeftModel.from_pretrained(other, tmp_path)
