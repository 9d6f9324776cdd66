import pytest
import torch
from peft import get_peft_model

from point_peft_hf import AutoModelForPointCloudClassification, PointCloudProcessor
from point_peft_hf.io import save_adapter
from point_peft_hf.training import Predictor, load_backbone, load_resident, method_config
from point_peft_hf.training.resident import short_names


@pytest.fixture
def adapters(tiny_backbone, tmp_path):
    """Adapters of two types, for different classes."""
    torch.manual_seed(0)
    folders = []
    for name, classes in (("geometry", ["cup", "chair"]), ("lora", ["saw", "nail", "bolt"])):
        backbone = load_backbone(tiny_backbone, classes)
        model = get_peft_model(backbone, method_config(name, backbone))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        folders.append(str(tmp_path / name))
        save_adapter(model, folders[-1], processor=PointCloudProcessor(num_points=128))
    return folders


def storage(models):
    return sum({p.data_ptr(): p.numel() for model in models for p in model.parameters()}.values())


def test_adapters_of_different_types_and_classes_share_one_backbone(adapters, tiny_backbone):
    resident = load_resident(adapters)
    alone = [Predictor.from_pretrained(adapter) for adapter in adapters]
    cloud = torch.randn(200, 3).numpy()
    assert list(resident) == ["geometry", "lora"]
    for predictor, other in zip(resident.values(), alone, strict=True):
        assert predictor.predict(cloud, top=3) == other.predict(cloud, top=3)
    encoder = AutoModelForPointCloudClassification.from_pretrained(tiny_backbone).point_mae.encoder
    saved = storage([other.model for other in alone]) - storage([p.model for p in resident.values()])
    assert saved >= storage([encoder])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["one/lora", "two/lora"], ["one/lora", "two/lora"]),
        (["you/adapter"], ["adapter"]),
        (["a", "x/a"], ["a", "x/a"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    assert short_names(paths) == names


@pytest.mark.parametrize("paths", [[], ["a", "a"], ["a/", "a"]])
def test_one_or_more_adapters_each_once(paths):
    with pytest.raises(ValueError, match="one or more adapters, each once"):
        load_resident(paths)
