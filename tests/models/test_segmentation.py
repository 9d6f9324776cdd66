"""Part segmentation on every backbone, with every adapter type."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import point_peft_hf as pp
from point_peft_hf.data import PointCloudCollator, PointCloudDataset
from point_peft_hf.io import save_adapter
from point_peft_hf.io.backbone import fingerprint
from point_peft_hf.models.layers import SegmentationHead, TokenFusion

from .conftest import TINY_CONFIGS

CLASSES = {
    "point_bert": pp.PointBertForSegmentation,
    "point_m2ae": pp.PointM2AEForSegmentation,
    "point_mae": pp.PointMAEForSegmentation,
}
CLASSIFIERS = {name: classifier for name, (_, classifier, _) in TINY_CONFIGS.items()}
SEGMENTATION = {
    "num_labels": 5,
    "num_categories": 2,
    "category_names": ["lamp", "cup"],  # not in the order of the alphabet, in which JSON has its keys
    "category_parts": [[2, 3, 4], [0, 1]],
    "segmentation_token_size": 16,
    "segmentation_propagation_sizes": [12],
    "segmentation_hidden_sizes": [10],
}
PEFT_CONFIGS = {
    "geometry": lambda **kwargs: pp.GeometryAdapterConfig(**kwargs),
    "prompt": lambda **kwargs: pp.PointPriorPromptConfig(num_prompt_tokens=4, **kwargs),
    "point_peft": lambda **kwargs: pp.PointPeftConfig(num_prompt_tokens=4, **kwargs),
    "lora": lambda: LoraConfig(
        r=2, target_modules=["q_proj", "fc1"], modules_to_save=["segmentation_head"], init_lora_weights=False
    ),
}


@pytest.fixture
def make_model(model_type):
    def make(**kwargs):
        config_class, _, fields = TINY_CONFIGS[model_type]
        torch.manual_seed(0)
        model = CLASSES[model_type](config_class(**{**fields, **SEGMENTATION, **kwargs}))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
        return model.eval()

    return make


@pytest.fixture
def part_labels():
    return torch.randint(0, 5, (4, 96), generator=torch.Generator().manual_seed(2))


CATEGORIES = torch.tensor([0, 1, 1, 0])


@torch.no_grad()
def test_outputs(make_model, points, part_labels):
    model = make_model()
    output = model(points, labels=part_labels, category_ids=CATEGORIES)
    assert output.logits.shape == (4, 96, 5)
    expected = F.cross_entropy(output.logits.reshape(-1, 5), part_labels.reshape(-1))
    torch.testing.assert_close(output.loss, expected)
    assert output.hidden_states is None
    output = model(points, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    as_tuple = model(points, labels=part_labels, category_ids=CATEGORIES, return_dict=False)
    torch.testing.assert_close(as_tuple[0], expected)


@torch.no_grad()
def test_points_without_a_label_do_not_count(make_model, points, part_labels):
    model = make_model()
    labelled = part_labels.clone()
    labelled[:, ::3] = -100
    output = model(points, labels=labelled)
    keep = labelled != -100
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[keep], labelled[keep]))
    assert model(points, labels=torch.full_like(part_labels, -100)).loss == 0


@torch.no_grad()
def test_the_category_matters_only_to_a_model_that_is_told(make_model, points):
    model = make_model()
    logits = [model(points, category_ids=ids).logits for ids in (None, CATEGORIES, 1 - CATEGORIES)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    assert not torch.allclose(logits[1], logits[2], atol=1e-3)
    model = make_model(num_categories=0)
    assert torch.equal(model(points, category_ids=CATEGORIES).logits, model(points).logits)


@torch.no_grad()
def test_prediction_does_not_depend_on_batch_mates(make_model, points):
    model = make_model()
    logits = model(points, category_ids=CATEGORIES).logits
    alone = model(points[1:2], category_ids=CATEGORIES[1:2]).logits
    torch.testing.assert_close(alone, logits[1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_follow_their_points(make_model, points):
    """With the first point in its place, where the sampling of the groups starts."""
    model = make_model()
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(95)])
    logits = model(points).logits
    torch.testing.assert_close(model(points[:, order]).logits, logits[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[:, 1:], logits[:, :-1], atol=1e-3)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 6, 12])
def test_three_depths(num_layers):
    expected = {1: (0,), 2: (0, 1), 3: (0, 1, 2), 6: (1, 3, 5), 12: (3, 7, 11)}
    assert pp.PointMAEConfig(num_hidden_layers=num_layers).feature_layers == expected[num_layers]
    assert pp.PointMAEConfig(num_hidden_layers=12, segmentation_layers=[4, 11]).feature_layers == (4, 11)


@torch.no_grad()
def test_head_by_hand():
    """Everything written out as the formula reads: propagate the whole features, then every layer at every point."""
    torch.manual_seed(0)
    head = SegmentationHead(TokenFusion([4, 4], 0), (6, 5), (7, 3), num_labels=2, num_categories=3, dropout=0.5)
    for activation in head.activations:
        activation.norm.running_mean.normal_()
    head.eval()
    tokens = [torch.randn(2, 4, 4), torch.randn(2, 4, 4)]
    centers, points, category = torch.randn(2, 4, 3), torch.randn(2, 9, 3), torch.tensor([2, 0])
    features = torch.cat(tokens, dim=-1)
    weights = 1 / (torch.cdist(points, centers).square() + 1e-8)
    weights[weights < weights.sort(dim=-1).values[..., 1:2]] = 0  # all but the farthest of four
    x = torch.cat([(weights / weights.sum(dim=-1, keepdim=True)) @ features, points], dim=-1)

    def act(x, index):
        norm = head.activations[index].norm
        return ((x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()).relu()

    x = act(x @ torch.cat([head.token_linear.weight, head.point_linear.weight], dim=1).T, 0)
    x = act(x @ head.linears[0].weight.T, 1)
    cloud = torch.cat([features.amax(dim=1), features.mean(dim=1), F.one_hot(category, 3)], dim=-1)
    x = torch.cat([x, cloud[:, None].expand(-1, 9, -1)], dim=-1)
    x = act(x @ torch.cat([head.linears[1].weight, head.cloud_linear.weight], dim=1).T, 2)
    x = head.output(act(x @ head.linears[2].weight.T, 3))
    torch.testing.assert_close(head(tokens, [centers], points, category), x, rtol=1e-4, atol=1e-5)


def test_lean_and_published_heads():
    """Below a million with the paper's whole method; the published decoder is within a per cent of 5.6 million."""
    lean, published = (
        _count(segmentation_token_size=size, segmentation_propagation_sizes=before, segmentation_hidden_sizes=after)
        for size, before, after in ((128, (128,), (128,)), (0, (1536, 1024), (512, 256)))
    )
    assert lean == 665_088
    assert published == 5_652_096
    assert lean == _count()


def _count(**fields):
    with torch.device("meta"):
        model = pp.PointMAEForSegmentation(pp.PointMAEConfig(num_labels=50, num_categories=16, **fields))
        return get_peft_model(model, pp.PointPeftConfig()).get_nb_trainable_parameters()[0]


def test_same_backbone_as_that_of_a_classifier(make_model, make_classifier):
    """An adapter's fingerprint of its backbone does not depend on the task."""
    model, classifier = make_model(), make_classifier()
    weights = {key: value for key, value in classifier.state_dict().items() if key in model.state_dict()}
    model.load_state_dict(weights, strict=False)
    assert fingerprint(model) == fingerprint(classifier)


def test_from_a_folder_without_a_head(make_classifier, model_type, tmp_path, points):
    make_classifier().save_pretrained(tmp_path)
    model = pp.AutoModelForPointCloudSegmentation.from_pretrained(tmp_path, num_labels=7, num_categories=3)
    assert type(model) is CLASSES[model_type]
    assert model(points, category_ids=torch.tensor([2, 0, 1, 2])).logits.shape == (4, 96, 7)
    model.save_pretrained(tmp_path / "segmentation")
    loaded = pp.AutoModelForPointCloudSegmentation.from_pretrained(tmp_path / "segmentation")
    with torch.no_grad():
        assert torch.equal(loaded(points).logits, model.eval()(points).logits)


@pytest.fixture(params=PEFT_CONFIGS)
def adapt(request, make_model, points):
    def make(path=None, **fields):
        backbone = make_model(**fields)
        if path is not None:
            backbone.name_or_path = backbone.config.name_or_path = str(path)
        torch.manual_seed(1)
        options = {} if request.param == "lora" else {"init_weights": False}
        model = get_peft_model(backbone, PEFT_CONFIGS[request.param](**options)).eval()
        if request.param in ("prompt", "point_peft"):
            pp.build_point_prior_bank(model, [{"points": points}], progress=False)
        return model

    return make


def test_all_trainable_parameters_get_a_gradient(adapt, points, part_labels):
    model = adapt().train()
    model(points, labels=part_labels, category_ids=CATEGORIES).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


@torch.no_grad()
def test_adapter_brings_the_head(adapt, make_model, points, tmp_path):
    model = adapt()
    for parameter in model.base_model.model.segmentation_head.modules_to_save.parameters():
        parameter += 0.1
    expected = model(points, category_ids=CATEGORIES).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert torch.equal(loaded(points, category_ids=CATEGORIES).logits, expected)
    with model.disable_adapter():
        assert torch.equal(model(points).logits, make_model()(points).logits)


@torch.no_grad()
def test_adapter_with_its_backbone_in_one_line(adapt, make_model, model_type, points, tmp_path):
    """From the folder of a bare encoder: the adapter knows parts, categories and sizes of the head."""
    model_class, (config_class, _, fields) = CLASSES[model_type], TINY_CONFIGS[model_type]
    plain = model_class(config_class(**fields))
    plain.base_model.load_state_dict(make_model().base_model.state_dict())
    plain.base_model.save_pretrained(tmp_path / "backbone")
    model = adapt(id2label=dict(enumerate(["handle", "body", "foot", "arm", "shade"])), path=tmp_path / "backbone")
    save_adapter(model, tmp_path / "adapter", card=False)
    loaded = pp.AutoPointPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(loaded.get_base_model()) is model_class
    assert loaded.config.id2label[4] == "shade"
    assert loaded.config.category_names == SEGMENTATION["category_names"]
    assert loaded.config.category_parts == SEGMENTATION["category_parts"]
    expected = model(points, category_ids=CATEGORIES).logits
    assert torch.equal(loaded(points, category_ids=CATEGORIES).logits, expected)
    message = "head='segmentation_head', .* has head='classifier'. Load .* AutoModelForPointCloudSegmentation"
    with pytest.raises(ValueError, match=message):
        pp.AutoPointPeftModel.from_pretrained(tmp_path / "adapter", backbone=CLASSIFIERS[model_type](plain.config))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(adapt, points, part_labels, use_reentrant):
    model = adapt()
    gradients = []
    for checkpointing in (False, True):
        copied = copy.deepcopy(model)
        if checkpointing:
            copied.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            copied.enable_input_require_grads()
        # The blocks in train mode, where checkpointing acts; nothing else, as dropout would differ.
        for module in copied.modules():
            module.training = type(module).__name__ == "PointTransformerLayer"
        copied(points, labels=part_labels, category_ids=CATEGORIES).loss.backward()
        gradients.append({name: p.grad for name, p in copied.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def test_compile(make_model, points):
    model = make_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(points, category_ids=CATEGORIES).logits
    torch.testing.assert_close(compiled(points, category_ids=CATEGORIES).logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, points, dtype):
    expected = make_model()(points, category_ids=CATEGORIES).logits
    logits = make_model().to(dtype)(points, category_ids=CATEGORIES).logits
    assert logits.dtype == dtype
    assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"one a point, .* \(4, 96\), got \(4,\)"),
        ({"labels": torch.zeros(4, 96)}, "integer type, got torch.float32"),
        ({"labels": torch.full((4, 96), 5)}, "contain 5, but the model has num_labels=5"),
        ({"labels": torch.full((4, 96), -1)}, "contain -1"),
        ({"category_ids": torch.tensor([0, 1, 2, 0])}, "contain 2, but the model has num_categories=2"),
        ({"category_ids": torch.zeros(4, 1, dtype=torch.long)}, r"\(batch_size,\) = \(4,\), got .* \(4, 1\)"),
    ],
)
def test_wrong_input(kwargs, message, points):
    config_class, _, fields = TINY_CONFIGS["point_mae"]
    model = pp.PointMAEForSegmentation(config_class(**{**fields, **SEGMENTATION}))
    with pytest.raises(ValueError, match=message):
        model(points, **kwargs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_categories": -1}, "`num_categories` .* at least 0, got -1"),
        ({"segmentation_token_size": -1}, "`segmentation_token_size` .* at least 0, got -1"),
        ({"segmentation_hidden_sizes": []}, "at least 1 value"),
        ({"segmentation_layers": [12]}, r"numbers of blocks, 0 to 11, got \[12\]"),
        ({"segmentation_layers": []}, "numbers of blocks"),
        ({"num_categories": 2, "category_parts": [[0]]}, "agree .* got {'num_categories': 2, .*'category_parts': 1}"),
        ({"category_names": ["cup"], "category_parts": [[0], [1]]}, "must agree on the number of categories"),
        ({"category_parts": [[0], []]}, r"at least one label .* got \[\[0\], \[\]\]"),
    ],
)
def test_wrong_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.PointMAEConfig(**fields)


def test_trainer(make_model, tmp_path):
    """The collator's batches go into the Trainer of transformers as they are."""
    generator = np.random.default_rng(0)
    clouds, parts = generator.normal(size=(8, 96, 3)).astype(np.float32), generator.integers(0, 2, (8, 96))
    dataset = PointCloudDataset(
        clouds, [0, 1] * 4, ["lamp", "cup"], part_labels=parts, class_parts=SEGMENTATION["category_parts"]
    )
    model = get_peft_model(make_model(), pp.GeometryAdapterConfig())
    before = model.base_model.model.segmentation_head.modules_to_save["default"].output.weight.clone()
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=4,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        save_strategy="no",
    )
    collator = PointCloudCollator(segmentation=True, sample_ids=False)
    trainer = Trainer(model, arguments, collator, dataset, dataset)
    trainer.train()
    assert not torch.equal(model.base_model.model.segmentation_head.modules_to_save["default"].output.weight, before)
    output = trainer.predict(dataset)
    assert output.predictions.shape == (8, 96, 5)
    assert output.label_ids.shape == (8, 96)
