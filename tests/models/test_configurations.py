import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from point_peft_hf import (
    AutoModelForPointCloudClassification,
    PointBertConfig,
    PointBertForClassification,
    PointGPTConfig,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointM2AEConfig,
    PointM2AEForClassification,
    PointM2AEForPreTraining,
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForPreTraining,
)

# Every field of the methods, with a value that is not the default.
SHARED = {
    "num_attention_heads": 2,
    "mlp_ratio": 2.5,
    "qkv_bias": True,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.2,
    "attention_dropout": 0.1,
    "classifier_hidden_size": 32,
    "classifier_dropout": 0.3,
    "label_smoothing": 0.2,
    "skip_near_origin": True,
    "initializer_range": 0.03,
    "weights_license": "mit",
    "num_categories": 2,
    "category_names": ["mug", "lamp"],
    "category_parts": [[0, 1], [2, 3]],
    "segmentation_token_size": 0,
    "segmentation_propagation_sizes": [10, 12],
    "segmentation_hidden_sizes": [9, 8],
    "segmentation_dropout": 0.1,
}
SINGLE_STAGE = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_groups": 12,
    "group_size": 6,
    "patch_hidden_sizes": [4, 6, 8],
    "position_hidden_size": 10,
    "segmentation_layers": [1],
}
LARGE_PATCHES = [256, 512, 1024, 2048]
GPT_SIZES = {
    "b": {"hidden_size": 768, "num_attention_heads": 12, "patch_hidden_sizes": LARGE_PATCHES},
    "l": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_hidden_sizes": LARGE_PATCHES,
    },
}
PCP = {"position_embedding": "sincos", "position_hidden_size": 384}
FIELDS = {
    PointBertConfig: {**SHARED, **SINGLE_STAGE, "patch_embedding_size": 14},
    PointMAEConfig: {
        **SHARED,
        **SINGLE_STAGE,
        "hidden_size": 24,
        "position_embedding": "sincos",
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4,
        "mask_ratio": 0.5,
    },
    PointGPTConfig: {
        **{name: value for name, value in SHARED.items() if name != "qkv_bias"},
        **{name: value for name, value in SINGLE_STAGE.items() if name != "position_hidden_size"},
        "qkv_bias": False,
        "generator_num_hidden_layers": 2,
        "generator_num_attention_heads": 5,
        "generation_loss_weight": 3.0,
        "mask_ratio": 0.5,
        "num_seen_groups": 4,
    },
    PointM2AEConfig: {
        **SHARED,
        "hidden_sizes": [8, 12],
        "depths": [1, 2],
        "num_groups": [12, 6],
        "group_sizes": [5, 3],
        "attention_radii": [0.1, 0],
        "patch_hidden_sizes": [4, 6, 8],
        "pooling": "concat",
        "decoder_depths": [2, 1],
        "decoder_propagation_depths": [2],
        "mask_ratio": 0.7,
    },
}


@pytest.mark.parametrize("config_class", FIELDS)
def test_every_field_round_trips(config_class, tmp_path):
    fields = FIELDS[config_class]
    config = config_class(**fields, num_labels=7)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_class
    loaded.name_or_path = config.name_or_path
    assert loaded.to_dict() == config.to_dict()
    defaults = config_class()
    for name, value in fields.items():
        assert getattr(loaded, name) == value
        assert getattr(defaults, name) != value, f"{name}: the test must use another value than the default"
    assert loaded.num_labels == 7
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config_class.model_type


@pytest.mark.parametrize("config_class", FIELDS)
def test_no_field_is_left_out_of_the_round_trip(config_class):
    declared = {
        name
        for base in config_class.__mro__
        if base.__module__.startswith("point_peft_hf")
        for name in base.__dict__.get("__annotations__", {})
    }
    assert declared == set(FIELDS[config_class])


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (PointMAEConfig, "num_group", 64),
        (PointMAEConfig, "hidden_size", 385),
        (PointMAEConfig, "hidden_size", "384"),
        (PointMAEConfig, "mask_ratio", 1.5),
        (PointMAEConfig, "position_embedding", "sine"),
        (PointMAEConfig, "drop_path_rate", -0.1),
        (PointBertConfig, "patch_embedding_size", 0),
        (PointBertConfig, "patch_hidden_sizes", [128, 256]),
        (PointBertConfig, "hidden_sizes", [96, 192, 384]),
        (PointGPTConfig, "patch_hidden_sizes", [128]),
        (PointGPTConfig, "generator_num_attention_heads", 7),
        (PointGPTConfig, "generation_loss_weight", -1),
        (PointGPTConfig, "segmentation_layers", [12]),
        (PointGPTConfig, "mask_ratio", 1.0),
        (PointM2AEConfig, "depths", [5, 5]),
        (PointM2AEConfig, "num_groups", [512, 513, 64]),
        (PointM2AEConfig, "group_sizes", [16, 8, 300]),
        (PointM2AEConfig, "attention_radii", [0.32, -0.64, 1.28]),
        (PointM2AEConfig, "pooling", "max"),
        (PointM2AEConfig, "decoder_depths", [1, 1, 1, 1]),
        (PointM2AEConfig, "decoder_propagation_depths", [1, 1]),
    ],
)
def test_wrong_field_is_refused_by_name(config_class, field, value):
    with pytest.raises(ValueError, match=field):
        config_class(**{field: value})


def test_decoder_heads_are_checked_where_there_is_a_decoder():
    config = PointMAEConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    PointMAEForClassification(config)
    with pytest.raises(ValueError, match="decoder_num_attention_heads"):
        PointMAEForPreTraining(config)


@pytest.mark.parametrize(
    ("model_class", "config", "expected"),
    [
        (PointBertForClassification, PointBertConfig(num_labels=40), 22_065_960),
        (PointMAEForClassification, PointMAEConfig(num_labels=40), 22_099_752),
        (PointMAEForClassification, PointMAEConfig(num_labels=15), 22_093_327),
        (PointMAEForClassification, PointMAEConfig(num_labels=15, **PCP), 22_338_959),
        (PointM2AEForClassification, PointM2AEConfig(num_labels=40), 12_830_056),
        (PointM2AEForClassification, PointM2AEConfig(num_labels=15, pooling="concat"), 12_921_935),
        (PointMAEForPreTraining, PointMAEConfig(), 29_006_432),
        (PointM2AEForPreTraining, PointM2AEConfig(), 15_255_856),
        # What the logits depend on; the published classifiers also have a generator and layers without use.
        (PointGPTForClassification, PointGPTConfig(num_labels=15), 22_058_639),
        (PointGPTForClassification, PointGPTConfig(**GPT_SIZES["b"], num_labels=15), 91_958_287),
        (PointGPTForClassification, PointGPTConfig(**GPT_SIZES["l"], num_labels=15), 309_870_863),
        (PointGPTForPreTraining, PointGPTConfig(), 28_926_304 - 3 * 384),
        (PointGPTForPreTraining, PointGPTConfig(**GPT_SIZES["b"]), 119_920_224 - 3 * 768),
        (PointGPTForPreTraining, PointGPTConfig(**GPT_SIZES["l"]), 359_759_968 - 3 * 1024),
    ],
)
def test_parameter_counts_of_the_published_models(model_class, config, expected):
    with torch.device("meta"):
        model = model_class(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("config_class", FIELDS)
def test_auto_classes(config_class, tmp_path):
    config = config_class(**FIELDS[config_class], num_labels=3)
    model = AutoModelForPointCloudClassification.from_config(config)
    assert type(model).__name__ == type(AutoModel.from_config(config)).__name__.replace("Model", "ForClassification")
    if config_class is not PointBertConfig:
        assert type(AutoModelForPreTraining.from_config(config)).__name__.endswith("ForPreTraining")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
