"""The model card: written from what is known, without blanks; a person's own is left alone."""

import copy
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LNTuningConfig, PeftModel, get_peft_model

from point_peft_hf import GeometryAdapterConfig, PointCloudProcessor, PointPeftConfig, PointPriorPromptConfig
from point_peft_hf.io import is_generated, model_card, save_adapter, write_model_card
from point_peft_hf.io.card import wilson_interval

HEAD_ONLY = {"use_geometry": False, "use_prompts": False}


@pytest.fixture(scope="module")
def model(make_adapter):
    return make_adapter(base_name="alice/point_mae")


@pytest.fixture
def saved(model, tmp_path, record):
    return save_adapter(model, tmp_path / "adapter", processor=PointCloudProcessor(64), record=record)


def test_it_tells_everything_that_was_recorded(saved):
    card = (saved / "README.md").read_text()
    size = (saved / "adapter_model.safetensors").stat().st_size
    for text in (
        "import point_peft_hf",
        "[alice/point_mae](https://huggingface.co/alice/point_mae)",
        "fingerprint of its weights",
        "ModelNet40: 400 train, 100 validation, 600 test clouds",
        "3 classes: cube, cone, torus",
        "64 points of a cloud, drawn at random, the same ones each time",
        "10 epochs, batch size 32, AdamW with learning rate 0.002, weight decay 0.05, augmentation `scale_translate`",
        "test accuracy 90.0 % (95 % interval for 600 test clouds: 87.3 % to 92.2 %)",
        "mean class accuracy 88.0 %",
        "seed 5",
        "2,000 trained parameters of 30,000",
        f"{size:,} bytes",
        "torch 2.13.0",
    ):
        assert text in card, text
    assert not re.search(r"None|\[More|needed\]|TODO|somebody|\bnan\b", card)


@pytest.mark.parametrize(
    ("config", "told", "not_told"),
    [
        (PointPeftConfig(), "Geometry-aware Adapter and Point-prior Prompts", "without"),
        (PointPeftConfig(use_bank=False), "Geometry-aware Adapter and prompts without a memory bank", "bank_size"),
        (PointPeftConfig(use_geometry=False), "Method: Point-prior Prompts", "bottleneck_size"),
        (PointPeftConfig(use_prompts=False), "Method: Geometry-aware Adapter", "num_prompt_tokens"),
        (PointPeftConfig(**HEAD_ONLY, tune_biases=True), "Method: the biases of the blocks", "Point-PEFT (arXiv"),
        (PointPeftConfig(**HEAD_ONLY, tune_biases=False), "Method: the head and the class token", "configuration:"),
        (PointPriorPromptConfig(use_bank=False), "Method: deep prompts (VPT", "enhanced"),
        (GeometryAdapterConfig(), "Method: Geometry-aware Adapter", "num_prompt_tokens"),
        (LNTuningConfig(modules_to_save=["classifier"]), "Method: LN tuning", "Point-PEFT (arXiv"),
    ],
)
def test_it_names_what_was_trained(config, told, not_told, load_backbone, tmp_path):
    card = (save_adapter(get_peft_model(load_backbone(), config), tmp_path / "adapter") / "README.md").read_text()
    assert told in card
    assert not_told not in card


def test_its_metadata_is_what_the_hub_filters_by(saved):
    data = ModelCard.load(saved / "README.md").data
    assert data.library_name == "peft"
    assert data.base_model == "alice/point_mae"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "other"
    assert {"point-cloud", "point-peft", "peft", "base_model:adapter:alice/point_mae"} <= set(data.tags)
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "accuracy": 0.9,
        "mean_class_accuracy": 0.88,
    }
    fields = yaml.safe_load((saved / "README.md").read_text().split("---")[1])
    assert not [name for name, value in fields.items() if value in (None, "", [])]


def test_its_code_runs(saved, load_backbone, tmp_path, monkeypatch, backbones, capsys):
    code = re.search(r"```python\n(.*?)```", model_card(saved, str(saved)), flags=re.DOTALL)[1]
    load = f'AutoPointPeftModel.from_pretrained("{saved}"'
    assert load in code
    code = code.replace(load, f'{load}, backbone="{backbones["point_mae"]}"').replace('"my_scan.ply"', "cloud")
    namespace = {"cloud": __import__("torch").rand(100, 3)}
    exec(compile(code, "card", "exec"), namespace)
    assert capsys.readouterr().out.strip() in ("cube", "cone", "torus")


def test_what_is_not_known_has_no_line(model, tmp_path):
    save_adapter(model, tmp_path / "bare")
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "## Results" not in card
    assert "## Preprocessing" not in card
    assert "trained parameters" in card
    assert not re.search(r"None|\[More|TODO", card)


def test_several_seeds(model, tmp_path, record):
    runs = []
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        run = copy.deepcopy(record)
        run["arguments"]["seed"], run["test"]["accuracy"] = seed, accuracy
        runs.append(run)
    save_adapter(model, tmp_path / "adapter", record=runs)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "test accuracy 92.0 %, mean over 3 seeds, from 90.0 % to 94.0 %" in card
    assert "seeds 0, 1, 2" in card


def test_a_hand_written_card_is_left_as_it_is(saved, model):
    text = "# My adapter\n\nDo not touch.\n"
    (saved / "README.md").write_text(text)
    assert not write_model_card(saved)
    save_adapter(model, saved)
    assert (saved / "README.md").read_text() == text


def test_a_form_is_replaced_but_not_one_that_somebody_filled_in(saved, model):
    path = saved / "README.md"
    path.unlink()
    model.create_or_update_model_card(str(saved))
    assert "[More Information Needed]" in path.read_text()
    assert is_generated(path)
    filled = path.read_text().replace("[More Information Needed]", "By me.", 5)
    path.write_text(filled)
    assert not write_model_card(saved)
    assert path.read_text() == filled


def test_upstream_can_update_our_card(saved, load_backbone):
    model = PeftModel.from_pretrained(load_backbone(), saved)
    model.save_pretrained(saved)
    card = (saved / "README.md").read_text()
    assert "## Results" in card
    assert is_generated(saved / "README.md")


def test_the_interval_of_wilson():
    # Newcombe (1998), table I: 81 of 263.
    low, high = wilson_interval(81 / 263, 263)
    assert round(low, 4) == 0.2553
    assert round(high, 4) == 0.3662
    assert wilson_interval(1.0, 10)[1] == 1.0
