"""Push and pull, with the real client and a Hub on loopback."""

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants, hf_hub_download, whoami
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft import LoraConfig, PeftModel
from transformers import Trainer, TrainingArguments

from point_peft_hf import (
    AutoModelForPointCloudClassification,
    AutoPointPeftModel,
    GeometryAdapterConfig,
    PointCloudProcessor,
    PointPriorPromptConfig,
    add_adapters,
    save_adapters,
)
from point_peft_hf.commands import main
from point_peft_hf.io import push_adapter, save_adapter
from point_peft_hf.training import Predictor, finetune, load_task

PULL = """
import json, sys, torch
from point_peft_hf import AutoPointPeftModel
points = torch.load("points.pt")
result = {}
for name in NAMES:
    model = AutoPointPeftModel.from_pretrained("alice/adapters", subfolder=name)
    with torch.no_grad():
        result[name] = model(points=points).logits
torch.save(result, "result.pt")
"""

PULL_MIX = """
import torch
from huggingface_hub import snapshot_download
from point_peft_hf import AutoModelForPointCloudClassification, load_adapters
points = torch.load("points.pt")
result = {}
for name in NAMES:
    model = AutoModelForPointCloudClassification.from_pretrained("alice/" + name, num_labels=3)
    load_adapters(model, snapshot_download("alice/mix-" + name))
    with torch.no_grad():
        result[name] = model.eval()(points=points).logits
torch.save(result, "result.pt")
"""


@pytest.fixture
def push_backbone(hub, backbones):
    """Push a backbone, the way transformers does it."""

    def push(name="point_mae"):
        repo_id = f"alice/{name}"
        AutoModelForPointCloudClassification.from_pretrained(backbones[name], num_labels=2).base_model.push_to_hub(
            repo_id
        )
        PointCloudProcessor(num_points=64).push_to_hub(repo_id)
        return repo_id

    return push


@pytest.fixture
def pushed(push_backbone, make_adapter, tmp_path, record):
    """A private repository with an adapter of Point-PEFT; also its model and its folder."""
    model = make_adapter(base_name=push_backbone())
    folder = save_adapter(model, tmp_path / "adapter", processor=PointCloudProcessor(num_points=64), record=record)
    push_adapter(folder, "alice/adapter", private=True)
    return model, folder


@pytest.mark.parametrize("by_lfs", [True, False], ids=["lfs", "regular"])
def test_private_push_then_pull_gives_equal_logits(hub, by_lfs, push_backbone, make_adapter, tmp_path, logits, record):
    hub.uploads_by_lfs = by_lfs
    model = make_adapter(base_name=push_backbone())
    save_adapter(model, tmp_path / "adapter", processor=PointCloudProcessor(num_points=64), record=record)
    push_adapter(tmp_path / "adapter", "alice/adapter", private=True)
    repository = hub.repositories["alice/adapter"]
    files = repository.trees[repository.branches["main"]]
    assert repository.private
    assert files["adapter_model.safetensors"].is_lfs == by_lfs
    assert set(files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
        "run.json",
    }

    pulled = AutoPointPeftModel.from_pretrained("alice/adapter")
    assert torch.equal(logits(pulled), logits(model))
    assert pulled.config.id2label == {0: "cube", 1: "cone", 2: "torus"}
    assert PointCloudProcessor.from_pretrained("alice/adapter").num_points == 64
    assert not pulled.training


def test_a_second_process_with_an_empty_cache_gives_equal_logits(
    push_backbone, make_adapter, tmp_path, logits, points, second_process
):
    expected = {}
    for backbone in ("point_mae", "point_bert", "point_m2ae"):
        base_name = push_backbone(backbone)
        for method in ("geometry", "prompt", "point_peft", "lora"):
            name, model = f"{backbone}_{method}", make_adapter(method, backbone, base_name)
            expected[name] = logits(model)
            push_adapter(save_adapter(model, tmp_path / name), "alice/adapters", subfolder=name)
    torch.save(points, tmp_path / "points.pt")
    second_process(PULL.replace("NAMES", repr(list(expected))))
    result = torch.load(tmp_path / "result.pt")
    for name, values in expected.items():
        assert torch.equal(result[name], values), name


def test_a_mix_with_lora_gives_equal_logits_in_a_second_process(
    push_backbone, load_backbone, tmp_path, logits, points, second_process
):
    expected = {}
    for backbone in ("point_mae", "point_bert", "point_m2ae"):
        mixed = load_backbone(source=push_backbone(backbone))
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        prompt = PointPriorPromptConfig(use_bank=False)
        add_adapters(
            mixed, {"geometry": GeometryAdapterConfig(init_weights=False), "low_rank": lora, "prompt": prompt}
        )
        save_adapters(mixed, tmp_path / backbone)
        HfApi().create_repo(f"alice/mix-{backbone}")
        HfApi().upload_folder(repo_id=f"alice/mix-{backbone}", folder_path=tmp_path / backbone)
        expected[backbone] = logits(mixed)
    torch.save(points, tmp_path / "points.pt")
    second_process(PULL_MIX.replace("NAMES", repr(list(expected))))
    result = torch.load(tmp_path / "result.pt")
    for name, values in expected.items():
        assert torch.equal(result[name], values), name


# -- The upstream functions ---------------------------------------------------------------------------------------


def test_upstream_functions_push_and_pull(hub, push_backbone, make_adapter, load_backbone, logits):
    base_name = push_backbone()
    model = make_adapter(base_name=base_name)
    model.push_to_hub("alice/adapter", private=True)
    assert hub.repositories["alice/adapter"].private

    assert torch.equal(
        logits(PeftModel.from_pretrained(load_backbone(source=base_name), "alice/adapter")), logits(model)
    )
    backbone = load_backbone(source=base_name)
    backbone.load_adapter("alice/adapter")
    assert torch.equal(logits(backbone), logits(model))
    # transformers finds the backbone by the adapter; the classes it must be told.
    found = AutoModelForPointCloudClassification.from_pretrained("alice/adapter", num_labels=3)
    assert torch.equal(logits(found), logits(model))


def test_transformers_own_adapters_are_pushed_with_checksums(hub, push_backbone, load_backbone, logits, tmp_path):
    base_name = push_backbone()
    model = load_backbone(source=base_name)
    torch.manual_seed(0)
    model.add_adapter(GeometryAdapterConfig(init_weights=False))
    for folder in (tmp_path / "a", tmp_path / "a"):
        model.save_pretrained(folder)
        again = load_backbone(source=base_name)
        again.load_adapter(str(folder))
        assert torch.equal(logits(again), logits(model))
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "up_bias" in name).add_(0.1)
    model.push_to_hub("alice/adapter")
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/adapter", backbone=base_name)), logits(model))


def test_trainer_pushes(hub, push_backbone, make_adapter, tmp_path, logits):
    model = make_adapter("geometry", base_name=push_backbone())
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=4,
        push_to_hub=True,
        hub_model_id="alice/trained",
        hub_private_repo=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    clouds = [{"points": torch.rand(64, 3), "labels": torch.tensor(index % 3)} for index in range(4)]
    trainer = Trainer(model=model, args=arguments, train_dataset=clouds)
    trainer.train()
    trainer.push_to_hub()
    assert hub.repositories["alice/trained"].private
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/trained")), logits(model))


def test_the_command_line_uploads_and_downloads(hub, make_adapter, tmp_path):
    save_adapter(make_adapter("geometry"), tmp_path / "adapter")

    def hf(*arguments):
        command = [str(Path(sys.executable).with_name("hf")), *arguments]
        if not Path(command[0]).exists():
            command[:1] = [sys.executable, "-m", "huggingface_hub.cli.hf"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "alice" in hf("auth", "whoami")
    hf("upload", "alice/from_shell", str(tmp_path / "adapter"), "--private")
    assert hub.repositories["alice/from_shell"].private
    hf("download", "alice/from_shell", "--local-dir", str(tmp_path / "back"))
    for file in (tmp_path / "adapter").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


# -- Commits, tags, branches --------------------------------------------------------------------------------------


def test_an_unchanged_second_push_makes_no_commit(hub, pushed):
    model, folder = pushed
    commits = len(hub.repositories["alice/adapter"].trees)
    first = push_adapter(folder, "alice/adapter")
    save_adapter(model, folder)
    second = push_adapter(folder, "alice/adapter")
    assert first.oid == second.oid
    assert len(hub.repositories["alice/adapter"].trees) == commits


def test_the_record_of_other_weights_does_not_stay(hub, pushed, push_backbone, make_adapter):
    _, folder = pushed
    assert "run.json" in HfApi().list_repo_files("alice/adapter")
    save_adapter(make_adapter(seed=1), folder)
    push_adapter(folder, "alice/adapter", backbone=push_backbone())
    assert "run.json" not in HfApi().list_repo_files("alice/adapter")
    assert "test accuracy" not in Path(hf_hub_download("alice/adapter", "README.md")).read_text()


def test_tags_and_branches(hub, pushed, make_adapter, tmp_path, logits):
    model, folder = pushed
    push_adapter(folder, "alice/adapter", tag="v1")
    other = make_adapter(base_name="alice/point_mae", seed=1)
    save_adapter(other, tmp_path / "other")
    push_adapter(tmp_path / "other", "alice/adapter", revision="second")
    for revision, expected in (("v1", model), ("main", model), ("second", other)):
        assert torch.equal(
            logits(AutoPointPeftModel.from_pretrained("alice/adapter", revision=revision)), logits(expected)
        )


def test_two_adapters_in_one_repository(hub, push_backbone, make_adapter, load_backbone, tmp_path, logits):
    base_name = push_backbone()
    models = {name: make_adapter(name, base_name=base_name) for name in ("geometry", "prompt")}
    for name, model in models.items():
        save_adapter(model, tmp_path / name)
        push_adapter(tmp_path / name, "alice/adapters", subfolder=name)
    for name, model in models.items():
        assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/adapters", subfolder=name)), logits(model))
    plain = PeftModel.from_pretrained(load_backbone(source=base_name), "alice/adapters", subfolder="prompt")
    assert torch.equal(logits(plain), logits(models["prompt"]))
    card = Path(hf_hub_download("alice/adapters", "README.md")).read_text()
    assert 'subfolder="geometry"' in card
    assert 'subfolder="prompt"' in card
    with pytest.raises(ValueError, match=r"alice/adapters has no adapter_config.json.*subfolder"):
        AutoPointPeftModel.from_pretrained("alice/adapters")


def test_a_card_of_a_person_in_the_repository_is_kept(hub, pushed):
    model, folder = pushed
    api = HfApi()
    text = "---\nlicense: mit\n---\n\n# Mine\n"
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="alice/adapter")
    push_adapter(folder, "alice/adapter", commit_message="again")
    model.push_to_hub("alice/adapter")
    assert "# Mine" in Path(hf_hub_download("alice/adapter", "README.md")).read_text()


# -- Who may, and what is not there -------------------------------------------------------------------------------


def test_private_without_a_token(pushed, monkeypatch, empty_cache):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError, match="authenticated"):
        AutoPointPeftModel.from_pretrained("alice/adapter")
    with pytest.raises(LocalTokenNotFoundError):
        whoami()


def test_wrong_token(pushed, empty_cache):
    with pytest.raises(HfHubHTTPError, match="401"):
        AutoPointPeftModel.from_pretrained("alice/adapter", token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="401"):
        push_adapter(pushed[1], "alice/adapter", token="hf_wrong")


def test_the_token_of_somebody_else(hub, pushed, empty_cache):
    with pytest.raises(RepositoryNotFoundError):
        AutoPointPeftModel.from_pretrained("alice/adapter", token="hf_mallory")
    before = dict(hub.repositories["alice/adapter"].branches)
    with pytest.raises(HfHubHTTPError):
        push_adapter(pushed[1], "alice/adapter", token="hf_mallory")
    assert hub.repositories["alice/adapter"].branches == before


def test_missing_repository_file_and_revision(hub, pushed):
    with pytest.raises(RepositoryNotFoundError, match="alice/nothing"):
        AutoPointPeftModel.from_pretrained("alice/nothing")
    with pytest.raises(RevisionNotFoundError, match="v99"):
        AutoPointPeftModel.from_pretrained("alice/adapter", revision="v99")
    HfApi().delete_file("adapter_model.safetensors", "alice/adapter")
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors"):
        AutoPointPeftModel.from_pretrained("alice/adapter")
    with pytest.raises(ValueError, match="neither a folder nor the name of a repository"):
        AutoPointPeftModel.from_pretrained("./outputs/not/here")


# -- When something breaks ----------------------------------------------------------------------------------------


def test_an_interrupted_download_resumes(hub, pushed, logits, empty_cache):
    size = pushed[1].joinpath("adapter_model.safetensors").stat().st_size
    hub.faults["cut"] = size // 2
    hub.log.clear()
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/adapter")), logits(pushed[0]))
    gets = [entry for entry in hub.log if entry[0] == "GET" and entry[1].endswith("adapter_model.safetensors")]
    assert not hub.faults
    assert len(gets) >= 2


@pytest.mark.parametrize("fault", ["put", "commit"])
def test_an_interrupted_upload_leaves_the_old_commit_whole(
    hub, fault, pushed, make_adapter, tmp_path, logits, empty_cache
):
    model, folder = pushed
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_adapter(make_adapter(base_name="alice/point_mae", seed=1), tmp_path / "other")
    hub.faults[fault] = True
    # The client's own words, for an upload without their reason.
    with pytest.raises((HfHubHTTPError, RuntimeError), match=r"out of order|Error while uploading 'adapter_model"):
        push_adapter(tmp_path / "other", "alice/adapter")
    hub.faults.clear()
    empty_cache()
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/adapter")), logits(model))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


def test_a_file_that_was_corrupted_on_the_way_is_refused(hub, pushed, load_backbone, empty_cache):
    hub.faults["flip"] = True
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: is not the file"):
        AutoPointPeftModel.from_pretrained("alice/adapter", backbone=load_backbone())
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: is not the file"):
        PeftModel.from_pretrained(load_backbone(), "alice/adapter")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: is not the file"):
        load_backbone().load_adapter("alice/adapter")


def test_an_adapter_of_another_backbone_is_refused(pushed, load_backbone):
    other = load_backbone()
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if name.endswith("layers.1.mlp.fc1.weight"))[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"made for a backbone \(alice/point_mae\) with other weights"):
        AutoPointPeftModel.from_pretrained("alice/adapter", backbone=other)
    with pytest.raises(ValueError, match="model_type='point_mae', but this one has model_type='point_bert'"):
        PeftModel.from_pretrained(load_backbone("point_bert"), "alice/adapter")


def test_a_backbone_in_a_folder_is_not_pushed_as_a_name(hub, make_adapter, push_backbone, tmp_path, backbones, logits):
    model = make_adapter("geometry")
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"which others cannot find.*backbone='owner/name'"):
        push_adapter(tmp_path / "adapter", "alice/adapter")
    assert "alice/adapter" not in hub.repositories
    push_adapter(tmp_path / "adapter", "alice/adapter", backbone=push_backbone())
    assert torch.equal(logits(AutoPointPeftModel.from_pretrained("alice/adapter")), logits(model))
    blobs = hub.repositories["alice/adapter"].trees[hub.repositories["alice/adapter"].branches["main"]].values()
    assert not any(str(Path(backbones["point_mae"]).parent).encode() in blob.content for blob in blobs)


def test_no_folder_of_this_machine_is_pushed(hub, make_adapter, push_backbone, tmp_path, record):
    model = make_adapter("geometry")
    private = {
        "data": "clients/acme/scans",
        "model": "outputs/acme/backbone",
        "output_dir": "C:\\Users\\acme\\out",
        "resume_from_checkpoint": None,
    }
    run = record | {"arguments": record["arguments"] | private, "command": ["train.py", "--data=/home/acme/scans"]}
    save_adapter(model, tmp_path / "adapter", record=[run | {"note": "file:///acme/x"}, run])
    push_adapter(tmp_path / "adapter", "alice/adapter", backbone=push_backbone())
    text = Path(hf_hub_download("alice/adapter", "run.json")).read_text()
    assert "acme" not in text
    pushed = json.loads(text)["runs"][0]
    assert {name: pushed["arguments"][name] for name in private} == {
        "data": "scans",
        "model": "backbone",
        "output_dir": "out",
        "resume_from_checkpoint": None,
    }
    assert (pushed["test"], pushed["arguments"]["seed"]) == (record["test"], record["arguments"]["seed"])


def test_what_training_saved_is_pushed_and_predicts(hub, push_backbone, tmp_path):
    base_name = push_backbone()
    task = load_task(num_points=64, clouds_per_class=3, max_test_clouds=24)
    arguments = {"model": base_name, "output_dir": str(tmp_path), "num_train_epochs": 1}
    lines = []
    record = finetune(arguments | {"push_to_hub": True, "hub_model_id": "alice/trained"}, task, report=lines.append)
    assert lines[-1] == "[point_peft] pushed to alice/trained"
    card = Path(hf_hub_download("alice/trained", "README.md")).read_text()
    assert f"test accuracy {100 * record['test']['accuracy']:.1f} %" in card
    assert 'AutoPointPeftModel.from_pretrained("alice/trained")' in card
    cloud = np.random.default_rng(0).normal(size=(200, 3))
    local, pulled = (Predictor.from_pretrained(name) for name in (str(tmp_path / "point_peft"), "alice/trained"))
    assert local.predict(cloud, top=3) == pulled.predict(cloud, top=3)
    model, processor = (
        AutoPointPeftModel.from_pretrained("alice/trained"),
        PointCloudProcessor.from_pretrained("alice/trained"),
    )
    with torch.no_grad():
        best = int(model(points=processor(cloud)["points"]).logits.argmax())
    assert model.config.id2label[best] == pulled.predict(cloud)[0][0]


def test_the_commands(hub, make_adapter, push_backbone, tmp_path, capsys):
    folder = save_adapter(make_adapter("geometry"), tmp_path / "adapter")
    arguments = [str(folder), "--repo_id", "alice/example", "--subfolder", "geometry", "--tag", "v1", "--private"]
    with pytest.raises(SystemExit, match="error: .*which others cannot find"):
        main(["push", *arguments])
    assert main(["push", *arguments, "--backbone", push_backbone()]) == 0
    assert "predicts the same" in capsys.readouterr().out
    assert "v1" in hub.repositories["alice/example"].tags
    where = ["--subfolder", "geometry", "--revision", "v1", "--output_dir", str(tmp_path / "pulled")]
    assert main(["pull", "alice/example", *where]) == 0
    assert "alice/example: GEOMETRY_ADAPTER on alice/point_mae" in capsys.readouterr().out
    weights = [(place / "adapter_model.safetensors").read_bytes() for place in (folder, tmp_path / "pulled")]
    assert weights[0] == weights[1]
    with pytest.raises(SystemExit, match="error: alice/example holds no adapter.* Pass its --subfolder"):
        main(["pull", "alice/example"])


def test_a_refused_push_says_how_to_log_in(hub, make_adapter, push_backbone, tmp_path, monkeypatch):
    folder = save_adapter(make_adapter("geometry"), tmp_path / "adapter")
    repository = push_backbone()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SystemExit, match="(?s)error: .*hf auth login"):
        main(["push", str(folder), "--repo_id", "bob/example", "--backbone", repository])


def test_offline_from_the_cache(pushed, points, tmp_path, logits, second_process):
    code = (
        "import torch\n"
        "from point_peft_hf import AutoPointPeftModel, PointCloudProcessor\n"
        "model = AutoPointPeftModel.from_pretrained('alice/adapter')\n"
        "PointCloudProcessor.from_pretrained('alice/adapter')\n"
        "torch.save(model(points=torch.load('points.pt')).logits.detach(), 'result.pt')\n"
    )
    torch.save(points, tmp_path / "points.pt")
    AutoPointPeftModel.from_pretrained("alice/adapter")
    PointCloudProcessor.from_pretrained("alice/adapter")
    second_process(
        code,
        HF_HUB_OFFLINE="1",
        HF_HUB_CACHE=str(constants.HF_HUB_CACHE),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_TOKEN="",
    )
    assert torch.equal(torch.load(tmp_path / "result.pt"), logits(pushed[0]))


def test_no_test_reaches_the_internet():
    with pytest.raises(AssertionError, match="wants to talk to"):
        hf_hub_download("owner/name", "config.json", endpoint="http://192.0.2.1")


@pytest.mark.live_hub
def test_the_real_hub(make_adapter, tmp_path, logits, backbones):
    if "POINT_PEFT_LIVE_HUB" not in os.environ:
        pytest.skip("set POINT_PEFT_LIVE_HUB to an account that your token may write to")
    repo_id = f"{os.environ['POINT_PEFT_LIVE_HUB']}/point_peft_hf_test_{secrets.token_hex(4)}"
    model = make_adapter()
    save_adapter(model, tmp_path / "adapter")
    try:
        push_adapter(tmp_path / "adapter", repo_id, backbone=repo_id, private=True)
        pulled = AutoPointPeftModel.from_pretrained(repo_id, backbone=backbones["point_mae"])
        assert torch.equal(logits(pulled), logits(model))
    finally:
        HfApi().delete_repo(repo_id, missing_ok=True)
