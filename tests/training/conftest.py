import pytest

from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel
from point_peft_hf.training import load_task


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> str:
    """Folder of an untrained backbone, as pre-training leaves one: no head, no class token."""
    folder = tmp_path_factory.mktemp("backbone")
    config = PointMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_groups=8,
        group_size=8,
        patch_hidden_sizes=(8, 16, 16),
        position_hidden_size=8,
        classifier_hidden_size=16,
    )
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_task():
    return load_task(num_points=128, clouds_per_class=5, max_test_clouds=37)
