import json

import pytest
import torch

from point_peft_hf.training import METHODS, FinetuneArguments, Predictor, results_table
from point_peft_hf.training.run_folder import Progress


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_saves_and_predicts(method, finetune, tiny_task, tmp_path):
    run = finetune(tmp_path, method=method)
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


def test_the_seed_decides(finetune, tmp_path):
    losses = [
        finetune(tmp_path, method="geometry", epochs=1, seed=seed).run()["history"][0]["loss"] for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("method", ["full", "point_peft"])
def test_gradient_checkpointing_trains_the_same(method, finetune, tmp_path):
    plain, checkpointed = (
        finetune(tmp_path / str(on), method=method, gradient_checkpointing=on).run()["history"] for on in (False, True)
    )
    assert [row["loss"] for row in checkpointed] == pytest.approx([row["loss"] for row in plain], abs=1e-5)


def test_of_equal_epochs_the_first_is_kept():
    progress = Progress()
    assert [progress.end_epoch({}, score) for score in (0.5, 0.75, 0.75, 0.5)] == [True, True, False, False]
    assert progress.best == {"epoch": 2, "score": 0.75}


def test_gradient_accumulation_takes_fewer_optimizer_steps(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", epochs=1, gradient_accumulation_steps=2)
    run.run()
    assert len(run.train_loader) == 3
    assert run.scheduler.last_epoch == run.progress.step == 2


def test_a_smaller_last_group_of_batches_counts_as_a_mean_too(finetune, tmp_path):
    run = finetune(tmp_path, method="linear", epochs=1, gradient_accumulation_steps=2)
    weights = []
    for run.progress.batches in range(3):
        weights.append(run._weight_of_batch())
    # Accelerate divides each loss by 2.
    assert weights == [1, 1, 2]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "lore", "--method must be one of .*got 'lore'"),
        ("epochs", 0, "--epochs must be at least 1, got 0"),
        ("checkpoint_every_steps", 0, "--checkpoint_every_steps must be at least 1, got 0"),
        ("learning_rate", -1.0, "--learning_rate must be above 0, got -1.0"),
        ("validation_fraction", 1.5, "--validation_fraction must be between 0 and 1, got 1.5"),
        ("augmentation", "spin", "unknown augmentation 'spin'"),
    ],
)
def test_wrong_arguments_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        FinetuneArguments(**{field: value}).check()
