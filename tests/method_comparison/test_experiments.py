import json

import pytest
from experiments import ADAPTER_NAME, ROOT, find_experiments
from peft import PeftConfig

from point_peft_hf.training import find_method

TASKS = sorted(path.parent for path in ROOT.glob("*/default_training_params.json"))
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc1"]}


@pytest.mark.parametrize("task", TASKS, ids=lambda path: path.name)
def test_what_the_repository_has_can_be_run(task):
    experiments = find_experiments([task])
    names = {experiment.id for experiment in experiments}
    assert set(experiments[0].task.references) <= names
    assert (task / "README.md").is_file()
    assert not [path for path in task.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]
    for experiment in experiments:
        adapter = task / "experiments" / experiment.id / ADAPTER_NAME
        if adapter.is_file():
            # The file says all: nothing depends on what a method has as its defaults here.
            said, used = (
                PeftConfig.from_pretrained(adapter.parent),
                find_method(experiment.method).config(**experiment.config),
            )
            said, used = (json.loads(json.dumps(c.to_dict(), default=sorted)) for c in (said, used))
            assert said == used, experiment.id


def test_the_tasks_have_the_methods_and_settings_that_the_comparison_promises():
    promised = {*("full", "linear", "lora", "bias", "ln_tuning", "deep_prompts", "geometry", "prompt", "point_peft")}
    promised |= {*("stag", "dapt", "pointgst", "idpt", "ppt", "pointlora", "gaprompt")}
    promised |= {*("oft", "c3a", "hira", "shira", "road", "miss", "beft", "delora")}
    for name in ("procedural", "modelnet40", "partial_views", "part_segmentation"):
        experiments = find_experiments([ROOT / name])
        assert {experiment.method for experiment in experiments} >= promised
        few = [e for e in experiments if {"labels_5", "labels_10", "labels_20"} <= set(e.settings)]
        assert len(few) >= 4 or name == "part_segmentation"


def test_folders_of_a_task_a_method_and_one_experiment(make_task, tmp_path):
    experiments = {"lora/two": (LORA, None), "lora/four": (LORA | {"r": 4}, None), "full/default": (None, {})}
    root = make_task(tmp_path / "task", experiments)
    assert [e.id for e in find_experiments([root])] == ["full/default", "lora/four", "lora/two"]
    assert [e.id for e in find_experiments([root / "experiments" / "lora"])] == ["lora/four", "lora/two"]
    (one,) = find_experiments([root / "experiments" / "lora" / "two", root / "experiments" / "lora" / "two"])
    assert one.config == {"r": 2, "lora_alpha": 4, "target_modules": ["fc1"]}
    assert one.result_path == root / "results" / "lora--two.json"


def test_an_experiment_replaces_the_setting_which_replaces_the_task(make_task, tmp_path):
    params = {"weight_decay": 0.1, "settings": ["all_labels", "long"]}
    settings = {"all_labels": {}, "long": {"num_train_epochs": 30, "weight_decay": 0.2}}
    root = make_task(tmp_path / "task", {"full/default": (None, params)}, settings=settings, weight_decay=0.3)
    (experiment,) = find_experiments([root])
    short, long = (experiment.arguments_in(name) for name in experiment.settings)
    assert (short["num_train_epochs"], long["num_train_epochs"]) == (1, 30)
    assert short["weight_decay"] == long["weight_decay"] == 0.1
    assert short["config"] == {}


def test_runs_and_the_choice_of_the_rate(make_task, tmp_path):
    root = make_task(tmp_path / "task", {"full/default": (None, {"settings": ["all_labels", "labels_2"]})})
    (experiment,) = find_experiments([root])
    assert [tuple(run) for run in experiment.search_runs()] == [
        ("all_labels", "search", 9, 1e-3),
        ("all_labels", "search", 9, 4e-3),
    ]
    assert [run[:3] for run in experiment.final_runs(1e-3)] == [
        (setting, "final", seed) for seed in (0, 1) for setting in ("all_labels", "labels_2")
    ]
    assert experiment.chosen_rate({1e-3: [0.5], 4e-3: [0.6]}) == 4e-3
    # At equal scores the lower rate, whatever the order of a sum.
    assert experiment.chosen_rate({4e-3: [0.1, 0.2, 0.3], 1e-3: [0.3, 0.2, 0.1]}) == 1e-3
    assert experiment.chosen_rate({4e-3: [0.9]}) is None


def test_without_a_search_the_rate_is_that_of_the_experiment_or_the_method(make_task, tmp_path):
    experiments = {"full/fixed": (None, {"learning_rate": 0.5}), "linear/default": (None, {})}
    root = make_task(tmp_path / "task", experiments, learning_rates=None, search_seeds=None)
    assert [e.chosen_rate({}) for e in find_experiments([root])] == [0.5, find_method("linear").learning_rate]


@pytest.mark.parametrize(
    ("changes", "experiment", "message"),
    [
        ({"seeds": [0, 0]}, (None, {}), r"`seeds` in .* must be different whole numbers, got \[0, 0\]"),
        ({"seeds": [9]}, (None, {}), r"seeds \[9\] in .* choose learning rates and count in the tables"),
        ({"search_seeds": None}, (None, {}), "needs both `learning_rates` and `search_seeds`"),
        ({"compare_on": "train"}, (None, {}), "must be test or validation, got 'train'"),
        ({"settings": {"all": {"labels_per_class": 3}}}, (None, {}), "first setting in .* has no validation clouds"),
        ({"settings": {"all": 3}}, (None, {}), "must have a name and arguments for each setting"),
        ({"method": "lora"}, (None, {}), "has method, which every run sets itself"),
        ({"epochs": 3}, (None, {}), r"setting 'all_labels': There are no arguments \['epochs'\]"),
        ({"num_train_epochs": 0}, (None, {}), "setting 'all_labels': .*must be above 0, got 0"),
        ({}, (None, {"seed": 3}), "has seed, which every run sets itself"),
        ({}, (None, {"references": []}), "has references, which belongs in default_training_params.json"),
        ({}, (None, {"learning_rates": [1e-3]}), "gives 1 `learning_rates`, the task 2"),
        ({}, (None, {"learning_rate": 1e-3}), "gives 0 `learning_rates`, the task 2"),
        ({}, (None, {"settings": ["many"]}), r"must be some of \['all_labels', 'labels_2'\], got \['many'\]"),
        ({}, (LORA, {}), "must have the `peft_type` of the method 'full', None"),
        ({}, (None, [1]), "must hold a JSON object with names and values, got list"),
    ],
)
def test_what_is_wrong_is_said(changes, experiment, message, make_task, tmp_path):
    root = make_task(tmp_path / "task", {"full/default": experiment}, **changes)
    with pytest.raises(ValueError, match=message):
        find_experiments([root])


def test_other_folders_and_files_are_refused(make_task, tmp_path):
    with pytest.raises(ValueError, match="is not part of a task"):
        find_experiments([tmp_path])
    root = make_task(tmp_path / "task", {"lora/a": ({"peft_type": "OFT"}, None), "lora/b": ({"rank": 3}, None)})
    with pytest.raises(ValueError, match="holds no experiment"):
        find_experiments([root / "results"])
    with pytest.raises(ValueError, match="must have the `peft_type` of the method 'lora', 'LORA'"):
        find_experiments([root / "experiments" / "lora" / "a"])
    (root / "experiments" / "lora" / "b" / ADAPTER_NAME).write_text(json.dumps({"peft_type": "LORA", "rank": 3}))
    with pytest.raises(ValueError, match=r"LoraConfig has no fields \['rank'\]"):
        find_experiments([root / "experiments" / "lora" / "b"])
    (root / "experiments" / "lora" / "b" / ADAPTER_NAME).write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json is not JSON"):
        find_experiments([root / "experiments" / "lora" / "b"])
