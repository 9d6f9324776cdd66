"""Adapters of scene encoders learn from what the collator gives, and predict scans."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from point_peft_hf import PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation, VoxelAdapterConfig
from point_peft_hf.data.scenes import Scene, SceneAugmentation, SceneCollator, SceneDataset, SceneProcessor
from point_peft_hf.scenes import SceneMetrics, ScenePredictor

CLASSES = ["low", "high"]


@pytest.fixture
def dataset(rng):
    """Boxes of points whose class is their height."""
    scenes = []
    for _ in range(2):
        points = rng.uniform(0, 2, (200, 3)).astype(np.float32)
        scenes.append(Scene.make(points, labels=(points[:, 2] > 1).astype(int)))
    return SceneDataset(scenes, CLASSES)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    config = PointTransformerV3Config(
        depths=[1, 1],
        hidden_sizes=[16, 32],
        num_attention_heads=[1, 2],
        in_channels=3,
        feature_names=["coordinates"],
        grid_size=0.1,
        num_labels=2,
        label_values=[3, 8],
        drop_path_rate=0.0,
    )
    return PointTransformerV3ForSemanticSegmentation(config)


@pytest.mark.parametrize("method", ["lora", "voxel_adapter", "full"])
def test_training_then_prediction(method, backbone, dataset):
    model, processor = backbone, SceneProcessor(0.1, ["coordinates"])
    if method == "lora":
        model = get_peft_model(backbone, LoraConfig(modules_to_save=["semantic_head"]))
    elif method == "voxel_adapter":
        model = get_peft_model(backbone, VoxelAdapterConfig(modules_to_save=["semantic_head"]))
    epoch = SimpleNamespace(seed=0, epoch=0)
    collate = SceneCollator(processor, SceneAugmentation(scale=(1, 1), jitter=0), epoch=epoch)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for epoch.epoch in range(12):
        loss = model(**collate([dataset[0], dataset[1]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    prediction = ScenePredictor(model, processor, max_voxels=100).predict(dataset.scenes[0], progress=False)
    metrics = SceneMetrics(CLASSES)
    metrics.update(torch.from_numpy(prediction.labels), torch.from_numpy(dataset.scenes[0].labels))
    assert metrics.compute()["accuracy"] > 0.7
    assert prediction.label_values == [3, 8]
