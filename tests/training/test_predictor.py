import json

import pytest

from point_peft_hf.training import FinetuneArguments, Finetuning, Predictor


@pytest.fixture(scope="module")
def adapter(tiny_backbone, tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = FinetuneArguments("point_peft", tiny_backbone, output_dir=str(folder), epochs=1, mixed_precision="no")
    Finetuning(arguments, tiny_task, report=lambda line: None).run()
    return folder / "point_peft"


def test_the_adapter_alone_names_backbone_and_classes(adapter, tiny_task):
    (adapter / "run.json").rename(adapter / "run.json.away")
    try:
        predictor = Predictor.from_pretrained(str(adapter))
    finally:
        (adapter / "run.json.away").rename(adapter / "run.json")
    assert predictor.class_names == tiny_task.class_names
    ranked = predictor.predict(tiny_task.test[3]["points"].numpy(), top=99)
    assert len(ranked) == len(tiny_task.class_names)
    assert sum(probability for _, probability in ranked) == pytest.approx(1, abs=1e-5)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"is no folder of an adapter"):
        Predictor.from_pretrained(str(tmp_path / "missing"))


def test_an_adapter_for_other_classes_is_refused(adapter, tmp_path, tiny_task):
    folder = tmp_path / "other"
    folder.mkdir()
    for file in adapter.glob("*.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    record = json.loads((folder / "run.json").read_text())
    record["class_names"] = record["class_names"][:-1]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"num_labels=12, but this one has num_labels=11"):
        Predictor.from_pretrained(str(folder))
