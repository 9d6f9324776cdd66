import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from point_peft_hf import AutoModelForPointCloudClassification, locks
from point_peft_hf.data import few_shot_fold
from point_peft_hf.studies import (
    FewShot,
    RunBook,
    Study,
    StudyRow,
    draw_report,
    few_shot_task,
    rerun,
    run_study,
    runner,
    study_table,
    summarize,
    write_report,
)
from point_peft_hf.training import (
    ClassificationTask,
    FinetuneArguments,
    Finetuning,
    TrainingStopped,
    load_predictor,
    load_task,
)

STUDY = """
description: Tiny.
arguments: {data: procedural, clouds_per_class: 4, epochs: 1, max_test_clouds: 24, batch_size: 12, num_points: 128}
seeds: [0, 1]
reference: linear
learning_rates: {values: [1.0e-3, 4.0e-3], seeds: [9]}
rows:
  linear: {}
  prompts: {method: deep_prompts, learning_rate_from: linear}
  all: {method: full, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_backbone):
    """A study that was run, its book and the folder of both."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    study = Study.from_yaml(folder / "study.yaml", model=tiny_backbone)
    threads = torch.get_num_threads()
    book, rates = run_study(study, folder / "out", report=lambda line: None)
    yield study, book, rates, folder / "out"
    torch.set_num_threads(threads)


def test_every_run_is_in_the_book_once(done):
    study, book, rates, folder = done
    lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert [(line["row"], line["stage"], line["seed"]) for line in lines] == [
        *[("linear", "search", 9)] * 2,
        *[(row, "final", seed) for seed in (0, 1) for row in ("linear", "prompts", "all")],
    ]
    # The rate was chosen without a look at the test split.
    assert [line["test"] for line in lines[:2]] == [{}, {}]
    chosen = max(lines[:2], key=lambda line: (line["validation_accuracy"], -line["learning_rate"]))
    rate = chosen["learning_rate"]
    assert rates == {"linear": rate, "prompts": rate, "all": 1e-3}
    # What a later version may have other defaults for is said.
    assert all(line["arguments"]["warmup_ratio"] == 0.3 for line in lines)
    assert all(line["arguments"]["learning_rate"] == line["learning_rate"] for line in lines)
    assert {path.parent.name + "/" + path.name for path in folder.glob("adapters/*/*")} == {
        f"{row}/seed-{seed}" for row in study.rows for seed in study.seeds
    }
    assert not list((folder / "unfinished").iterdir())


def test_what_was_trained_is_kept(done):
    folder = done[3] / "adapters"
    assert load_predictor(str(folder / "prompts" / "seed-1")).model.active_adapters == ["default"]
    assert load_predictor(str(folder / "all" / "seed-0")).model.num_parameters() > 0


def test_nothing_is_run_twice(done, monkeypatch):
    study, book, _, folder = done
    monkeypatch.setattr(runner, "_execute", lambda *args: pytest.fail("was run again"))
    again, _ = run_study(study, folder, report=lambda line: None)
    assert again.records == book.records


def test_a_backbone_that_was_trained_anew_is_refused(done, tiny_backbone, tmp_path):
    folder = done[3]
    shutil.copytree(folder, tmp_path / "out")
    backbone = AutoModelForPointCloudClassification.from_pretrained(tiny_backbone)
    with torch.no_grad():
        next(backbone.base_model.encoder.parameters()).add_(1e-3)
    # The same name, elsewhere: what counts are the weights.
    other = tmp_path / Path(tiny_backbone).name
    shutil.copytree(tiny_backbone, other)
    backbone.base_model.save_pretrained(other)
    changed = Study.from_yaml(folder.parent / "study.yaml", model=str(other))
    with pytest.raises(ValueError, match="on other weights of .* than there are now"):
        run_study(changed, tmp_path / "out", report=lambda line: None)


def test_data_that_have_changed_are_refused(tiny_backbone, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / "scans" / ("train", "test")[index % 4 == 3] / ("ball", "plate")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", rng.normal(size=(150, 3)))
    (tmp_path / "study.yaml").write_text(
        "arguments: {epochs: 1, batch_size: 8, num_points: 128}\nrows: {linear: {}}\n"
    )
    study = Study.from_yaml(tmp_path / "study.yaml", model=tiny_backbone, data=str(tmp_path / "scans"))
    run_study(study, tmp_path / "out", report=lambda line: None)
    run_study(study, tmp_path / "out", report=pytest.fail)
    np.save(tmp_path / "scans" / "train" / "ball" / "another.npy", rng.normal(size=(150, 3)))
    with pytest.raises(
        ValueError, match=r"has a run of 'linear' \(seed 0\) on other clouds in .*scans than there are now"
    ):
        run_study(study, tmp_path / "out", report=lambda line: None)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_keep_the_others_from_it(done, jobs, tmp_path, monkeypatch):
    study = done[0]

    def execute(run, *args, **kwargs):
        if run.stage == "search" and run.arguments["learning_rate"] == 4e-3:
            raise TrainingStopped("no space left")
        return {**done[1].records[run.key], "key": run.key}

    monkeypatch.setattr(runner, "_execute", execute)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda jobs, **options: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(runner, "refuse_other_inputs", lambda *args: None)
    study = replace(study, learning_rates=[4e-3, 1e-3])
    with pytest.raises(TrainingStopped, match="no space left"):
        run_study(study, tmp_path, jobs=jobs, report=lambda line: None)
    (record,) = RunBook(tmp_path / "runs.jsonl").records.values()
    assert record["learning_rate"] == 1e-3
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        run_study(study, tmp_path, jobs=0)


def test_a_rate_that_diverges_is_the_worst_one(tiny_backbone, tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(STUDY)
    study = Study.from_yaml(tmp_path / "study.yaml", model=tiny_backbone).only(["linear"])
    study = replace(study, seeds=[0])
    count = Finetuning._check_and_count

    def explode(self, outputs, batch):
        if self.args.learning_rate == 4e-3:
            outputs.loss = outputs.loss * float("nan")
        return count(self, outputs, batch)

    monkeypatch.setattr(Finetuning, "_check_and_count", explode)
    said = []
    book, rates = run_study(study, tmp_path / "out", report=said.append)
    assert rates == {"linear": 1e-3}
    assert "linear, search, seed 9, learning rate 0.004: diverged" in said[1]
    diverged = book.of_stage("search")[1]
    assert "The loss is nan" in diverged["diverged"]
    assert diverged["validation_accuracy"] == 0
    assert not list((tmp_path / "out" / "unfinished").iterdir())
    # Where no other can be taken for it, it is an error.
    row = replace(study.rows["linear"], arguments=study.rows["linear"].arguments | {"learning_rate": 4e-3})
    with pytest.raises(TrainingStopped, match="The loss is nan"):
        run_study(replace(study, rows={"linear": row}, learning_rates=[]), tmp_path / "out", report=lambda line: None)


def test_a_study_that_runs_already_is_refused(done, locked_elsewhere, monkeypatch):
    study, *_, folder = done
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with locked_elsewhere(folder), pytest.raises(ValueError, match="Another process is writing to"):
        run_study(study, folder)


def test_a_difference_to_another_row_says_so(done):
    study, book, rates, _ = done
    rows = {**study.rows, "all": replace(study.rows["all"], reference="prompts")}
    table = study_table(summarize(replace(study, rows=rows), book, rates))
    assert "| difference " in table
    assert "difference to" not in table
    assert " to prompts |" in table.splitlines()[-1]
    assert "difference to linear" in study_table(summarize(study, book, rates))


def test_a_run_can_be_done_again_from_its_record(done):
    record = done[1].of_stage("final")[-1]
    again = rerun(json.loads(json.dumps(record)))
    assert again["test"] == record["test"]
    assert [row["loss"] for row in again["history"]] == [row["loss"] for row in record["history"]]


def test_the_report(done):
    study, book, rates, folder = done
    rows = summarize(study, book, rates)
    table = write_report(study, rows, folder)
    tests = {(r["row"], r["seed"]): r["test"]["accuracy"] for r in book.of_stage("final")}
    mean = (tests["prompts", 0] + tests["prompts", 1]) / 2
    assert rows[1].test.mean == pytest.approx(mean)
    assert rows[1].difference.mean == pytest.approx(mean - (tests["linear", 0] + tests["linear", 1]) / 2)
    assert f"| {100 * mean:.1f} ± " in table
    searched = {r["learning_rate"]: r["validation_accuracy"] for r in book.of_stage("search")}
    assert [row.tried for row in rows] == [searched, searched, {}]
    assert (folder / "table.md").read_text() == f"Tiny.\n\n{table}\n"
    assert json.loads((folder / "summary.json").read_text())["rows"][1]["trainable"] == rows[1].trainable


def test_the_pictures(done, tmp_path):
    study, book, rates, _ = done
    files = draw_report(study, book, rates, tmp_path)
    assert [file.name for file in files] == ["scores.png", "parameters.png", "differences.png", "learning_curves.png"]
    assert all(file.stat().st_size > 5000 for file in files)


def test_without_matplotlib_there_are_none(done, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert draw_report(*done[:3], tmp_path) == []


def test_what_a_search_was_before_the_study_was_changed_does_not_count(done):
    study, book, _, _ = done
    assert {name: len(scores) for name, scores in runner.validation_by_rate(study, book).items()} == {"linear": 2}
    longer = Study(**{**vars(study), "rows": {"linear": StudyRow("linear", {"method": "linear", "epochs": 3})}})
    assert runner.validation_by_rate(longer, book) == {}


def test_a_study_that_compares_on_validation_leaves_the_test_split_alone(done, tiny_backbone, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY + "compare_on: validation\n")
    study = Study.from_yaml(tmp_path / "study.yaml", model=tiny_backbone)
    book, rates = run_study(study, tmp_path / "out", report=lambda line: None)
    assert all(record["test"] == {} for record in book.records.values())
    assert not (tmp_path / "out" / "adapters").exists()
    rows = summarize(study, book, rates)
    # The same trainings as with a look at the test split.
    assert [row.validation for row in rows] == [row.validation for row in summarize(done[0], done[1], done[2])]
    assert rows[1].difference.mean == pytest.approx(rows[1].validation.mean - rows[0].validation.mean)
    table = write_report(study, rows, tmp_path)
    assert "| validation accuracy |" in table
    assert "test" not in table
    assert rerun(book.of_stage("validation")[0])["test"] == {}


@pytest.fixture
def parts_folder(tmp_path):
    """Poles (lower, upper) and slabs (one part): 12 of each to train on, 4 to test."""
    generator = np.random.default_rng(0)
    for index in range(32):
        points = (
            generator.uniform(-1, 1, size=(150, 3)) * (0.1, 1, 0.1) if index % 2 else generator.normal(size=(150, 3))
        )
        parts = (points[:, 1] > 0) * (index % 2)
        folder = tmp_path / "parts" / ("test" if index < 8 else "train") / ("pole" if index % 2 else "slab")
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / f"{index}.txt", np.column_stack([points, parts]))
    return str(tmp_path / "parts")


def test_a_study_of_parts(parts_folder, tiny_backbone, tmp_path):
    (tmp_path / "study.yaml").write_text(
        "arguments: {task: segmentation, augmentation: segmentation, epochs: 1, batch_size: 8, num_points: 128}\n"
        "reference: full\n"
        "learning_rates: {values: [1.0e-3], seeds: [9]}\n"
        "rows: {full: {}, linear: {}}\n"
    )
    study, said = Study.from_yaml(tmp_path / "study.yaml", model=tiny_backbone, data=parts_folder), []
    book, rates = run_study(study, tmp_path / "out", report=said.append)
    record = book.of_stage("final")[0]
    assert record["score"] == "instance_miou"
    score = f"validation {100 * record['validation_instance_miou']:.1f} %"
    assert f"full, final, seed 0, learning rate 0.001: {score}, test " in " ".join(said)
    rows = summarize(study, book, rates)
    assert (rows[0].test.mean, rows[0].test_by_class.mean) == (
        record["test"]["instance_miou"],
        record["test"]["category_miou"],
    )
    assert "| validation | test mIoU | category mIoU | difference to full |" in write_report(study, rows, tmp_path)


def test_without_a_validation_split_the_last_epoch_is_taken(tiny_backbone, tmp_path):
    shapes = load_task(num_points=128, clouds_per_class=6, max_test_clouds=24)
    folds = few_shot_fold(shapes.train, way=3, shot=2, query=1, fold=0)
    task = ClassificationTask(
        list(folds["train"].class_names), folds["train"], folds["train"].select([]), folds["test"]
    )
    arguments = FinetuneArguments(method="linear", model=tiny_backbone, output_dir=str(tmp_path), epochs=3)
    record = Finetuning(arguments, task, report=lambda line: None).run()
    assert record["best_epoch"] == 3
    assert record["validation_accuracy"] is None
    assert "validation_accuracy" not in record["history"][0]
    assert 0 <= record["test"]["accuracy"] <= 1
    assert "chosen on a validation split" not in (tmp_path / "linear" / "README.md").read_text()


def test_published_folds_are_taken_as_they_are(tmp_path):
    clouds = np.random.default_rng(0).normal(size=(6, 9, 6)).astype(np.float32)
    (tmp_path / "2way_2shot").mkdir()
    for fold in (0, 1):
        rows = [(cloud, index % 2) for index, cloud in enumerate(clouds[::-1] if fold else clouds)]
        path = tmp_path / "2way_2shot" / f"{fold}.pkl"
        path.write_bytes(pickle.dumps({"train": rows[:4], "test": rows[4:]}))
    task = few_shot_task(str(tmp_path), FewShot(way=2, shot=2), fold=1)
    assert task.train.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(task.test[1]["points"], clouds[0, :, :3])
    assert len(task.validation) == 0
    with pytest.raises(ValueError, match="has none of the layouts"):
        few_shot_task(str(tmp_path), FewShot(way=2, shot=2), fold=2)
