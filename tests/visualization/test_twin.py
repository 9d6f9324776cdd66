"""A twin computes what its model does, and leaves the model alone."""

import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn

import point_peft_hf as pp
from point_peft_hf.visualization import classify_clouds, inspect_cloud
from point_peft_hf.visualization.twin import make_twin

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 4}
CLOUDS = torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(0))
CLOUD = CLOUDS[0].numpy()
BATCH = {"points": CLOUDS, "labels": torch.tensor([0, 1, 2, 0])}


def make_backbone():
    torch.manual_seed(0)
    fields = SIZES | {"patch_hidden_sizes": (8, 8, 16), "classifier_hidden_size": 16, "num_labels": 3}
    return pp.PointMAEForClassification(pp.PointMAEConfig(**fields)).eval()


@pytest.fixture
def model():
    model = get_peft_model(make_backbone(), pp.PointPeftConfig(num_prompt_tokens=4)).eval()
    pp.build_point_prior_bank(model, [{"points": CLOUDS}], progress=False)
    return model


def logits_of(model):
    with torch.no_grad():
        return model(points=CLOUDS[:1]).logits[0].numpy()


def state_of(model):
    """All attributes of all modules; of dictionaries what is in them."""
    return [
        (name, key, [*value.items()] if isinstance(value, dict) else value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    ]


def are_same(first, second):
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(are_same, first, second))
    return first is second or (isinstance(first, str | bool | int) and first == second)


def test_a_twin_has_modules_of_its_own_and_the_same_weights(model):
    twin = make_twin(model)
    assert not set(twin.modules()) & set(model.modules())
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    for tensors in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(twin, tensors)(), getattr(model, tensors)(), strict=True)
        assert all(first == second and one is other for (first, one), (second, other) in pairs)
    assert (logits_of(twin) == logits_of(model)).all()


@pytest.mark.parametrize("look", [inspect_cloud, lambda model, cloud: classify_clouds(model, [BATCH])])
def test_looking_changes_nothing_of_the_model(model, look):
    model.train()
    before, config = state_of(model), {**vars(model.get_base_model().config)}
    look(model, CLOUD)
    assert are_same(before, state_of(model))
    assert vars(model.get_base_model().config) == config


def test_others_may_run_the_model_meanwhile(model):
    expected, inspected = logits_of(model), inspect_cloud(model, CLOUD)
    wrong, stop = [], threading.Event()

    def predict():
        while not stop.is_set():
            if not (logits_of(model) == expected).all():
                wrong.append("prediction")

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        found = inspect_cloud(model, CLOUD)
        if not ((found.logits == inspected.logits).all() and (found.attention == inspected.attention).all()):
            wrong.append("inspection")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_compiled_runs_as_it_was_written(model):
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    expected = logits_of(model)
    encoder = model.get_base_model().point_mae.encoder
    encoder.layers[0] = torch.compile(encoder.layers[0], backend=refuse)
    model.compile(backend=refuse)
    for compiled in (model, torch.compile(model, backend=refuse)):
        found = inspect_cloud(compiled, CLOUD)
        np.testing.assert_allclose(found.logits, expected, atol=1e-5)
        assert len(found.pictures) == 2


def test_what_accelerate_wraps_runs_in_the_twin(model):
    # The model itself would run with its fast attention, which returns no weights.
    add_hook_to_module(model.get_base_model(), AlignDevicesHook("cpu", io_same_device=True))
    np.testing.assert_allclose(inspect_cloud(model, CLOUD).logits, logits_of(model), atol=1e-5)
    layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    expected = layers(CLOUDS)
    cpu_offload(layers, execution_device="cpu")
    assert torch.equal(make_twin(layers)(CLOUDS), expected)
    assert layers[0].weight.is_meta


def test_adapters_of_peft_and_of_transformers():
    low_rank = get_peft_model(make_backbone(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    mixed = pp.add_adapters(make_backbone(), {"a": pp.GeometryAdapterConfig()}).eval()
    for model, count in ((low_rank, 0), (mixed, 1)):
        found = inspect_cloud(model, CLOUD)
        np.testing.assert_allclose(found.logits, logits_of(model), atol=1e-5)
        assert len(found.pictures) == count


def test_shared_modules_stay_shared():
    layer = nn.Linear(2, 2)
    twin = make_twin(nn.ModuleDict({"a": layer, "b": layer, "none": nn.ModuleList()}))
    assert twin["a"] is twin["b"] is not layer
    assert twin["a"].weight is layer.weight
