import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import run
import torch
from experiments import find_experiments
from measures import measure
from records import Result
from report import summarize
from training import load_clouds, train_once

from point_peft_hf import AutoModelForPointCloudClassification, locks
from point_peft_hf.training import TrainingDiverged, TrainingStopped

PROMPTS = {"peft_type": "POINT_PRIOR_PROMPT", "use_bank": False, "prompt_depth": None}
EXPERIMENTS = {
    "full/default": (None, {"learning_rates": [1e-4, 1e-3]}),
    "deep_prompts/default": (PROMPTS, {"settings": ["all_labels", "labels_2"]}),
}


def silent(line):
    pass


@pytest.fixture(autouse=True, scope="module")
def one_core():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.os, "cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def done(make_task, tmp_path_factory, tiny_backbone):
    """A task whose experiments were run."""
    root = make_task(tmp_path_factory.mktemp("runs") / "tiny", EXPERIMENTS, model=tiny_backbone, corruption_clouds=4)
    run.run_all(find_experiments([root]), report=silent)
    return root


@pytest.fixture
def copied(done, tmp_path):
    return shutil.copytree(done, tmp_path / "tiny")


def results_of(root):
    return {path.name: json.loads(path.read_text()) for path in (root / "results").glob("*.json")}


def test_every_run_is_recorded_once(done):
    results = results_of(done)
    assert set(results) == {"full--default.json", "deep_prompts--default.json"}
    runs = results["deep_prompts--default.json"]["runs"]
    chosen = max(runs[:2], key=lambda record: (record["validation"], -record["learning_rate"]))["learning_rate"]
    assert [(r["setting"], r["stage"], r["seed"]) for r in runs] == [
        *[("all_labels", "search", 9)] * 2,
        *[(setting, "final", seed) for seed in (0, 1) for setting in ("all_labels", "labels_2")],
    ]
    assert [r["learning_rate"] for r in runs] == [1e-3, 4e-3, *[chosen] * 4]
    # The rate was chosen without a look at the test split.
    assert all("test" not in record for record in runs[:2])
    final, few = runs[2], runs[3]
    assert {"score", "clouds", "parameters", "file_bytes", "seconds_per_step", "inference_ms"} <= final.keys()
    assert list(final["test"])[0] == final["score"] == "accuracy"
    assert len(final["corruption"]) == 6
    assert all(len(accuracies) == 5 for accuracies in final["corruption"].values())
    assert (few["clouds"]["train"], few["clouds"]["validation"], few["validation"]) == (6, 0, None)
    assert final["clouds"]["validation"] > 0
    assert not list((done / "unfinished").iterdir())


def test_a_result_has_one_line_a_run_and_no_folder_of_this_machine(done):
    for path in (done / "results").glob("*.json"):
        lines = path.read_text().splitlines()
        assert sum(line.startswith('{"setting"') for line in lines) == len(Result(path).runs)
        assert str(Path.home()) not in path.read_text()
        assert str(done.parent) not in path.read_text()


def test_nothing_is_run_twice(done, monkeypatch):
    before = results_of(done)
    monkeypatch.setattr(run, "execute", lambda job: pytest.fail("was run again"))
    run.run_all(find_experiments([done]), report=silent)
    assert results_of(done) == before


def test_what_is_missing_is_run(copied, monkeypatch):
    path = copied / "results" / "full--default.json"
    result = Result(path)
    removed = result.runs.pop()
    result.save()
    asked = []
    monkeypatch.setattr(run, "execute", lambda job: asked.append(job.run) or (removed, None))
    run.run_all(find_experiments([copied]), report=silent)
    assert [tuple(each) for each in asked] == [(*(removed[n] for n in ("setting", "stage", "seed", "learning_rate")),)]
    assert Result(path).runs[-1] == removed


def test_other_arguments_are_refused(copied):
    params = copied / "default_training_params.json"
    params.write_text(json.dumps(json.loads(params.read_text()) | {"num_train_epochs": 2}))
    with pytest.raises(ValueError, match=r"made with another num_train_epochs \(1, now 2\). Remove it"):
        run.run_all(find_experiments([copied]), report=silent)


def test_a_backbone_that_was_trained_again_is_refused(copied, tiny_backbone, tmp_path):
    backbone = AutoModelForPointCloudClassification.from_pretrained(tiny_backbone)
    with torch.no_grad():
        next(backbone.base_model.encoder.parameters()).add_(1e-3)
    # The same name in another place: the weights count.
    other = shutil.copytree(tiny_backbone, tmp_path / "other" / Path(tiny_backbone).name)
    backbone.base_model.save_pretrained(other)
    with pytest.raises(ValueError, match="made with another backbone"):
        run.main([str(copied), "--model", str(other)])


def test_data_that_have_changed_are_refused(copied, clouds_folder, tmp_path):
    changed = shutil.copytree(clouds_folder, tmp_path / "elsewhere")
    # The same clouds in another folder are the same.
    assert find_and_run(copied, changed) == results_of(copied)
    np.save(changed / "train" / "ball" / "another.npy", np.random.default_rng(5).normal(size=(150, 3)))
    run._fingerprints.cache_clear()
    with pytest.raises(ValueError, match="made with another data. Remove it"):
        find_and_run(copied, changed)


def find_and_run(root, data):
    run.main([str(root), "--data", str(data)])
    return results_of(root)


def test_two_processes_cannot_write_the_same_results(done, locked_elsewhere, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with locked_elsewhere(done / "results"), pytest.raises(ValueError, match="Another process is writing to"):
        run.run_all(find_experiments([done]))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_keep_the_others_from_it(jobs, make_task, tiny_backbone, tmp_path, monkeypatch):
    root = make_task(tmp_path / "task", EXPERIMENTS, model=tiny_backbone)

    def execute(job):
        if job.run.learning_rate == 1e-3:
            raise TrainingStopped("no space left")
        return {**job.run._asdict(), "validation": 0.5}, {"device": "cpu"}

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(run, "ProcessPoolExecutor", lambda jobs, **options: ThreadPoolExecutor(jobs))
    said = []
    with pytest.raises(TrainingStopped, match="no space left"):
        run.run_all(find_experiments([root]), jobs, said.append)
    assert sum("no space left" in line for line in said) == 2
    assert sorted(r["learning_rate"] for c in results_of(root).values() for r in c["runs"]) == [1e-4, 4e-3]
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"):
        run.run_all([], 0)


def test_a_rate_that_diverges_is_the_worst_one(done, tmp_path, monkeypatch):
    experiment = find_experiments([done / "experiments" / "full"])[0]

    def diverge(arguments, task):
        raise TrainingDiverged("The loss is nan")

    monkeypatch.setattr(run, "train_once", diverge)
    search, final = next(experiment.search_runs()), next(experiment.final_runs(1e-3))
    record, environment = run.execute(run.Job(experiment, search, tmp_path, 1))
    assert (record["validation"], record["diverged"], environment) == (0.0, "The loss is nan", None)
    with pytest.raises(TrainingDiverged):
        run.execute(run.Job(experiment, final, tmp_path, 1))


def test_a_run_is_repeated_from_its_record(done, tiny_backbone, capsys):
    path = str(done / "results" / "deep_prompts--default.json")
    run.main(["--rerun", path, "--seed", "1", "--setting", "labels_2", "--model", tiny_backbone])
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    recorded, again = lines["test"].removeprefix("recorded ").split(", again ")
    assert recorded == again


def test_a_repeated_run_that_differs_says_what_else_does(copied, tiny_backbone):
    path = copied / "results" / "full--default.json"
    result = Result(path)
    result.runs[-1]["test"]["accuracy"] = 0.123
    result.content["environments"][0]["device"] = "abacus"
    result.save()
    with pytest.raises(ValueError, match=r"^test differ. device was abacus, is cpu.$"):
        run.rerun(path, 1, None, {"model": tiny_backbone}, silent)
    with pytest.raises(
        ValueError, match=r"no final run with seed 7 in the setting 'all_labels'. It has seeds \[0, 1\]"
    ):
        run.rerun(path, 7, None, {}, silent)


def test_a_comparison_on_validation_never_sees_the_test_split(make_task, tiny_backbone, tmp_path):
    root = make_task(
        tmp_path / "task",
        {"linear/default": (None, {})},
        model=tiny_backbone,
        compare_on="validation",
        seeds=[0],
        learning_rates=None,
        search_seeds=None,
        references=[],
    )
    run.run_all(find_experiments([root]), report=silent)
    (record,) = Result(root / "results" / "linear--default.json").runs
    assert record["test"] == {}
    assert record["clouds"]["test"] == 0
    (row,) = summarize(find_experiments([root])[0].task)
    assert row.values["validation"].mean == pytest.approx(100 * record["validation"])
    assert "score" not in row.values


def test_few_labels_are_drawn_by_the_seed_from_the_training_clouds(clouds_folder):
    tasks = [load_clouds({"data": clouds_folder, "split_seed": seed}, {"labels_per_class": 2}) for seed in (0, 0, 1)]
    assert all(np.bincount(task.train.labels).tolist() == [2] * 3 for task in tasks)
    assert [(len(task.validation), len(task.test)) for task in tasks] == [(0, 9)] * 3
    chosen = [task.train.sample_ids.tolist() for task in tasks]
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(ValueError, match=r"has 6 training clouds; `labels_per_class` asks for 9"):
        load_clouds({"data": clouds_folder}, {"labels_per_class": 9})


def test_the_last_views_by_number_are_the_validation_split(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for name in ("cup", "plate"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                np.save(tmp_path / split / name / f"view_{index}.npy", rng.normal(size=(50, 3)))
    task = load_clouds({"data": str(tmp_path), "validation_fraction": 0.25}, {"validation_by_order": True}, False)
    names = [Path(name).stem for name in task.validation.names_of(task.validation.sample_ids)]
    # By number: view_9 to view_11, where the order of the alphabet ends with view_9.
    assert sorted(names) == sorted(["view_9", "view_10", "view_11"] * 2)
    assert (len(task.train), len(task.test)) == (18, 0)
    with pytest.raises(ValueError, match="uses all training clouds. Leave out max_train_clouds"):
        load_clouds({"data": str(tmp_path), "max_train_clouds": 5}, {"validation_by_order": True})


def test_published_folds_are_taken_as_they_are(tmp_path):
    clouds = np.random.default_rng(0).normal(size=(6, 9, 6)).astype(np.float32)
    (tmp_path / "2way_2shot").mkdir()
    for fold in (0, 1):
        rows = [(cloud, index % 2) for index, cloud in enumerate(clouds[::-1] if fold else clouds)]
        path = tmp_path / "2way_2shot" / f"{fold}.pkl"
        path.write_bytes(pickle.dumps({"train": rows[:4], "test": rows[4:]}))
    few_shot = {"few_shot": {"way": 2, "shot": 2}}
    task = load_clouds({"data": str(tmp_path), "split_seed": 1}, few_shot)
    assert task.train.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(task.test[1]["points"], clouds[0, :, :3])
    assert len(task.validation) == 0
    with pytest.raises(ValueError, match="has none of the layouts"):
        load_clouds({"data": str(tmp_path), "split_seed": 2}, few_shot)


def test_parts_are_scored_by_instance_miou(tiny_backbone, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(24):
        # Poles have a lower and an upper part, slabs one part.
        points = rng.uniform(-1, 1, size=(150, 3)) * (0.1, 1, 0.1) if index % 2 else rng.normal(size=(150, 3))
        folder = tmp_path / "parts" / ("test" if index < 8 else "train") / ("pole" if index % 2 else "slab")
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / f"{index}.txt", np.column_stack([points, (points[:, 1] > 0) * (index % 2)]))
    arguments = {"task": "segmentation", "augmentation": "segmentation", "data": str(tmp_path / "parts")}
    arguments |= {"method": "linear", "model": tiny_backbone, "num_train_epochs": 1, "num_points": 128}
    clouds = load_clouds(arguments, {})
    record = train_once(arguments | {"output_dir": str(tmp_path / "out")}, clouds)
    assert record["score"] == "instance_miou"
    found = measure(tmp_path / "out" / "linear", clouds, 4, 0, None, tiny_backbone)
    assert found["inference_ms"] > 0
    assert found["kept_memory_mib"] > 0
    assert "corruption" not in found


def test_without_a_validation_split_the_last_epoch_is_taken(tiny_backbone, clouds_folder, tmp_path):
    arguments = {"method": "linear", "model": tiny_backbone, "data": clouds_folder, "num_points": 128}
    arguments |= {"num_train_epochs": 3, "output_dir": str(tmp_path)}
    record = train_once(arguments, load_clouds(arguments, {"labels_per_class": 1}))
    assert record["best_epoch"] == 3
    assert record["validation_accuracy"] is None
    assert "chosen on a validation split" not in (tmp_path / "linear" / "README.md").read_text()
