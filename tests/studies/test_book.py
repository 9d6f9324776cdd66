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
    # Whoever only reads leaves it alone: it may be a line that is being written.
    assert path.read_text() == whole + '{"key": "b", "sta'
    book.add({"key": "c", "stage": "final"})
    book.add({"key": "d", "stage": "final"})
    assert list(RunBook(path).records) == ["a", "c", "d"]


def test_what_an_editor_leaves_is_read_and_gone_on_with(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a", "stage": "final"}\n\n{"key": "b", "stage": "final"}')
    book = RunBook(path)
    for key in "cd":
        book.add({"key": key, "stage": "final"})
    assert list(RunBook(path).records) == ["a", "b", "c", "d"]


def test_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key": "a"\n{"key": "b", "stage": "final"}\n')
    with pytest.raises(ValueError, match="Line 1 of .*runs.jsonl"):
        RunBook(path)
