import pytest
import torch

from point_peft_hf.data import get_augmentation
from point_peft_hf.training import EpochSampler, PointCloudArguments, TrainingCollator


def test_the_mean_over_the_views_is_judged(finetune, tiny_task, tmp_path):
    run = finetune(tmp_path, method="linear", test_votes=3)
    record = run.run()
    # The same by hand: view by view and cloud by cloud.
    run.trainer.model.eval()
    total = torch.zeros(len(tiny_task.test), len(tiny_task.class_names))
    source = EpochSampler(len(tiny_task.test), seed=0)
    collate = TrainingCollator(run.processor, get_augmentation("scale_translate"), source)
    for vote in range(3):
        source.set_epoch(vote)
        for index in range(len(tiny_task.test)):
            with torch.no_grad():
                total[index] += (
                    run.trainer.model(points=collate([tiny_task.test[index]])["points"]).logits[0].softmax(dim=0)
                )
    right = (total.argmax(dim=1) == torch.as_tensor(tiny_task.test.labels)).float().mean()
    assert record["test"]["accuracy"] == pytest.approx(float(right))
    assert record["arguments"]["test_votes"] == 3
    assert "averaged over 3 views of each cloud" in (tmp_path / "linear" / "README.md").read_text()


def test_votes_change_nothing_but_the_test(finetune, tmp_path):
    one, five, again = (
        finetune(tmp_path / str(index), method="geometry", test_votes=votes).run()
        for index, votes in enumerate((1, 5, 5))
    )
    assert five["test"] == again["test"]
    assert one["best_epoch"] == five["best_epoch"]
    without_time = [{k: v for k, v in row.items() if k != "seconds"} for row in one["history"]]
    assert without_time == [{k: v for k, v in row.items() if k != "seconds"} for row in five["history"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_votes": 0}, "--test_votes must be at least 1, got 0"),
        ({"test_votes": 10, "task": "segmentation"}, "--test_votes 10 needs --task classification"),
    ],
)
def test_wrong_votes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PointCloudArguments(**arguments)
