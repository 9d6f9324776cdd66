"""Building a bank: the same however it is done, to be continued, and refused where it cannot be right."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

import point_peft_hf as pp
from point_peft_hf.data import PointCloudCollator, get_augmentation
from point_peft_hf.tuners.point_prior_prompt import bank as bank_module
from point_peft_hf.tuners.point_prior_prompt import build

NUM_CLOUDS = 21
PARTS = ("features", "labels", "sample_ids")
# Features of another batch size differ by the rounding of matrix products.
TOLERANCE = 1e-6


class Clouds(torch.utils.data.Dataset):
    """Clouds whose numbers are not their positions."""

    def __init__(self, size=NUM_CLOUDS, seed=0):
        self.points = torch.randn(size, 128, 3, generator=torch.Generator().manual_seed(seed))
        self.asked = []

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        self.asked.append(index)
        return {"points": self.points[index], "labels": index % 5, "sample_ids": 100 - index}


def loader(dataset=None, batch_size=4, **options):
    return DataLoader(dataset or Clouds(), batch_size, collate_fn=PointCloudCollator(), **options)


def build_bank(model, batches, **options):
    return pp.build_point_prior_bank(model, batches, progress=False, **options)


def assert_same(got, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(got.features, expected.features, rtol=0, atol=tolerance)
    assert torch.equal(got.labels, expected.labels)
    assert torch.equal(got.sample_ids, expected.sample_ids)


@pytest.fixture
def model(make_backbone):
    return make_backbone()


@pytest.fixture
def expected(model):
    return build_bank(model, loader())


@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_clouds_are_in_the_order_of_the_data_set(model, expected, batch_size, options):
    assert expected.sample_ids.tolist() == [100 - i for i in range(NUM_CLOUDS)]
    torch.testing.assert_close(expected.features.norm(dim=-1), torch.ones(NUM_CLOUDS))
    assert_same(build_bank(model, loader(batch_size=batch_size, **options)), expected)


class Stream(IterableDataset):
    def __iter__(self):
        return (Clouds()[index] for index in range(NUM_CLOUDS))


def test_batches_of_any_kind(model, expected):
    batches = list(loader())
    for source in (batches, iter(batches), loader(Stream())):
        assert_same(build_bank(model, source), expected, tolerance=0)
    # A sampler that is neither random nor sequential says which clouds there are.
    assert build_bank(model, loader(sampler=SubsetRandomSampler([8, 3, 20]))).sample_ids.tolist() == [97, 92, 80]


def test_augmented_versions_are_averaged(model, expected):
    augment = get_augmentation("scale_translate")
    once, three = (build_bank(model, loader(), augment=augment, num_passes=n) for n in (1, 3))
    assert not torch.allclose(once.features, expected.features, atol=1e-3)
    torch.testing.assert_close(three.features.norm(dim=-1), torch.ones(NUM_CLOUDS))
    torch.manual_seed(99)
    again = build_bank(model, loader(batch_size=7), augment=augment, num_passes=3)
    assert_same(again, three)
    assert not torch.allclose(build_bank(model, loader(), augment=augment, seed=1).features, once.features, atol=1e-3)
    # By hand, for versions that are no matter of chance.
    turned = build_bank(model, loader(), augment=lambda points: points.flip(-1))
    assert_same(
        build_bank(model, [{"points": Clouds().points.flip(-1)}]),
        pp.PointPriorBank(turned.features, torch.full((NUM_CLOUDS,), -1), torch.full((NUM_CLOUDS,), -1)),
    )


def test_augmentation_leaves_the_random_numbers_of_the_caller_alone(model):
    batches = list(loader())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_bank(model, batches, augment=get_augmentation("scale_translate"))
    assert torch.equal(torch.rand(3), expected)


def test_an_adapter_gets_the_bank_and_the_backbone_is_remembered(make_backbone, points, logits, tmp_path):
    model = get_peft_model(make_backbone(), pp.PointPriorPromptConfig(num_prompt_tokens=4, init_weights=False))
    bank = build_bank(model, loader())
    assert bank.backbone == build_bank(make_backbone(), loader()).backbone != {}
    assert model.peft_config["default"].bank_size == NUM_CLOUDS
    predicted = logits(model, points)

    bank.save(tmp_path / "bank.safetensors")
    loaded = pp.PointPriorBank.load(tmp_path / "bank.safetensors")
    assert (loaded.backbone, loaded.query) == (bank.backbone, "tokens")
    assert_same(loaded, bank, tolerance=0)
    pp.set_point_prior_bank(model, loaded)
    assert torch.equal(logits(model, points), predicted)

    other = make_backbone(initializer_range=0.1)
    with pytest.raises(ValueError, match="was built with a backbone of other weights: their float32 fingerprint"):
        pp.set_point_prior_bank(get_peft_model(other, pp.PointPriorPromptConfig(num_prompt_tokens=4)), loaded)
    # So is a file of an adapter, by what it remembers itself.
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="made for a backbone .*with other weights"):
        PeftModel.from_pretrained(make_backbone(initializer_range=0.1), tmp_path)


def test_a_backbone_that_changed_since_an_adapter_was_attached(make_backbone):
    backbone = make_backbone()
    model = get_peft_model(backbone, pp.PointPriorPromptConfig(num_prompt_tokens=4))
    backbone.point_mae.layernorm.weight.data += 0.1
    with pytest.raises(ValueError, match="The adapter was built with a backbone of other weights"):
        build_bank(model, loader())


def test_files_that_are_no_bank(tmp_path):
    save_file({"features": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    about = {bank_module._FORMAT: json.dumps({"of_a_later_version": 1})}
    tensors = {"features": torch.zeros(1, 2), "labels": torch.zeros(1).long(), "sample_ids": torch.zeros(1).long()}
    save_file(tensors, tmp_path / "later.safetensors", metadata=about)
    for name in ("other", "broken", "later"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is not the file of a point-prior bank"):
            pp.PointPriorBank.load(tmp_path / f"{name}.safetensors")


def test_features_that_are_not_finite(model):
    model.point_mae.layernorm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"The clouds \[0, 1, 2, 3\] give features that are not finite"):
        build_bank(model, loader(), query="encoder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_passes": 0}, "`num_passes` must be a number of at least 1, got 0"),
        ({"num_passes": 2}, "`num_passes`=2 would give the same features"),
        ({"query": "head"}, "`query` must be 'encoder' or 'tokens', got 'head'"),
        ({"adapter_name": "mine"}, "Adapter 'mine' of this model uses no bank"),
    ],
)
def test_options_that_do_not_do(model, options, message):
    with pytest.raises(ValueError, match=message):
        build_bank(model, loader(), **options)


def test_labels_of_another_length(model):
    with pytest.raises(ValueError, match="2 clouds but 3 labels"):
        build_bank(model, [{"points": torch.randn(2, 128, 3), "labels": torch.zeros(3)}])


# -- Interrupted ------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(model, tmp_path, monkeypatch):
    """The file of a call that got through three of six batches, and was killed in the fifth."""
    monkeypatch.setattr(build, "BATCHES_BETWEEN_FILES", 3)
    extract, calls = build.query_features(model, "tokens"), []

    def until_killed(points):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return extract(points)

    with monkeypatch.context() as patch:
        patch.setattr(build, "query_features", lambda model, query: until_killed)
        with pytest.raises(KeyboardInterrupt):
            build_bank(model, loader(), checkpoint=tmp_path / "bank")
    assert [path.name for path in tmp_path.iterdir()] == ["bank.0"]
    return tmp_path / "bank"


@pytest.mark.parametrize("batch_size", [4, 5])
def test_a_bank_is_continued(model, expected, interrupted, batch_size):
    dataset = Clouds()
    bank = build_bank(model, loader(dataset, batch_size), checkpoint=interrupted)
    assert_same(bank, expected, tolerance=0 if batch_size == 4 else TOLERANCE)
    # Beside the first and the last, by which the data set is known, only the clouds that were missing.
    assert sorted(set(dataset.asked)) == [0, *range(12 if batch_size == 4 else 10, NUM_CLOUDS)]
    assert not list(interrupted.parent.iterdir())


def test_batches_in_a_list_are_continued_as_well(model, expected, interrupted):
    batches = list(loader())
    with pytest.raises(ValueError, match="its data is .*'num_clouds': 21.* but this one has .*None"):
        build_bank(model, batches, checkpoint=interrupted)
    with pytest.raises(ValueError, match="batches that can be gone through again, got an iterator"):
        build_bank(model, iter(batches), checkpoint=interrupted.with_name("other"))
    assert_same(build_bank(model, batches, checkpoint=interrupted.with_name("other")), expected, tolerance=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone", "its backbone is"),
        ("data", "its data is"),
        ("query", "its query is 'tokens', but this one has 'encoder'"),
        ("seed", "its seed is 0, but this one has 1"),
    ],
)
def test_the_bank_of_something_else_is_not_continued(model, make_backbone, interrupted, change, message):
    model = make_backbone(initializer_range=0.1) if change == "backbone" else model
    batches = loader(Clouds(seed=1)) if change == "data" else loader()
    options = {"query": "encoder"} if change == "query" else {"seed": 1} if change == "seed" else {}
    with pytest.raises(ValueError, match=rf"bank\.0 is the unfinished bank of another call: {message}"):
        build_bank(model, batches, checkpoint=interrupted, **options)


def test_a_file_that_is_no_unfinished_bank(model, tmp_path):
    (tmp_path / "bank.0").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bank\.0 is not the unfinished bank"):
        build_bank(model, loader(), checkpoint=tmp_path / "bank")


# -- Several processes ------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("bank_on_two_processes.py")


def test_the_same_bank_from_one_process_or_two(model, expected, tmp_path):
    """Also an entry of each process' clouds in a bank that is updated in training, on each process."""
    augment = get_augmentation("scale_translate")
    augmented = build_bank(model, loader(), augment=augment, num_passes=2)
    model.save_pretrained(tmp_path / "backbone")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), port, str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    for rank in range(2):
        for name, tolerance in (
            ("batch4", 0),
            ("prepared", 0),
            ("list", 0),
            ("batch1", TOLERANCE),
            ("batch64", TOLERANCE),
        ):
            assert_same(pp.PointPriorBank.load(tmp_path / f"{name}.{rank}"), expected, tolerance)
        assert_same(pp.PointPriorBank.load(tmp_path / f"augmented.{rank}"), augmented, tolerance=0)
    ema, queue = ([torch.load(tmp_path / f"{update}.{rank}.pt") for rank in range(2)] for update in ("ema", "queue"))
    expected = build_bank(model, loader(), query="encoder")  # which these two hold
    for first, second in (ema, queue):
        assert all(torch.equal(first[name], second[name]) for name in first)
    moved = (ema[0]["features"] != expected.features).any(dim=1).nonzero().flatten().tolist()
    assert moved == [0, 1, 2, 3, 4]
    assert queue[0]["sample_ids"].tolist()[:6] == [100, 99, 98, 97, 96, 95]
    changed = (queue[0]["features"] != expected.features).any(dim=1).nonzero().flatten().tolist()
    assert changed == [0, 1, 2, 3, 4]


def test_a_prepared_loader_of_one_process(model, expected):
    accelerator = Accelerator(cpu=True)
    batches = accelerator.prepare(loader(shuffle=True))
    assert_same(build_bank(model, batches, accelerator=accelerator), expected, tolerance=TOLERANCE)
