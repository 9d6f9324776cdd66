"""Damaged files of every format give points or an error that names the file, soon and without much memory."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from point_peft_hf.data import READERS

_spec = importlib.util.spec_from_file_location("fuzz_files", Path(__file__).with_name("fuzz_files.py"))
fuzz_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_files)

SUFFIXES = sorted(READERS)
# Numbers at the limits of what headers count with, and pieces of text that parsers look for.
_INSERTED = (
    *(
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\x7f",
        b"\x80",
        b"\n",
        b"\r",
        b"\x0c",
        b"\0",
        b"\xef\xbb\xbf",
    ),
    *(b"99999999999999999999", b"-1", b"1e999", b"nan", b" ", b",", b"\t", b'"', b"#", b"0,1,2\n", b"4 ", b"[", b"{"),
)


# Without looking for the smallest file that fails, which takes minutes.
PROFILE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return fuzz_files.seeds(tmp_path_factory.mktemp("seeds"))


def damage(data, content):
    """Cut a file, write over some of its bytes, put others in, or double a piece."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        what = data.draw(st.sampled_from(["byte", "insert", "over", "cut", "double", "drop"]))
        length = data.draw(st.integers(1, 40))
        if what == "byte" and place < len(content):
            content[place] = data.draw(st.integers(0, 255))
        elif what == "insert":
            content[place:place] = data.draw(st.sampled_from(_INSERTED))
        elif what == "over":
            piece = data.draw(st.sampled_from(_INSERTED))
            content[place : place + len(piece)] = piece
        elif what == "cut":
            del content[place:]
        elif what == "double":
            content[place:place] = content[place : place + length]
        else:
            del content[place : place + length]
    return bytes(content)


def test_all_formats_have_files_to_start_from(files):
    same = {".xyz": ".txt", ".csv": ".txt", ".asc": ".txt", ".hdf5": ".h5"}
    assert {same.get(suffix, suffix) for suffix in SUFFIXES} <= {*files, ".laz", ".las", ".h5"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_valid_files_are_read(files, tmp_path, suffix):
    found = [fuzz_files.check(tmp_path / f"a{suffix}", content) for content in files.get(suffix, [])]
    assert suffix in (".bin", ".e57") or found.count("error") <= (2 if suffix in (".txt", ".pts") else 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files(files, tmp_path, suffix):
    contents = files.get(suffix) or files[".txt"]

    @PROFILE
    @given(st.data())
    def run(data):
        fuzz_files.check(tmp_path / f"a{suffix}", damage(data, data.draw(st.sampled_from(contents))))

    run()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_bytes(tmp_path, suffix):
    @PROFILE
    @given(st.binary(max_size=200) | st.text("0123456789.,;-+e \t\n\r#/xyznaf\"'", max_size=200).map(str.encode))
    def run(content):
        fuzz_files.check(tmp_path / f"a{suffix}", content)

    run()
