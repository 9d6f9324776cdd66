import pytest

from point_peft_hf.studies import RunBook


def test_what_was_added_is_read_again(tmp_path):
    book = RunBook(tmp_path / "runs.jsonl")
    book.add({"key": "a", "stage": "search"})
    book.add({"key": "b", "stage": "final"})
    again = RunBook(tmp_path / "runs.jsonl")
    assert "a" in again
    assert "c" not in again
    assert [record["key"] for record in again.of_stage("final")] == ["b"]


def test_a_last_line_that_was_cut_is_dropped(tmp_path):
    path = tmp_path / "runs.jsonl"
    RunBook(path).add({"key": "a", "stage": "final"})
    whole = path.read_text()
    path.write_text(whole + '{"key": "b", "sta')
    book = RunBook(path)
    assert list(book.records) == ["a"]
    assert path.read_text() == whole


def test_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a"\n{"key": "b", "stage": "final"}\n')
    with pytest.raises(ValueError, match="Line 1 of .*runs.jsonl"):
        RunBook(path)
