from functools import partial

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from point_peft_hf import PointCloudProcessor
from point_peft_hf.training import EpochSampler, training_loader

PROCESSOR = PointCloudProcessor(num_points=64)


def clouds_of(loader, epoch):
    """Points by the number of their cloud, in the order of the epoch."""
    loader.sampler.set_epoch(epoch)
    return {
        int(number): points
        for batch in loader
        for number, points in zip(batch["sample_ids"], batch["points"], strict=True)
    }


def make(task, **options):
    options = {"batch_size": 8, "seed": 0} | options
    return training_loader(task.train, partial(task.training_collator, PROCESSOR, "scale_translate"), **options)


def assert_same(first, second):
    assert list(first) == list(second)
    assert all(torch.equal(first[number], second[number]) for number in first)


def test_order_and_points_depend_on_seed_and_epoch_alone(tiny_task):
    first = clouds_of(make(tiny_task), 0)
    torch.manual_seed(99)
    assert_same(first, clouds_of(make(tiny_task), 0))
    assert_same(first, clouds_of(make(tiny_task, num_workers=2), 0))
    assert_same(first, clouds_of(make(tiny_task, batch_size=4), 0))
    for other in (clouds_of(make(tiny_task), 1), clouds_of(make(tiny_task, seed=1), 0)):
        assert list(other) != list(first)
        shared = next(number for number in other if number in first)
        assert not torch.equal(other[shared], first[shared])


def test_the_global_generator_is_not_used(tiny_task):
    before = torch.get_rng_state()
    clouds_of(make(tiny_task), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_clouds_of_a_step(tiny_task):
    whole = [batch["sample_ids"].tolist() for batch in make(tiny_task, batch_size=8)]
    halves = []
    for index in range(2):
        loader = make(tiny_task, batch_size=4, num_processes=2)
        loader = prepare_data_loader(loader, num_processes=2, process_index=index, put_on_device=False)
        halves.append([batch["sample_ids"].tolist() for batch in loader])
    assert [first + second for first, second in zip(*halves, strict=True)] == whole


def test_few_clouds_make_a_smaller_batch_and_none_twice(tiny_task):
    tiny_task = type(tiny_task)(tiny_task.class_names, tiny_task.train.select(range(7)), None, None)
    assert make(tiny_task, batch_size=16).batch_size == 7
    assert make(tiny_task, batch_size=16, num_processes=2).batch_size == 3
    with pytest.raises(ValueError, match="7 training clouds cannot be shared by 8 processes"):
        make(tiny_task, num_processes=8)


def test_a_sampler_gives_each_cloud_once():
    sampler = EpochSampler(10, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 3
    assert all(np.array_equal(np.sort(order), np.arange(10)) for order in orders)
