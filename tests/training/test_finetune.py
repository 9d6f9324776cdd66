import json

import pytest
import torch
from safetensors.torch import load_file

from point_peft_hf.training import METHODS, FinetuneArguments, Finetuning, Predictor, results_table


def finetune(backbone, task, output_dir, **options):
    arguments = {"method": "point_peft", "epochs": 2, "batch_size": 16, "mixed_precision": "no"} | options
    return Finetuning(
        FinetuneArguments(model=backbone, output_dir=str(output_dir), **arguments), task, report=lambda line: None
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_saves_and_predicts(method, tiny_backbone, tiny_task, tmp_path):
    run = finetune(tiny_backbone, tiny_task, tmp_path, method=method)
    record = run.run()
    folder = tmp_path / method
    assert record["parameters"]["received_gradient"] == record["parameters"]["trainable"]
    assert 0 <= record["test"]["accuracy"] <= 1
    assert record == json.loads((folder / "run.json").read_text())
    assert record["history"][record["best_epoch"] - 1]["validation_accuracy"] == record["validation_accuracy"]
    assert (folder / ("model.safetensors" if method == "full" else "adapter_model.safetensors")).is_file()

    # What was saved predicts what the trained model does, from a backbone loaded anew.
    predictor = Predictor.from_pretrained(str(folder))
    cloud = tiny_task.test[0]["points"]
    run.model.eval()
    with torch.no_grad():
        expected = run.model(points=run.processor(cloud)["points"]).logits.softmax(-1)[0]
    ranked = predictor.predict(cloud, top=3)
    assert [name for name, _ in ranked] == [tiny_task.class_names[i] for i in expected.argsort(descending=True)[:3]]
    assert ranked[0][1] == pytest.approx(float(expected.max()), abs=1e-6)
    assert "| " + method in results_table([record])


@pytest.mark.parametrize("method", ["point_peft", "full"])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(method, tiny_backbone, tiny_task, tmp_path):
    def weights(folder):
        return load_file(next((folder / method / "checkpoint" / "model_0").glob("*.safetensors")))

    unbroken = finetune(tiny_backbone, tiny_task, tmp_path / "a", method=method, epochs=3).run()
    broken = finetune(tiny_backbone, tiny_task, tmp_path / "b", method=method, epochs=3)
    train_epoch = broken._train_epoch
    broken._train_epoch = lambda epoch: train_epoch(epoch) if epoch < 3 else pytest.fail("stop", pytrace=False)
    with pytest.raises(pytest.fail.Exception):
        broken.run()
    torch.manual_seed(1234)
    resumed = finetune(
        tiny_backbone, tiny_task, tmp_path / "b", method=method, epochs=3, resume_from_checkpoint="latest"
    ).run()
    expected, got = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert [row["loss"] for row in resumed["history"]] == [row["loss"] for row in unbroken["history"]]
    assert resumed["test"] == unbroken["test"]


def test_the_seed_decides(tiny_backbone, tiny_task, tmp_path):
    losses = [
        finetune(tiny_backbone, tiny_task, tmp_path, method="geometry", epochs=1, seed=seed).run()["history"][0][
            "loss"
        ]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_gradient_accumulation_takes_fewer_optimizer_steps(tiny_backbone, tiny_task, tmp_path):
    run = finetune(tiny_backbone, tiny_task, tmp_path, method="linear", epochs=1, gradient_accumulation_steps=2)
    run.run()
    assert len(run.train_loader) == 3
    assert run.scheduler.last_epoch == 2


def test_nothing_to_resume_is_an_error_that_names_the_folder(tiny_backbone, tiny_task, tmp_path):
    run = finetune(tiny_backbone, tiny_task, tmp_path, resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"elsewhere holds no checkpoint to resume from"):
        run.run()


def test_latest_starts_anew_where_there_is_nothing_yet_and_says_so(tiny_backbone, tiny_task, tmp_path):
    lines = []
    run = finetune(tiny_backbone, tiny_task, tmp_path, method="linear", epochs=1, resume_from_checkpoint="latest")
    run.report = lines.append
    assert len(run.run()["history"]) == 1
    assert "nothing to resume" in lines[0]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_clouds(tiny_backbone, tiny_task, tmp_path):
    run = finetune(tiny_backbone, tiny_task, tmp_path, method="linear")
    run.augment = lambda points: points
    with torch.no_grad():
        next(p for n, p in run.model.named_parameters() if "modules_to_save" in n).fill_(float("inf"))
    with pytest.raises(RuntimeError, match=r"The loss is nan in epoch 1, on the clouds \d+, \d+"):
        run.run()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "lore", "--method must be one of .*got 'lore'"),
        ("epochs", 0, "--epochs must be at least 1, got 0"),
        ("learning_rate", -1.0, "--learning_rate must be above 0, got -1.0"),
        ("validation_fraction", 1.5, "--validation_fraction must be between 0 and 1, got 1.5"),
        ("augmentation", "spin", "unknown augmentation 'spin'"),
    ],
)
def test_wrong_arguments_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        FinetuneArguments(**{field: value}).check()
