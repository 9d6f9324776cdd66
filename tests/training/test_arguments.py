import re

import pytest

from point_peft_hf.training import PointCloudArguments, parse_arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "linear"], r"There is no option --methods \(did you mean --method or .*\?\), linear\."),
        (["scans"], r"There is no option scans\."),
        (["--num_train_epoch=3", "--dta", "scans"], r"There is no option --dta \(did you mean --data"),
        (["--save_examples", "8"], "argument --save_examples/--save-examples: .*got 8"),
        (["--lr", "0.1"], "ambiguous option: --lr could match --lr_scheduler_type"),
    ],
)
def test_errors_of_the_command_line_are_two_lines(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(given, prog="point-peft train")
    assert stop.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("point-peft train: error: ")
    assert re.search(message, error)
    assert hint == "`point-peft train --help` lists the options."


@pytest.mark.parametrize(
    ("fields", "augmentation"),
    [
        ({}, "rotate"),
        ({"corruption": "clean"}, "scale_translate"),
        ({"data": "folder"}, "scale_translate"),
        ({"data": "folder", "task": "scene_segmentation"}, "scene"),
        ({"augmentation": "none"}, "none"),
        ({"task": "scene_segmentation", "augmentation": "none"}, "none"),
    ],
)
def test_default_augmentation(fields, augmentation):
    assert PointCloudArguments(**fields).augmentation == augmentation
