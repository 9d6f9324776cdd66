from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from point_peft_hf.studies import FewShot, Study
from point_peft_hf.training import METHODS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONTENT = {
    "arguments": {"epochs": 2, "clouds_per_class": 5},
    "seeds": [0, 1],
    "reference": "full",
    "learning_rates": {"values": [1e-3, 4e-3], "seeds": [100, 101]},
    "rows": {
        "full": None,
        "narrow": {"method": "point_peft", "config": {"bottleneck_size": 4}},
        "fixed": {"method": "linear", "learning_rate": 2e-3},
        "follower": {"method": "point_peft", "learning_rate_from": "narrow"},
    },
}


def follows(name):
    return {"learning_rate_from": name}


def study(tmp_path, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(CONTENT | changes, sort_keys=False))
    return Study.from_yaml(path)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_examples_can_be_run(path, monkeypatch):
    # As for the scripts beside them; one study has a type of its own there.
    monkeypatch.syspath_prepend(EXAMPLES)
    plan = Study.from_yaml(path)
    assert list(plan.final_runs(dict.fromkeys(plan.rows, 1e-3)))


def test_a_study_of_all_kinds_of_rows(tmp_path):
    plan = study(tmp_path)
    searched = [(run.row, run.arguments["learning_rate"], run.seed) for run in plan.search_runs()]
    values, seeds = (1e-3, 4e-3), (100, 101)
    assert searched == [(row, rate, seed) for row in ("full", "narrow") for rate in values for seed in seeds]
    rates = plan.chosen_rates(
        {"full": {1e-3: [0.5, 0.5], 4e-3: [0.4, 0.5]}, "narrow": {4e-3: [0.25, 0.75], 1e-3: [0.5, 0.5]}}
    )
    # Equal means: the lower rate.
    assert rates == {"full": 1e-3, "narrow": 1e-3, "fixed": 2e-3, "follower": 1e-3}
    finals = list(plan.final_runs(rates))
    assert [(run.row, run.seed) for run in finals] == [(row, seed) for seed in (0, 1) for row in CONTENT["rows"]]
    assert finals[1].arguments == {
        "method": "point_peft",
        "epochs": 2,
        "clouds_per_class": 5,
        "config": {"bottleneck_size": 4},
        "learning_rate": 1e-3,
        "warmup_ratio": 0.3,
        "data_seed": 0,
    }


def test_keys_tell_runs_apart_and_stay(tmp_path):
    rates = dict.fromkeys(CONTENT["rows"], 1e-3)
    first, again = ([run.key for run in study(tmp_path).final_runs(rates)] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
    longer = study(tmp_path, arguments={"epochs": 3, "clouds_per_class": 5})
    assert not set(first) & {run.key for run in longer.final_runs(rates)}


def test_keys_do_not_depend_on_where_data_and_backbone_are(tmp_path):
    def keys(**overrides):
        plan = Study.from_yaml(tmp_path / "study.yaml", **overrides)
        return [run.key for run in plan.search_runs()]

    study(tmp_path)
    assert keys(data="here/clouds", model="a/backbone") == keys(data="/there/clouds", model="backbone/")
    assert not set(keys(data="here/clouds")) & set(keys(data="here/others"))


def test_rates_of_a_row_are_tried_instead_of_those_of_the_study(tmp_path):
    plan = study(tmp_path, rows={"full": {"learning_rates": [5e-4, 1e-3]}, "linear": None})
    searched = {
        row: {run.arguments["learning_rate"] for run in plan.search_runs() if run.row == row} for row in plan.rows
    }
    assert searched == {"full": {5e-4, 1e-3}, "linear": {1e-3, 4e-3}}


def test_references(tmp_path):
    rows = {"full": None, "linear": None, "other full": {"method": "full"}, "lora": {"reference": "other full"}}
    plan = study(tmp_path, rows=rows)
    assert [plan.reference_of(name) for name in rows] == [None, "full", "full", "other full"]
    plan = plan.compared_to("linear")
    assert [plan.reference_of(name) for name in rows] == ["linear", None, "linear", "linear"]
    with pytest.raises(ValueError, match="no row 'best'"):
        plan.compared_to("best")


def test_a_study_on_validation_has_runs_of_its_own(tmp_path):
    rates = dict.fromkeys(CONTENT["rows"], 1e-3)
    keys = {run.key for run in study(tmp_path).final_runs(rates)}
    runs = list(study(tmp_path, compare_on="validation").final_runs(rates))
    assert {run.stage for run in runs} == {"validation"}
    assert not keys & {run.key for run in runs}


def test_overrides(tmp_path):
    study(tmp_path)
    plan = Study.from_yaml(tmp_path / "study.yaml", data="clouds")
    assert {run.arguments["data"] for run in plan.search_runs()} == {"clouds"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"few_shot": {"way": 5, "shot": 10}}, "no validation split to choose by"),
        ({"compare_on": "train"}, "must be test or validation, got 'train'"),
        (
            {"compare_on": "validation", "few_shot": {"way": 5, "shot": 10}, "learning_rates": None},
            "a few-shot fold has no validation split",
        ),
        ({"rows": {"full": {"learning_rates": [1e-3, 2e-3, 3e-3]}}}, "has 3 `learning_rates` and the study 2"),
        ({"rows": {"full": {"learning_rates": [1e-3, 2e-3], "learning_rate": 1e-3}}}, "and one that is fixed"),
        ({"rows": {"full": {"reference": "best"}}}, "reference of full .* is 'best'"),
        ({"rows": {}}, "needs the key `rows`"),
        ({"seed": [0]}, r"unknown keys \['seed'\]"),
        ({"reference": "best"}, "reference .* is 'best'"),
        ({"seeds": [100]}, r"seeds \[100\]"),
        ({"learning_rates": {"values": [1.0]}}, r"needs the keys \['seeds', 'values'\], got \['values'\]"),
        ({"rows": {"full": {"seed": 3}}}, "set itself|sets itself"),
        ({"rows": {"full": {"epoch": 3}}}, r"unknown arguments \['epoch'\]"),
        ({"rows": {"best": None}}, "has the method 'best'. There is no method 'best'"),
        ({"rows": {"a": {"method": "not_here:Config"}}}, "row 'a' .* has the method .* no module 'not_here'"),
        (
            {"rows": {"full": None, "linear": {"config": {"use_propagation": False}}}},
            r"row 'linear' in .*: PointPeftConfig has no fields \['use_propagation'\]",
        ),
        ({"rows": {"full": {"config": {"r": 3}}}}, r"row 'full' in .* no options, got \['r'\]"),
        ({"rows": {"full": {"epochs": 0}}}, "--epochs must be at least 1, got 0"),
        ({"rows": {"full": {"learning_rate_from": "half"}}}, "is 'half'"),
        ({"rows": {"full": None, "lora": follows("full"), "linear": follows("lora")}}, "which has none"),
        (
            {"rows": {"full": None, "lora": {**follows("full"), "learning_rate": 1e-3}}},
            "and another by `learning_rate_from`",
        ),
        ({"rows": {"full": {"config": 3}}}, "`config` of the row 'full' of .* must have names and values, got 3"),
        ({"rows": {"full": {"epochs": "ten"}}}, "The row 'full' in .* has a value of another type"),
        ({"arguments": [1]}, r"`arguments` in .* must have names and values, got \[1\]"),
        (
            {"few_shot": {"way": "five", "shot": 10}},
            r"`few_shot` in .* must have whole numbers from 1, got \['five'\]",
        ),
        ({"seeds": 5}, "`seeds` in .* must be a list of whole numbers, got 5"),
        ({"seeds": []}, "must be a list of whole numbers"),
        ({"seeds": [0, 0]}, "names a seed twice"),
        ({"learning_rates": {"values": [1.0], "seeds": []}}, "`seeds of learning_rates` in .* must be a list"),
        ({"learning_rates": {"values": ["fast"], "seeds": [9]}}, "must be a number, got 'fast'"),
        ({"rows": {"full": {"weight_decay": "much"}}}, "`weight_decay` of the row 'full' .* must be a number"),
        ({"few_shot": {"ways": 5, "shot": 10}}, r"`few_shot` in .* needs the keys \['shot', 'way'\], got"),
        (
            {"few_shot": {"way": 5, "shot": 10}, "learning_rates": None, "arguments": {"max_train_clouds": 9}},
            r"has \['max_train_clouds'\], which the few-shot protocol decides",
        ),
    ],
)
def test_wrong_studies(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        study(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {full: {}}\nseeds: [0]\nrows: {linear: {}}", r"(?s)\['rows'\] is there twice.*line 1"),
        ("rows: {full: {epochs: 3, epochs: 4}}", r"\['epochs'\] is there twice"),
        ("rows: [", "not readable as YAML"),
    ],
)
def test_files_that_are_no_yaml(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Study.from_yaml(tmp_path / "study.yaml")


def test_what_yaml_takes_for_something_else(tmp_path):
    (tmp_path / "study.yaml").write_text("rows: {16: {method: full, learning_rate: 1e-3}}\ndescription:\n")
    plan = Study.from_yaml(tmp_path / "study.yaml")
    (run,) = plan.final_runs(plan.chosen_rates({}))
    assert (run.row, run.arguments["learning_rate"]) == ("16", 1e-3)


def test_a_run_says_which_defaults_it_has_and_is_another_with_others(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text("rows: {lora: {}}\n")
    plan = Study.from_yaml(tmp_path / "study.yaml")
    (before,) = plan.final_runs({"lora": None})
    assert before.arguments["learning_rate"] == METHODS["lora"].learning_rate
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], warmup_ratio=0.5))
    (after,) = plan.final_runs({"lora": None})
    assert after.arguments["warmup_ratio"] == 0.5
    assert after.key != before.key


def test_few_shots_of_any_study(tmp_path):
    plan = study(tmp_path, learning_rates=None, few_shot={"way": 5, "shot": 10})
    other = plan.few_shots(FewShot(10, 20), 3)
    assert (other.few_shot, other.seeds) == (FewShot(10, 20), [0, 1, 2])
    assert other.rows == plan.rows
    with pytest.raises(ValueError, match="folds must be at least 1, got 0"):
        plan.few_shots(FewShot(10, 20), 0)
    with pytest.raises(ValueError, match="no validation split to choose by"):
        study(tmp_path).few_shots(FewShot(10, 20), 3)


def test_rows_that_need_another(tmp_path):
    with pytest.raises(ValueError, match="'prompts' takes its learning rate from 'full'. Name both"):
        study(tmp_path, rows={"full": None, "prompts": {"method": "prompt", **follows("full")}}).only(["prompts"])


def test_equal_means_are_equal_whatever_the_order_of_the_sum(tmp_path):
    plan = study(tmp_path)
    shares = [97 / 149, 103 / 149, 99 / 149], [99 / 149, 100 / 149 + 1e-8, 100 / 149]
    assert plan.chosen_rates({"full": dict(zip((1e-3, 4e-3), shares, strict=True))})["full"] == 1e-3
