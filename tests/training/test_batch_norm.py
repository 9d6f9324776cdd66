"""BatchNorm over two processes against one BatchNorm over all rows."""

import pytest
import torch
from accelerate import Accelerator
from torch import distributed, multiprocessing, nn

from point_peft_hf.layers import FreezableBatchNorm1d
from point_peft_hf.training import SyncFreezableBatchNorm1d, synchronize_batch_norms
from point_peft_hf.training import trainer as trainer_module
from point_peft_hf.training.batch_norm import estimate_statistics, trained_batch_norms

# Different numbers of rows, and a mean that is large against the spread.
ROWS = (5, 3)


def make_data(ndim):
    generator = torch.Generator().manual_seed(0)
    shape = (sum(ROWS), 4) if ndim == 2 else (sum(ROWS), 4, 6)
    return torch.randn(shape, generator=generator) + 30, torch.randn(shape, generator=generator)


def outcome(norm, values, weights):
    values = values.clone().requires_grad_()
    result = norm(values)
    (result * weights).sum().backward()
    return {"output": result.detach(), "input_gradient": values.grad}, {
        "weight_gradient": norm.weight.grad,
        "bias_gradient": norm.bias.grad,
    }


def in_process(rank, folder, ndim):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    norm = synchronize_batch_norms(nn.Sequential(FreezableBatchNorm1d(4)))[0]
    values, weights = (tensor.split(ROWS)[rank] for tensor in make_data(ndim))
    by_row, by_process = outcome(norm, values, weights)
    statistics = {"mean": norm.running_mean, "var": norm.running_var, "count": norm.num_batches_tracked}
    torch.save([by_row, by_process, statistics], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("ndim", [2, 3])
def test_two_processes_normalise_as_one_over_all_rows(ndim, tmp_path):
    multiprocessing.start_processes(in_process, (str(tmp_path), ndim), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    norm = FreezableBatchNorm1d(4)
    by_row, by_process = outcome(norm, *make_data(ndim))
    for name, expected in by_row.items():
        torch.testing.assert_close(torch.cat([first[0][name], second[0][name]]), expected, atol=1e-4, rtol=1e-4)
    for name, expected in by_process.items():
        torch.testing.assert_close(first[1][name] + second[1][name], expected, atol=1e-4, rtol=1e-4)
    for statistics in (first[2], second[2]):
        torch.testing.assert_close(statistics["mean"], norm.running_mean)
        torch.testing.assert_close(statistics["var"], norm.running_var, atol=1e-5, rtol=1e-5)
        assert statistics["count"] == 1


def test_trained_ones_are_exchanged_and_frozen_ones_are_not():
    model = nn.Sequential(FreezableBatchNorm1d(4), FreezableBatchNorm1d(4))
    model[0].requires_grad_(False)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    synchronize_batch_norms(model)
    assert [type(norm) for norm in model] == [FreezableBatchNorm1d, SyncFreezableBatchNorm1d]
    assert list(model.state_dict()) == keys
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))


def test_alone_it_is_a_batch_norm():
    values, _ = make_data(2)
    norm = synchronize_batch_norms(nn.Sequential(FreezableBatchNorm1d(4)))
    assert torch.equal(norm(values), FreezableBatchNorm1d(4)(values))


# -- Exact statistics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
def test_estimated_statistics_are_those_of_all_rows(ndim):
    values, _ = make_data(ndim)
    norm = FreezableBatchNorm1d(4).eval()
    norm.running_mean.fill_(-7)
    with estimate_statistics([norm], Accelerator(cpu=True)):
        outputs = [norm(part) for part in values.split(ROWS)]
    rows = values if ndim == 2 else values.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(norm.running_mean, rows.mean(0))
    torch.testing.assert_close(norm.running_var, rows.var(0))
    # Within, each batch is normalised by itself, as in training.
    assert all(output.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-4 for output in outputs)
    assert (norm.training, norm.observer, int(norm.num_batches_tracked)) == (False, None, 0)


@pytest.mark.parametrize("method", ["full", "linear", "gaprompt", "idpt"])
def test_statistics_are_exact_at_each_evaluation_and_in_the_file(method, finetune, tmp_path):
    """All training clouds of the last epoch, through the trained model: what its norms see is what they hold."""
    options = {"augmentation": "none", "processor_config": {"sampling": "first"}, "num_train_epochs": 1}
    run = finetune(tmp_path, method=method, exact_batch_norm=10**6, **options)
    run.run()
    norms = trained_batch_norms(run.trainer.model)
    held = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    assert norms
    run.trainer.model.eval()
    with torch.no_grad(), estimate_statistics(norms, run.trainer.accelerator):
        for batch in run.trainer.get_train_dataloader():
            run.trainer.model(points=batch["points"])
    for norm, (mean, variance) in zip(norms, held, strict=True):
        torch.testing.assert_close(norm.running_mean, mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, atol=1e-5, rtol=1e-5)


def test_switched_off_they_are_the_running_ones(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "estimate_statistics", pytest.fail)
    finetune(tmp_path, method="linear", exact_batch_norm=0, num_train_epochs=1).run()
