"""`AutoPointPeftModel`, and what is said where an adapter or a backbone does not fit."""

import json
import shutil

import peft
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor

from point_peft_hf import (
    AutoPointPeftModel,
    GeometryAdapterConfig,
    PointCloudProcessor,
    PointMAEForSegmentation,
    PointMAEModel,
)
from point_peft_hf.io import files, save_adapter
from point_peft_hf.pretrained import DEFAULT_BACKBONE, backbone_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def original(make_adapter, tmp_path_factory):
    return save_adapter(make_adapter(), tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.fixture
def adapter(original, tmp_path):
    """A copy of the folder without checksums, as one would have it after changing it on purpose."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((original / name).read_bytes())
    change(folder, checksums=None)
    return folder


def change(folder, **fields):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def add_tensor(folder, key, tensor):
    save_file(load_file(folder / WEIGHTS) | {key: tensor}, folder / WEIGHTS)


@pytest.fixture(params=["auto", "peft", "transformers"])
def load(request, load_backbone, logits):
    """The three ways to load an adapter from a folder."""

    def peft(folder):
        return PeftModel.from_pretrained(load_backbone(), folder)

    def transformers(folder):
        model = load_backbone()
        before = logits(model)
        try:
            model.load_adapter(str(folder))
        except Exception:
            assert torch.equal(logits(model), before)
            assert not any("point_peft_" in key for key in model.state_dict())
            raise
        return model

    return {"auto": AutoPointPeftModel.from_pretrained, "peft": peft, "transformers": transformers}[request.param]


def test_all_ways_give_the_same(load, original, logits, make_adapter):
    assert torch.equal(logits(load(original)), logits(make_adapter()))


def test_a_missing_key_is_named_with_its_file(load, adapter):
    for part in (
        "classifier.dense1.bias",
        "ffn_slot.point_peft_ffn_bottleneck.down_bias",
        "token_slot.point_peft_bank.features",
    ):
        tensors = load_file(adapter / WEIGHTS)
        key = next(key for key in tensors if part in key)
        save_file({name: tensor for name, tensor in tensors.items() if name != key}, adapter / WEIGHTS)
        with pytest.raises(ValueError, match=rf"{WEIGHTS} lacks .*{part.split('.')[-1]}"):
            load(adapter)
        save_file(tensors, adapter / WEIGHTS)


def test_an_extra_key_is_named_with_its_file(load, adapter):
    add_tensor(adapter, "base_model.model.surplus", torch.zeros(2))
    with pytest.raises(ValueError, match=rf"{WEIGHTS}.*surplus"):
        load(adapter)


def test_weights_of_the_backbone_in_an_adapter_are_refused(load, adapter, load_backbone):
    key = "point_mae.encoder.layers.0.mlp.fc1.weight"
    weight = load_backbone().state_dict()[key]
    add_tensor(adapter, f"base_model.model.{key}", weight + 1)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}.*mlp.fc1.weight"):
        load(adapter)


def test_a_pickle_is_refused_and_not_opened(load, adapter):
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match=r"adapter_model.bin is a pickle, which can run code"):
        load(adapter)


def test_a_changed_byte_is_noticed(load, original, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    data = (original / WEIGHTS).read_bytes()
    (folder / CONFIG).write_bytes((original / CONFIG).read_bytes())
    (folder / WEIGHTS).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: is not the file that .* was saved with"):
        load(folder)
    (folder / WEIGHTS).write_bytes(data)
    change(folder, ffn_scale=0.9)
    with pytest.raises(ValueError, match=rf"{CONFIG}: its fields are not those that were saved"):
        load(folder)


def test_free_fields_may_be_edited(load, original, tmp_path, logits, make_adapter, backbones):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((original / name).read_bytes())
    change(folder, base_model_name_or_path=backbones["point_mae"] + "/", inference_mode=False)
    assert torch.equal(logits(load(folder)), logits(make_adapter()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bottleneck_size", "16"),
        ("bottleneck_size", 16.5),
        ("bottleneck_size", 0),
        ("bottleneck_size", 10**12),
        ("num_prompt_tokens", 10**12),
        ("bank_size", 10**10),
        ("bank_size", None),
        ("use_bank", "yes"),
        ("dropout", 1.5),
        ("dropout", float("nan")),
        ("ffn_scale", float("inf")),
        ("ffn_scale", None),
        ("modules_to_save", "classifier"),
        ("modules_to_save", [1]),
        ("target_modules", 7),
        ("bottleneck_pattern", {"x": "16"}),
        ("init_weights", "magic"),
        ("backbone", [1]),
        ("backbone", {"weights": "abc"}),
        ("checksums", "abc"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(field, value, adapter, load_backbone):
    change(adapter, **{field: value})
    with pytest.raises(ValueError, match=rf"{CONFIG}.*`{field}`|{CONFIG}.*`{field}\["):
        PeftModel.from_pretrained(load_backbone(), adapter)


def test_a_size_that_is_not_that_of_the_weights(adapter, load_backbone):
    change(adapter, bank_size=3)
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: .*_bank.* has shape .* instead of \(3"):
        PeftModel.from_pretrained(load_backbone(), adapter)


def test_unknown_types_and_broken_json(adapter):
    change(adapter, peft_type="TELEPATHY")
    with pytest.raises(ValueError, match=rf"{CONFIG}: `peft_type` is 'TELEPATHY'"):
        AutoPointPeftModel.from_pretrained(adapter)
    for text, words in (
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"a": 1, "a": 2}', "occurs twice"),
    ):
        (adapter / CONFIG).write_text(text)
        with pytest.raises(ValueError, match=rf"{CONFIG}: .*{words}"):
            AutoPointPeftModel.from_pretrained(adapter)
    (adapter / CONFIG).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{CONFIG}"):
        AutoPointPeftModel.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"parent_library": "os", "base_model_class": "system"}, "'os', which is not imported"),
        ({"parent_library": "point_peft_hf_evil", "base_model_class": "X"}, "which is not imported"),
        ({"parent_library": "point_peft_hf.io.save", "base_model_class": "shutil"}, "not a model of transformers"),
        ({"parent_library": "point_peft_hf.nothing", "base_model_class": "X"}, "cannot be imported"),
        ({"parent_library": 3, "base_model_class": "X"}, "must name parent_library"),
        ("x", "must name parent_library|`auto_mapping` must be dict"),
    ],
)
def test_only_models_of_this_package_are_imported(mapping, words, adapter):
    change(adapter, auto_mapping=mapping)
    with pytest.raises(ValueError, match=words):
        AutoPointPeftModel.from_pretrained(adapter)


def test_a_shipped_backbone_goes_by_its_name(make_adapter, tmp_path):
    if not backbone_folder().endswith(DEFAULT_BACKBONE):
        pytest.skip("the package was built without its backbone")
    model = make_adapter("geometry", backbone_folder(), DEFAULT_BACKBONE, num_points=512)
    loaded = AutoPointPeftModel.from_pretrained(save_adapter(model, tmp_path / "adapter"))
    with torch.no_grad():
        clouds = torch.rand(1, 512, 3)
        assert torch.equal(loaded(points=clouds).logits, model(points=clouds).logits)


def test_the_groups_of_training_are_used_again(load_backbone, tmp_path, logits):
    torch.manual_seed(0)
    model = get_peft_model(load_backbone(num_groups=12), GeometryAdapterConfig(init_weights=False))
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained(tmp_path / "adapter")), logits(model))
    with pytest.raises(ValueError, match="Load the backbone with `num_groups=12`"):
        PeftModel.from_pretrained(load_backbone(), tmp_path / "adapter")


def test_it_is_ready_to_be_trained_on(original):
    model = AutoPointPeftModel.from_pretrained(original, "other", is_trainable=True)
    assert model.active_adapter == "other"
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_other_weights_may_be_set_after_loading(original, load_backbone, make_adapter, logits):
    model = PeftModel.from_pretrained(load_backbone(), original)
    other = make_adapter(seed=1)
    set_peft_model_state_dict(model, get_peft_model_state_dict(other))
    assert torch.equal(logits(model), logits(other))


def test_without_a_backbone(adapter, backbones, logits, make_adapter):
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not say which backbone"):
        AutoPointPeftModel.from_pretrained(adapter)
    model = AutoPointPeftModel.from_pretrained(adapter, backbone=backbones["point_mae"])
    assert torch.equal(logits(model), logits(make_adapter()))


# -- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_backbone_gets_its_options(original, name):
    model = AutoPointPeftModel.from_pretrained(original, **{name: torch.bfloat16}, attn_implementation="eager")
    base = model.get_base_model()
    assert base.point_mae.encoder.layers[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert base.config._attn_implementation == "eager"


def test_the_adapter_gets_its_options(original):
    model = AutoPointPeftModel.from_pretrained(
        original, dtype=torch.bfloat16, autocast_adapter_dtype=False, torch_device="cpu"
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model = AutoPointPeftModel.from_pretrained(original, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_a_device_map(original, device_map, logits, make_adapter):
    model = AutoPointPeftModel.from_pretrained(original, device_map=device_map)
    assert torch.equal(logits(model).cpu(), logits(make_adapter()))


def test_a_device_that_does_not_exist(original):
    with pytest.raises(ValueError, match="found typo"):
        AutoPointPeftModel.from_pretrained(original, device_map="typo")


def test_the_configuration_of_the_adapter_and_of_the_backbone(original, backbones, logits, make_adapter):
    config = PeftConfig.from_pretrained(original)
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained(original, config=config)), logits(make_adapter()))
    config = AutoConfig.from_pretrained(backbones["point_mae"], num_labels=3, attn_implementation="eager")
    model = AutoPointPeftModel.from_pretrained(original, config=config)
    assert model.get_base_model().config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"devcie_map": "cpu"}, TypeError, "devcie_map"),
        ({"use_safetensors": False}, ValueError, "pickled weights can run code"),
        ({"dtype": "float32", "backbone_kwargs": {"dtype": "float16"}}, ValueError, "Pass each option once"),
    ],
    ids=str,
)
def test_no_option_is_swallowed(original, options, error, words):
    with pytest.raises(error, match=words):
        AutoPointPeftModel.from_pretrained(original, **options)


def test_options_of_a_backbone_that_is_loaded_already(original, load_backbone):
    with pytest.raises(ValueError, match=r"\['dtype'\] say how to load a backbone.*is loaded already"):
        AutoPointPeftModel.from_pretrained(original, backbone=load_backbone(), dtype=torch.bfloat16)


@pytest.mark.parametrize("option", [{"revision": "main"}, {"token": None}, {"subfolder": "inner"}], ids=str)
def test_load_adapter_takes_where_it_is(original, load_backbone, tmp_path, logits, make_adapter, option):
    shutil.copytree(original, tmp_path / "inner")
    model = load_backbone()
    model.load_adapter(str(tmp_path if "subfolder" in option else original), **option)
    assert torch.equal(logits(model), logits(make_adapter()))


def test_load_adapter_with_an_unknown_argument(original, load_backbone):
    with pytest.raises(TypeError, match="revison"):
        load_backbone().load_adapter(str(original), revison="main")


@pytest.mark.parametrize("find", [AutoFeatureExtractor, AutoProcessor])
def test_the_auto_classes_find_the_processor(find, backbones, second_process):
    for folder in backbones.values():
        assert type(find.from_pretrained(folder)) is PointCloudProcessor
    code = f"import point_peft_hf; from transformers import {find.__name__} as auto; "
    assert "PointCloudProcessor" in second_process(code + f"print(auto.from_pretrained({folder!r}))")


# -- Backbones that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["geometry", "lora"])
def test_another_class_of_the_same_checkpoint(method, make_adapter, load_backbone, backbones, tmp_path, points):
    model = make_adapter(method)
    save_adapter(model, tmp_path / "adapter")
    words = "for a PointMAEForClassification .*this is a PointMAEModel.*AutoModelForPointCloudClassification"
    with pytest.raises(ValueError, match=words):
        AutoPointPeftModel.from_pretrained(
            tmp_path / "adapter", backbone=PointMAEModel.from_pretrained(backbones["point_mae"])
        )
    with pytest.raises(ValueError, match="head='classifier', but this one has head='segmentation_head'"):
        AutoPointPeftModel.from_pretrained(
            tmp_path / "adapter",
            backbone=PointMAEForSegmentation.from_pretrained(backbones["point_mae"], num_labels=3),
        )
    # What the message advises for features.
    loaded = AutoPointPeftModel.from_pretrained(tmp_path / "adapter", backbone=load_backbone())
    assert loaded.get_base_model().point_mae(points).pooler_output.shape[0] == len(points)


# -- Without the Hub --------------------------------------------------------------------------------------------------


def without(filename, folder):
    """`hf_hub_download` of a repository that is in a folder, with a fault at one of its files."""

    def download(name, wanted, subfolder=None, **hub):
        if wanted == filename:
            raise LocalEntryNotFoundError("Please check your connection")
        if not (folder / wanted).is_file():
            raise EntryNotFoundError(wanted)
        return str(folder / wanted)

    return download


@pytest.mark.parametrize("method", ["geometry", "lora"])
@pytest.mark.parametrize("filename", [CONFIG, WEIGHTS, "backbone.json"])
def test_a_fault_at_one_file(method, filename, make_adapter, load_backbone, tmp_path, monkeypatch):
    folder = save_adapter(make_adapter(method), tmp_path / "adapter")
    monkeypatch.setattr(files, "hf_hub_download", without(filename, folder))
    monkeypatch.setattr(peft.config, "hf_hub_download", without(filename, folder))
    monkeypatch.setattr(peft.utils.save_and_load, "hf_hub_download", without(filename, folder))
    monkeypatch.setattr(peft.utils.save_and_load, "file_exists", lambda **where: True)
    if (method, filename) == ("geometry", "backbone.json"):  # it has none, and needs none
        AutoPointPeftModel.from_pretrained("alice/adapter", backbone=load_backbone())
        return
    with pytest.raises(ConnectionError, match=rf"'alice/adapter' has {filename}.*cannot be reached"):
        AutoPointPeftModel.from_pretrained("alice/adapter", backbone=load_backbone())


def test_nothing_in_the_cache(load_backbone):
    for load in (
        lambda: AutoPointPeftModel.from_pretrained("alice/nothing", local_files_only=True),
        lambda: GeometryAdapterConfig.from_pretrained("alice/nothing", local_files_only=True),
        lambda: load_backbone().load_adapter("alice/nothing", local_files_only=True),
    ):
        with pytest.raises(ConnectionError, match="There is no folder 'alice/nothing' here.*Hub cannot be reached"):
            load()
