"""What a backbone's checkpoint did not bring is in the adapter's file, or its loss is refused."""

import warnings

import pytest
import torch
from peft import BOFTConfig, IA3Config, LoraConfig, PeftModel, get_peft_model

import point_peft_hf as pp

TASK = ["classifier", "class_token"]
WAYS = ("peft", "trainable", "second", "transformers", "auto")


@pytest.fixture
def load_headless(make_backbone, tmp_path):
    """Load a backbone from a checkpoint without head and class token: `load_headless(seed)`."""

    def load(seed, name="point_mae", dropped=()):
        folder = tmp_path / f"headless-{name}"
        if not folder.exists():
            model = make_backbone(name)
            # Point-BERT is pre-trained with its class token.
            left_out = ("classifier", "class_token" if name == "point_mae" else "classifier", *dropped)
            kept = {key: t for key, t in model.state_dict().items() if not any(part in key for part in left_out)}
            model.save_pretrained(folder, state_dict=kept)
        torch.manual_seed(seed)
        return pp.AutoModelForPointCloudClassification.from_pretrained(folder)

    return load


@pytest.fixture
def attach(load_headless):
    """Attach to a backbone with random parts, and change all that is trained."""

    def make(config, name="point_mae", **options):
        model = get_peft_model(load_headless(1, name, **options), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


def load_adapter(way, backbone, folder):
    if way == "transformers":
        backbone.load_adapter(str(folder))
        return backbone
    if way == "second":
        model = get_peft_model(backbone, LoraConfig(target_modules=["q_proj"]), adapter_name="first")
        model.load_adapter(folder, "second")
        model.set_adapter("second")
        return model
    if way == "auto":
        return pp.AutoPointPeftModel.from_pretrained(folder, backbone=backbone)
    return PeftModel.from_pretrained(backbone, folder, is_trainable=way == "trainable")


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "FEATURE_EXTRACTION", "TOKEN_CLS"])
@pytest.mark.parametrize(
    "modules", [None, TASK, ["classifier"], ["class_token"], ["dense1"], ["classifier.output", "token"]], ids=str
)
@pytest.mark.filterwarnings("ignore:`modules_to_save`")
def test_whatever_is_chosen_the_file_is_complete(attach, load_headless, points, logits, tmp_path, modules, task_type):
    model = attach(pp.GeometryAdapterConfig(modules_to_save=modules and list(modules), task_type=task_type))
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load_headless(2), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded(points=points).logits, model.eval()(points=points).logits)


def test_each_type_and_backbone(attach, load_headless, type_case, backbone_name, points, logits, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`modules_to_save`")
        model = attach(type_case.config(modules_to_save=["classifier"]), backbone_name)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load_headless(2, backbone_name), tmp_path / "adapter")
    assert torch.equal(logits(loaded, points), logits(model, points))


def test_what_is_added_is_said(load_headless):
    with pytest.warns(UserWarning, match=r"\['classifier'\] leaves out 'class_token', which the checkpoint"):
        model = get_peft_model(load_headless(1), pp.GeometryAdapterConfig(modules_to_save=["classifier"]))
    assert model.peft_config["default"].modules_to_save == TASK
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(load_headless(1), pp.GeometryAdapterConfig(modules_to_save=list(TASK)))
        get_peft_model(load_headless(1), pp.GeometryAdapterConfig())


def test_none_at_all_is_refused_where_it_is_loaded(load_headless, points, logits, tmp_path):
    backbone = load_headless(1)
    with pytest.warns(UserWarning, match=r"with `modules_to_save=\[\]` the adapter's file has none either"):
        model = get_peft_model(backbone, pp.GeometryAdapterConfig(modules_to_save=[], init_weights=False))
    expected = logits(model, points)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"in which \['class_token', 'classifier'\] have other weights"):
        PeftModel.from_pretrained(load_headless(2), tmp_path / "adapter")
    # The way out of both messages.
    model.unload().save_pretrained(tmp_path / "backbone")
    whole = pp.AutoModelForPointCloudClassification.from_pretrained(tmp_path / "backbone")
    assert torch.equal(logits(PeftModel.from_pretrained(whole, tmp_path / "adapter"), points), expected)


def test_a_frozen_part_of_the_checkpoint_counts_as_well(make_backbone, points, logits, tmp_path):
    config = pp.GeometryAdapterConfig(modules_to_save=["classifier"], init_weights=False)
    get_peft_model(make_backbone(), config).save_pretrained(tmp_path)
    other = make_backbone()
    with torch.no_grad():
        other.point_mae.class_token.position.add_(1)
    with pytest.raises(ValueError, match=r"in which \['class_token'\] have other weights"):
        PeftModel.from_pretrained(other, tmp_path)
    PeftModel.from_pretrained(make_backbone(), tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modules", [None, ["classifier"]], ids=str)
@pytest.mark.filterwarnings("ignore:The checkpoint of the backbone has no")
def test_an_incomplete_file_of_peft_is_refused(attach, load_headless, points, logits, tmp_path, modules, way):
    with pytest.warns(UserWarning, match=r"Pass `modules_to_save=\['class"):
        model = attach(LoraConfig(target_modules=["q_proj"], modules_to_save=modules))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"'class_token'.*train the adapter again with `modules_to_save=\['class"):
        load_adapter(way, load_headless(2), tmp_path / "adapter")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:The checkpoint of the backbone has no")
def test_a_complete_file_of_peft_is_loaded(attach, load_headless, points, logits, tmp_path, way):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = attach(LoraConfig(target_modules=["q_proj"], modules_to_save=list(TASK)))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    loaded = load_adapter(way, load_headless(2), tmp_path / "adapter")
    assert torch.equal(logits(loaded, points), logits(model, points))


@pytest.mark.parametrize("config", [IA3Config(), BOFTConfig(target_modules=["q_proj"], boft_block_size=4)], ids=str)
@pytest.mark.filterwarnings("ignore:The checkpoint of the backbone has no")
def test_other_types_of_peft(attach, load_headless, tmp_path, config):
    attach(config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ValueError, match="random weights, and so would be the predictions"):
        PeftModel.from_pretrained(load_headless(2), tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:The checkpoint of the backbone has no")
def test_the_way_out_for_an_incomplete_file(attach, points, logits, tmp_path):
    model = attach(LoraConfig(target_modules=["q_proj"]))
    expected = logits(model, points)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model.unload().save_pretrained(tmp_path / "backbone")
    whole = pp.AutoModelForPointCloudClassification.from_pretrained(tmp_path / "backbone")
    assert torch.equal(logits(PeftModel.from_pretrained(whole, tmp_path / "adapter"), points), expected)


@pytest.mark.filterwarnings("ignore:The checkpoint of the backbone has no")
def test_the_best_of_a_training_is_loaded_again(attach, train, points, logits, tmp_path):
    """The Trainer loads a checkpoint into the very model that it was saved from, whose random parts are the same."""
    model = attach(LoraConfig(target_modules=["q_proj"]))
    train(model, steps=1)
    expected = logits(model, points)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    train(model, steps=1)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(logits(model, points), expected)


def test_one_of_several_adapters_brings_them(load_headless, points, logits, tmp_path):
    configs = {
        "low_rank": LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
        "geometry": pp.GeometryAdapterConfig(init_weights=False),
        "prompt": pp.PointPriorPromptConfig(use_bank=False),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = pp.add_adapters(load_headless(1), configs)
        pp.save_adapters(model, tmp_path)
        loaded = load_headless(2)
        pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), logits(model, points))
    with pytest.raises(ValueError, match="random weights, and so would be the predictions"):
        pp.load_adapters(load_headless(2), tmp_path, ["low_rank"])


def test_an_incomplete_encoder(load_headless, tmp_path):
    backbone = load_headless(1, dropped=["layers.1.mlp", "point_mae.layernorm"])
    # A norm is the same each time.
    with pytest.warns(UserWarning, match="has no 'point_mae.encoder.layers.1.mlp.fc1', 'point_mae.*Load a checkpoint"):
        model = get_peft_model(backbone, pp.GeometryAdapterConfig())
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="make sure that no warning says that some of its weights were not found"):
        PeftModel.from_pretrained(load_headless(2), tmp_path / "adapter")


def test_weights_that_are_loaded_by_hand_are_not_random(load_headless, make_backbone):
    backbone = load_headless(1)
    task = {key: t for key, t in make_backbone().state_dict().items() if "class" in key}
    backbone.load_state_dict(task, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        get_peft_model(backbone, LoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_head_for_other_classes_is_random_as_well(make_backbone, tmp_path, seed):
    make_backbone().save_pretrained(tmp_path)
    backbone = pp.AutoModelForPointCloudClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    with pytest.warns(UserWarning, match=r"has no 'classifier': random weights.*`modules_to_save=\['classifier'\]`"):
        get_peft_model(backbone, LoraConfig(target_modules=["q_proj"]))
