"""What is measured of a trained model beside its scores: robustness, forgetting, memory and time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F

from point_peft_hf import AutoPointPeftModel
from point_peft_hf.data import CORRUPTIONS, PointCloudDataset, corrupt
from point_peft_hf.data.corruptions import STRENGTHS
from point_peft_hf.pretrained import DEFAULT_BACKBONE
from point_peft_hf.training import Task, load_backbone, load_predictor, load_task

PROBE_CLOUDS = {"clouds_per_class": 25, "max_train_clouds": 600, "max_test_clouds": 300}


def measure(
    folder: Path, task: Task, batch_size: int, corruption_clouds: int, probe_data: str | None, backbone: str | None
) -> dict[str, Any]:
    """Measure what training saved.

    Args:
        folder: The folder that training wrote.
        task: The clouds; the test split is corrupted.
        batch_size: Clouds of a batch.
        corruption_clouds: Number of test clouds that are corrupted; 0: none. Classification only.
        probe_data: Data set of the probe, "procedural" or a folder; `None`: no probe.
        backbone: The backbone that was tuned; `None`: the default one.

    Returns:
        "inference_ms" (a cloud), "kept_memory_mib" (for the backward pass of a batch), and if asked for "corruption"
        (by kind, the accuracy at each strength), "probe" and "probe_before" (accuracy of a linear probe on
        `probe_data` with the adapted and with the pre-trained features).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(str(folder), device=device)
    model, processor = predictor.model, predictor.processor
    points = processor([task.train[i]["points"] for i in range(min(batch_size, len(task.train)))])["points"].to(device)
    inputs = {"category_ids": torch.as_tensor(task.train.labels[: len(points)])} if task.is_segmentation else {}
    found: dict[str, Any] = {"inference_ms": inference_ms(model, points, inputs)}
    if corruption_clouds and not task.is_segmentation:
        found["corruption"] = corrupted_accuracies(predictor, task.test, corruption_clouds, batch_size)
    if probe_data is not None:
        clouds = load_task(probe_data, validation_fraction=0.01, seed=0, **PROBE_CLOUDS)
        adapted = model.get_base_model() if isinstance(model, PeftModel) else model
        torch.manual_seed(0)  # of a class token that pre-training did not have
        frozen = load_backbone(backbone or DEFAULT_BACKBONE, ["one", "two"]).to(device)
        for key, encoder in (("probe", adapted.base_model), ("probe_before", frozen.base_model)):
            found[key] = probe_accuracy(encoder.eval(), clouds.train, clouds.test, processor, batch_size)
    if isinstance(model, PeftModel):
        # Loaded to predict, an adapter is frozen.
        model = AutoPointPeftModel.from_pretrained(str(folder), is_trainable=True).to(device)
    else:
        model.requires_grad_(True)
    found["kept_memory_mib"] = kept_memory_mib(model, points, inputs)
    return found


@torch.no_grad()
def inference_ms(model: nn.Module, points: torch.Tensor, inputs: dict[str, torch.Tensor], rounds: int = 5) -> float:
    """Milliseconds a cloud, the median of a few batches after one to warm up."""
    model.eval()
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        model(points, **inputs)
        if points.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started) / len(points))
    return float(np.median(times[1:]))


def kept_memory_mib(model: nn.Module, points: torch.Tensor, inputs: dict[str, torch.Tensor]) -> float:
    """MiB that the forward pass of a training step keeps for the backward pass, without the model itself.

    Each storage counts once. The model is put in train mode.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # The tensors are held, so that no other one gets their address while this goes on.
        for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
            if part.untyped_storage().data_ptr() not in own:
                kept[part.untyped_storage().data_ptr()] = part
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(points, **inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2**20


def corrupted_accuracies(
    predictor: Any, test: PointCloudDataset, count: int, batch_size: int
) -> dict[str, list[float]]:
    """The accuracy on corrupted test clouds, by kind for each strength.

    Every model sees the same corrupted clouds. A cloud with more points than models take is sampled first: the points
    that a corruption removes would otherwise be replaced by others.
    """
    chosen = np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).astype(int))
    labels, num_points = np.asarray(test.labels)[chosen], predictor.processor.num_points
    clouds = {int(index): _sampled(np.asarray(test[int(index)]["points"]), num_points, int(index)) for index in chosen}
    found: dict[str, list[float]] = {}
    for number, name in enumerate(CORRUPTIONS):
        for strength in STRENGTHS:
            changed = [
                corrupt(points, name, strength, np.random.default_rng([index, number, strength]))
                for index, points in clouds.items()
            ]
            right = predictor.predict_classes(changed, batch_size) == labels
            found.setdefault(name, []).append(round(float(right.mean()), 6))
    return found


def _sampled(points: np.ndarray, num_points: int, seed: int) -> np.ndarray:
    if len(points) <= num_points:
        return points
    return points[np.random.default_rng(seed).choice(len(points), num_points, replace=False)]


@torch.no_grad()
def probe_accuracy(
    encoder: nn.Module, train: PointCloudDataset, test: PointCloudDataset, processor: Any, batch_size: int
) -> float:
    """Test accuracy of a linear probe (ridge regression on one-hot classes) on the pooled features of an encoder.

    Args:
        encoder: Returns `pooler_output` of shape `(batch_size, pooled_size)`.
        train: Clouds to fit it on.
        test: Clouds to test it on.
        processor: Prepares the clouds.
        batch_size: Clouds of a batch.
    """
    device = next(encoder.parameters()).device

    def features(dataset: PointCloudDataset) -> torch.Tensor:
        batches = []
        for start in range(0, len(dataset), batch_size):
            clouds = [dataset[index]["points"] for index in range(start, min(start + batch_size, len(dataset)))]
            batches.append(encoder(processor(clouds)["points"].to(device)).pooler_output.double().cpu())
        return torch.cat(batches)  # (num_clouds, pooled_size)

    known, new = features(train), features(test)
    mean, scale = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
    known, new = (F.pad((values - mean) / scale, (0, 1), value=1.0) for values in (known, new))
    targets = F.one_hot(torch.as_tensor(train.labels), len(train.class_names)).double()
    # A penalty of a hundredth of the variance of a feature keeps the solution unique.
    gram = known.T @ known + 1e-2 * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, known.T @ targets)
    return float(((new @ weights).argmax(dim=1) == torch.as_tensor(test.labels)).double().mean())
