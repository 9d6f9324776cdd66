import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from point_peft_hf import AutoModelForPointCloudClassification, PointCloudProcessor
from point_peft_hf.training import (
    METHODS,
    ClassificationTask,
    PointCloudArguments,
    Predictor,
    load_task,
    load_task_of,
    parse_arguments,
    results_table,
)
from point_peft_hf.training.arguments import folder_name
from point_peft_hf.training.base_trainer import is_exempt_from_decay


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_saves_and_predicts(method, finetune, tiny_task, tmp_path):
    run = finetune(tmp_path, method=method)
    record = run.run()
    folder = tmp_path / folder_name(method)
    assert record["parameters"]["received_gradient"] == record["parameters"]["trainable"]
    assert 0 <= record["test"]["accuracy"] <= 1
    assert record == json.loads((folder / "run.json").read_text())
    assert record["history"][record["best_epoch"] - 1]["validation_accuracy"] == record["validation_accuracy"]
    assert (folder / ("model.safetensors" if method == "full" else "adapter_model.safetensors")).is_file()

    # What was saved predicts what the trained model does, from a backbone loaded anew.
    predictor = Predictor.from_pretrained(str(folder))
    cloud = tiny_task.test[0]["points"]
    run.trainer.model.eval()
    with torch.no_grad():
        expected = run.trainer.model(points=run.processor(cloud)["points"]).logits.softmax(-1)[0]
    ranked = predictor.predict(cloud, top=3)
    assert [name for name, _ in ranked] == [tiny_task.class_names[i] for i in expected.argsort(descending=True)[:3]]
    assert ranked[0][1] == pytest.approx(float(expected.max()), abs=1e-6)
    assert "| " + method in results_table([record])


def test_the_seed_decides(finetune, tmp_path):
    losses = [
        finetune(tmp_path / str(i), method="geometry", num_train_epochs=1, seed=seed).run()["history"][0]["loss"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("method", ["full", "point_peft"])
def test_gradient_checkpointing_trains_the_same(method, finetune, tmp_path):
    plain, checkpointed = (
        finetune(tmp_path / str(on), method=method, activation_checkpointing=on).run()["history"]
        for on in (False, True)
    )
    assert [row["loss"] for row in checkpointed] == pytest.approx([row["loss"] for row in plain], abs=1e-5)


def test_of_equal_epochs_the_first_is_kept(finetune, tmp_path, monkeypatch):
    run = finetune(tmp_path, method="linear", num_train_epochs=4)
    scores = iter([0.5, 0.75, 0.75, 0.5, 0.0])
    monkeypatch.setattr(
        run.trainer, "compute_metrics", lambda _: {"accuracy": next(scores), "mean_class_accuracy": 0.0}
    )
    record = run.run()
    assert (record["best_epoch"], record["validation_accuracy"]) == (2, 0.75)
    assert run.trainer.state.best_global_step == 6


def test_gradient_accumulation_takes_fewer_optimizer_steps(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", num_train_epochs=1, gradient_accumulation_steps=2)
    run.run()
    assert len(run.trainer.get_train_dataloader()) == 3
    assert run.trainer.state.global_step == 2


def test_biases_norms_tokens_and_frozen_weights_have_no_weight_decay():
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(2, 3), "norm": torch.nn.LayerNorm(3)})
    model.mask_token = torch.nn.Parameter(model["linear"].weight.detach().clone())
    exempt = [name for name, parameter in model.named_parameters() if is_exempt_from_decay(name, parameter)]
    assert sorted(exempt) == ["linear.bias", "mask_token", "norm.bias", "norm.weight"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "lore", "no method 'lore'. Choose one of .*point_peft"),
        ("num_train_epochs", 0, "--num_train_epochs must be above 0, got 0"),
        ("extra_save_steps", 0, "--extra_save_steps must be above 0, got 0"),
        ("learning_rate", -1.0, "--learning_rate must be above 0, got -1.0"),
        ("validation_fraction", 1.5, "--validation_fraction must be between 0 and 1, got 1.5"),
        ("augmentation", "spin", "unknown augmentation 'spin'"),
        ("epochs", 3, r"There are no arguments \['epochs'\]"),
        ("config", "[1]", r"--config must be a JSON object with names and values, got \[1\]"),
        ("config", "{r: 1}", r"--config must be a JSON object with names and values, got '{r: 1}'"),
    ],
)
def test_wrong_arguments_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments({field: value})


def test_a_command_line_and_a_mapping_say_the_same(tmp_path):
    line = ["--method", "linear", "lora", "--num_train_epochs", "3", "--seed", "1", "--config", '{"r": 4}']
    methods, what, how = parse_arguments(["--method", "lora", *line[3:]])
    assert methods == ["lora"]
    same = parse_arguments({"method": "lora", "num_train_epochs": 3, "seed": 1, "config": {"r": 4}})
    assert what == same[1]
    different = {name for name, value in how.to_dict().items() if value != same[2].to_dict()[name]}
    assert different <= {"accelerator_config", "logging_dir"}
    assert parse_arguments(["--method", "linear", "lora"])[0] == ["linear", "lora"]


def test_what_is_not_given_comes_from_the_method():
    _, _, how = parse_arguments({"output_dir": "out"})
    assert (how.learning_rate, how.warmup_steps, how.metric_for_best_model) == (None, None, None)
    filled = how.for_method("lora", ClassificationTask)
    assert (filled.learning_rate, filled.warmup_steps, filled.metric_for_best_model) == (2e-3, 0.1, "accuracy")
    assert filled.greater_is_better
    assert filled.output_dir == "out/lora"
    _, _, how = parse_arguments({"learning_rate": 1e-3, "warmup_steps": 5, "metric_for_best_model": "loss"})
    filled = how.for_method("lora", ClassificationTask)
    assert (filled.learning_rate, filled.warmup_steps, filled.greater_is_better) == (1e-3, 5, False)


def test_early_stopping(finetune, tmp_path, monkeypatch):
    run = finetune(tmp_path, method="linear", num_train_epochs=9, early_stopping_patience=2)
    scores = iter([0.5, 0.4, 0.4, 0.0])
    monkeypatch.setattr(
        run.trainer, "compute_metrics", lambda _: {"accuracy": next(scores), "mean_class_accuracy": 0.0}
    )
    record = run.run()
    assert (len(record["history"]), record["best_epoch"]) == (3, 1)


def test_label_smoothing_is_that_of_the_model(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", label_smoothing_factor=0.3, num_train_epochs=1)
    assert run.trainer.model.config.label_smoothing == 0.3
    plain = finetune(tmp_path / "plain", method="linear", num_train_epochs=1).run()["history"][0]["loss"]
    assert run.run()["history"][0]["loss"] != plain


def test_what_was_learned_from_other_data_is_not_replaced_by_accident(finetune, tmp_path, tiny_task):
    finetune(tmp_path, method="linear", num_train_epochs=1).run()
    before = (tmp_path / "linear" / "adapter_model.safetensors").read_bytes()
    other = load_task(num_points=128, clouds_per_class=6, max_test_clouds=37)
    message = r"holds the result of a run on other data \(procedural, 12 classes\)"
    for resume in (None, "latest"):
        with pytest.raises(ValueError, match=message):
            finetune(tmp_path, method="linear", num_train_epochs=1, task=other, resume_from_checkpoint=resume)
    assert (tmp_path / "linear" / "adapter_model.safetensors").read_bytes() == before
    finetune(tmp_path, method="linear", num_train_epochs=1, task=other, overwrite_output_dir=True).run()


def test_a_finished_run_is_replaced_by_the_same_one_only(finetune, tmp_path, crash, tiny_backbone):
    finetune(tmp_path, method="linear").run()
    folder = tmp_path / "linear"
    before = {name: (folder / name).read_bytes() for name in ("adapter_model.safetensors", "run.json")}
    with pytest.raises(ValueError, match=r"that differs \(--learning_rate was 0.002, is 0.001, --seed was 0, is 1\)"):
        finetune(tmp_path, method="linear", seed=1, learning_rate=1e-3)
    backbone = AutoModelForPointCloudClassification.from_pretrained(tiny_backbone)
    with torch.no_grad():
        next(backbone.base_model.encoder.parameters()).add_(1e-3)
    shutil.copytree(tiny_backbone, tmp_path / "other")
    backbone.base_model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"that differs \(--model was .*, is .*other or has other weights\)"):
        finetune(tmp_path, method="linear", model=str(tmp_path / "other"))
    # The old model and its record stay together until the new one is finished.
    crash(finetune(tmp_path, method="linear", seed=1, overwrite_output_dir=True), 4)
    assert {name: (folder / name).read_bytes() for name in before} == before
    finetune(tmp_path, method="linear", seed=1, resume_from_checkpoint="latest").run()
    assert json.loads((folder / "run.json").read_text())["arguments"]["seed"] == 1
    assert (folder / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    finetune(tmp_path, method="linear", seed=1).run()


def test_few_steps_are_said_to_be_few(finetune, tmp_path):
    lines = []
    finetune(tmp_path / "few", method="linear", report=lines.append).run()
    assert "[linear] only 6 steps of 16 clouds; more --num_train_epochs or a smaller" in lines[1]
    lines.clear()
    finetune(tmp_path / "more", method="linear", num_train_epochs=17, report=lines.append).run()
    assert not any("only" in line for line in lines)


def test_fields_of_the_preprocessing(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", processor_config={"up_axis": "z"}, num_points=100)
    assert (run.processor.up_axis, run.processor.num_points) == ("z", 100)
    with pytest.raises(ValueError, match="PointCloudProcessor has no field upwards"):
        finetune(tmp_path, method="linear", processor_config={"upwards": "z"})


def test_clouds_that_seem_to_lie_are_warned_of(finetune, tiny_task, tmp_path):
    def lines_of(**options):
        lines = []
        finetune(tmp_path, method="linear", report=lines.append, overwrite_output_dir=True, **options).run()
        return [line for line in lines if "warning" in line]

    train = tiny_task.train.select(range(len(tiny_task.train)))
    train.clouds = np.ascontiguousarray(train.clouds[..., [0, 2, 1]])
    lying = replace(tiny_task, train=train)
    assert lines_of() == []
    (line,) = lines_of(task=lying)
    assert "the clouds look z up, and are read as y up" in line
    assert """pass --processor_config '{"up_axis": "z"}'""" in line
    assert lines_of(task=lying, processor_config={"up_axis": "y"}) == []


def test_a_backbone_without_preprocessing_gets_the_default_one(finetune, tmp_path, tiny_backbone):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_backbone, bare)
    (bare / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="has no preprocessor_config.json. Clouds are sampled to 1024 points"):
        run = finetune(tmp_path / "out", method="linear", model=str(bare))
    assert run.processor.to_dict() == PointCloudProcessor().to_dict()
    (bare / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match="preprocessor_config.json"):
        finetune(tmp_path / "out", method="linear", model=str(bare))


def test_the_layout_of_a_folder_with_several_data_sets(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    folder = tmp_path / "main_split"
    folder.mkdir()
    for name in ("objectdataset", "objectdataset_augmentedrot_scale75"):
        for split in ("training", "test"):
            with h5py.File(folder / f"{split}_{name}.h5", "w") as file:
                file["data"] = rng.normal(size=(30, 64, 3)).astype(np.float32)
                file["label"] = np.arange(30) % 15
    args = PointCloudArguments(data=str(folder))
    with pytest.raises(ValueError, match="choose one with layout: scanobjectnn_obj_bg, scanobjectnn_pb_t50_rs"):
        load_task_of(args)
    task = load_task_of(replace(args, layout="scanobjectnn_obj_bg"))
    assert (len(task.train), len(task.validation), len(task.test)) == (15, 15, 30)


def test_a_test_split_that_is_cut_is_the_same_whatever_the_seed(tmp_path):
    for index in range(40):
        path = tmp_path / "abcd"[index % 4] / f"{index}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.random.default_rng(index).normal(size=(50, 3)))
    first, second = (load_task(str(tmp_path), seed=seed) for seed in (0, 1))
    assert first.test.sample_ids.tolist() == second.test.sample_ids.tolist()
    assert first.validation.sample_ids.tolist() != second.validation.sample_ids.tolist()


def test_evaluation_every_few_steps(finetune, tmp_path):
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    run = finetune(tmp_path, method="linear", **options)
    record = run.run()
    assert [row["epoch"] for row in record["history"]] == [0.667, 1.333, 2]
    best = max(row["validation_accuracy"] for row in record["history"])
    assert record["validation_accuracy"] == best == run.trainer.state.best_metric
