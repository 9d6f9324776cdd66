"""Several models on the same clouds compute once what they have in common."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import point_peft_hf as pp
from point_peft_hf.training import PartPredictor, Predictor, SharedValues, share_weights

LAST = {"target_modules": ["fc1"], "layers_to_transform": [2], "init_lora_weights": False}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def resident(*models):
    """The models as they are loaded for predictions."""
    for model in models:
        model.eval().requires_grad_(False)
    share_weights(models)
    return models


def runs_of(model, name):
    """A list that grows with each forward pass of the module whose name ends so."""
    runs = []
    for path, module in model.named_modules():
        if path.endswith(name):
            # Not a hook: a block that has one runs every time.
            module.forward = lambda *args, _of=module.forward, **more: runs.append(1) or _of(*args, **more)
    return runs


def test_what_is_shared_changes_nothing(make_backbone, backbone_name, case, points, train):
    models = [get_peft_model(make_backbone(backbone_name), LoraConfig(**LAST)) for _ in range(2)]
    models.insert(1, case.attach(make_backbone(backbone_name)))
    with torch.enable_grad():
        train(models[1])
    models = resident(*models)
    batches = points, points.flip(0)
    expected = [[model(batch).logits for batch in batches] for model in models]
    for order in ((0, 1, 2), (1, 0, 2)):
        shared = SharedValues()
        for number in order:
            for batch, logits in zip(batches, expected[number], strict=True):
                assert torch.equal(shared.run(models[number], batch).logits, logits)


@pytest.mark.parametrize("name", ["point_mae", "point_bert", "point_gpt", "recon", "point_m2ae"])
def test_blocks_below_the_first_adapter_run_once(name, make_backbone, points):
    models = resident(*(get_peft_model(make_backbone(name), LoraConfig(**LAST)) for _ in range(3)))
    first = "stages.0.layers.0" if name == "point_m2ae" else "layers.0"
    runs = [runs_of(model, first) for model in models]
    shared = SharedValues()
    logits = [shared.run(model, points).logits for model in models]
    assert not torch.equal(logits[0], logits[1])
    assert [len(run) > 0 for run in runs] == [True, False, False]


def test_a_later_adapter_begins_where_another_ended(make_backbone, points):
    configs = [LoraConfig(**{**LAST, "layers_to_transform": [block]}) for block in (1, 2)]
    models = resident(*(get_peft_model(make_backbone(), config) for config in configs))
    expected = [model(points).logits for model in models]
    runs = [[runs_of(model, f"layers.{block}") for block in (0, 1)] for model in models]
    shared = SharedValues()
    for model, logits in zip(models, expected, strict=True):
        assert torch.equal(shared.run(model, points).logits, logits)
    assert [[len(run) for run in of_model] for of_model in runs] == [[1, 1], [0, 1]]


@pytest.mark.parametrize("name", ["point_mae", "recon", "point_gpt"])
@pytest.mark.parametrize("what", ["adapted", "saved", "moved"])
def test_other_tokens_in_front_of_untouched_blocks(what, name, make_backbone, points):
    """What is known of the frozen embedding says nothing of blocks that other tokens enter."""
    configs = {
        "adapted": LoraConfig(
            target_modules=r".*patch_embedding\.\w*linear\w*|.*layers\.2\..*fc1", init_lora_weights=False
        ),
        "saved": LoraConfig(**LAST, modules_to_save=["patch_embedding"]),
        "moved": pp.GAPromptConfig(
            num_prompt_tokens=4, layers_to_transform=[2], modules_to_save=["classifier"], init_weights=False
        ),
    }
    plain = [LoraConfig(**LAST), LoraConfig(**{**LAST, "layers_to_transform": [1]})]
    models = [get_peft_model(make_backbone(name), config) for config in (configs[what], *plain)]
    if what == "saved":
        for path, parameter in models[0].named_parameters():
            if "patch_embedding.modules_to_save" in path:
                parameter.add_(0.1)
    models = resident(*models)
    expected = [model(points).logits for model in models]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        shared = SharedValues()
        for number in order:
            assert torch.equal(shared.run(models[number], points).logits, expected[number]), order


def test_class_tokens_of_their_own(make_backbone, points):
    config = LoraConfig(**LAST, modules_to_save=["class_token"])
    models = resident(*(get_peft_model(make_backbone(), config) for _ in range(2)))
    for model in models:
        nn.init.normal_(model.base_model.model.point_mae.class_token.modules_to_save["default"].token)
    runs = runs_of(models[1], "layers.0"), runs_of(models[1], "patch_embedding")
    expected = models[1](points).logits
    assert [len(run) for run in runs] == [1, 1]
    shared = SharedValues()
    shared.run(models[0], points)
    assert torch.equal(shared.run(models[1], points).logits, expected)
    assert [len(run) for run in runs] == [2, 1]


@pytest.mark.parametrize("what", ["weight", "statistic", "in place", "groups"])
def test_another_backbone_shares_nothing_that_differs(what, make_backbone, points):
    models = resident(*(get_peft_model(make_backbone(), LoraConfig(**LAST)) for _ in range(2)))
    encoder = models[1].base_model.model.base_model
    norm = next(module for module in encoder.patch_embedding.modules() if isinstance(module, nn.BatchNorm1d))
    shared = SharedValues()
    before = shared.run(models[0], points).logits, models[1](points).logits
    if what == "weight":
        norm.weight = nn.Parameter(norm.weight + 0.5, requires_grad=False)
    elif what == "statistic":
        norm.running_mean = norm.running_mean + 0.5
    elif what == "in place":
        norm.weight.add_(0.5)  # of both models
    else:
        encoder.config.group_size -= 1
    expected = [model(points).logits for model in models]
    assert torch.equal(expected[0], before[0]) == (what != "in place")
    assert not torch.equal(expected[1], before[1])
    assert all(torch.equal(shared.run(m, points).logits, e) for m, e in zip(models, expected, strict=True))


def test_weights_that_are_replaced_again_and_again(make_backbone, points):
    model, shared = get_peft_model(make_backbone(), LoraConfig(**LAST)).eval(), SharedValues()
    layer = model.base_model.model.base_model.patch_embedding.second_linear2
    for number in range(5):
        layer.weight = nn.Parameter(torch.full_like(layer.weight, number / 10), requires_grad=False)
        assert torch.equal(shared.run(model, points).logits, model(points).logits)


def test_precisions_stay_apart(make_backbone, points):
    model, shared = get_peft_model(make_backbone(), LoraConfig(**LAST)).eval(), SharedValues()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert torch.equal(shared.run(model, points).logits, model(points).logits)
    half = points.bfloat16()
    assert torch.equal(shared.run(model, half).logits, model(half).logits)


def test_statistics_that_are_trained_stay_apart(make_backbone):
    models = [make_backbone(), make_backbone()]
    for model in models:
        model.base_model.requires_grad_(False)
    assert share_weights(models) > 0
    for part, is_shared in (("classifier", False), ("base_model", True)):
        norms = [
            [module for module in getattr(model, part).modules() if isinstance(module, nn.BatchNorm1d)]
            for model in models
        ]
        assert norms[0]
        assert all((one.running_mean is other.running_mean) == is_shared for one, other in zip(*norms, strict=True))


def test_classes_and_parts_share_a_cloud(make_backbone, points):
    classes = make_backbone()
    parts = pp.PointMAEForSegmentation(classes.config)
    parts.base_model.load_state_dict(classes.base_model.state_dict(), strict=False)
    models = resident(*(get_peft_model(model, pp.GeometryAdapterConfig()) for model in (classes, parts)))
    processor, cloud = pp.PointCloudProcessor(num_points=64), points[0].numpy()
    predictors = Predictor(models[0], processor), PartPredictor(models[1], processor)
    expected = [predictor.predict(cloud) for predictor in predictors]
    runs = runs_of(models[1], "patch_embedding")
    shared = SharedValues()
    assert predictors[0].predict(cloud, shared=shared) == expected[0]
    assert (predictors[1].predict(cloud, shared=shared).labels == expected[1].labels).all()
    assert not runs


def test_a_cloud_is_prepared_once_in_each_way(points, monkeypatch):
    runs, prepare = [], pp.PointCloudProcessor.__call__
    monkeypatch.setattr(
        pp.PointCloudProcessor, "__call__", lambda *args, **more: runs.append(1) or prepare(*args, **more)
    )
    shared, cloud = SharedValues(), points[0].numpy()
    processors = [pp.PointCloudProcessor(num_points=32, up_axis=axis) for axis in "yyz"]
    first, again, turned = (shared.prepare(processor, cloud) for processor in processors)
    assert len(runs) == 2
    assert again is first
    assert not torch.equal(turned, first)
    with pytest.raises(ValueError, match="NaN"):
        shared.prepare(processors[0], cloud * float("nan"))
