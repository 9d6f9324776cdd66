"""What depends on a cloud alone is computed once for clouds that are the same in every epoch."""

import pytest
import torch

from point_peft_hf.training.precomputed import PrecomputedValues
from point_peft_hf.tuners.pointgst import layer


@pytest.fixture
def count_bases(monkeypatch):
    """The number of clouds that bases of the whole cloud were computed of."""
    counts = []

    def counted(points):
        if points.ndim == 3:
            counts.append(len(points))
        return graph_basis(points)

    graph_basis = layer.graph_basis
    monkeypatch.setattr(layer, "graph_basis", counted)
    return counts


@pytest.mark.parametrize(
    ("options", "is_fixed"),
    [
        ({"augmentation": "none", "processor_config": {"sampling": "first"}}, True),
        ({}, False),
    ],
)
def test_bases_are_computed_once(options, is_fixed, finetune, tiny_task, tmp_path, count_bases):
    options = {"method": "pointgst", "num_train_epochs": 2, "exact_batch_norm": 0, **options}
    run = finetune(tmp_path / "kept", **options)
    count_bases.clear()
    kept = run.run()["history"]
    loader = run.trainer.get_train_dataloader()
    batch_size, batches = loader.total_batch_size, len(loader)
    trained = len(tiny_task.train) if is_fixed else 2 * batches * batch_size
    seen = sum(count_bases)
    # Two graphs a cloud: its own, and its only local one. The last, smaller batch of an epoch is left out, so in the
    # second epoch other clouds are new.
    assert 0 < seen <= 2 * (len(tiny_task.validation) + len(tiny_task.test) + trained + batch_size)
    assert bool(run.trainer.known["train"].rows) == is_fixed
    assert set(run.trainer.known["eval"].rows) == {(item["sample_ids"], 0) for item in tiny_task.validation}
    without = finetune(tmp_path / "without", **options)
    without.trainer.known = {}
    count_bases.clear()
    other = without.run()["history"]
    assert sum(count_bases) > seen
    assert [row["loss"] for row in other] == [row["loss"] for row in kept]
    assert [row["validation_accuracy"] for row in other] == [row["validation_accuracy"] for row in kept]


def test_methods_without_such_values(finetune, tmp_path):
    run = finetune(tmp_path, method="gaprompt", num_train_epochs=1)
    run.run()
    assert not run.trainer.known["eval"].rows


def test_a_limit(finetune, tmp_path):
    run = finetune(tmp_path, method="pointgst", num_train_epochs=1)
    run.trainer.known["eval"] = known = PrecomputedValues(max_bytes=1)
    run.run()
    # The first batch is kept, the others are not.
    assert len(known.rows) == min(run.args.per_device_eval_batch_size, len(run.task.validation))


@pytest.mark.parametrize("method", ["linear", "point_peft", "stag"])
def test_views_that_come_again(method, finetune, tiny_task, tmp_path):
    options = {"method": method, "num_train_epochs": 4, "cache_views": 2}
    run = finetune(tmp_path / "kept", **options)
    kept = run.run()["history"]
    known = run.trainer.known["train"].rows
    assert {view for _, view in known} == {0, 1}
    # The last, smaller batch of an epoch is left out.
    loader = run.trainer.get_train_dataloader()
    assert 2 * len(loader) * loader.total_batch_size <= len(known) <= 2 * len(tiny_task.train)
    without = finetune(tmp_path / "without", **options, cache_gib=0.0)
    other = without.run()["history"]
    assert not without.trainer.known["train"].rows
    assert [row["loss"] for row in other] == [row["loss"] for row in kept]
    assert [row["validation_accuracy"] for row in other] == [row["validation_accuracy"] for row in kept]


def test_views_are_those_of_the_first_epochs(finetune, tmp_path):
    def batch(epoch, **options):
        loader = finetune(tmp_path, **options).trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        clouds = {}
        for each in loader:
            clouds |= dict(zip(each["sample_ids"].tolist(), each["points"], strict=True))
        return clouds

    first, third = batch(0, cache_views=2), batch(2, cache_views=2)
    second, other = batch(1, cache_views=2), batch(0)
    shared = first.keys() & second.keys() & third.keys() & other.keys()
    assert shared
    for number in shared:
        assert torch.equal(first[number], third[number])
        assert torch.equal(first[number], other[number])
        assert not torch.equal(first[number], second[number])
