import errno
import json
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, load_dataset, read_point_cloud, sources
from point_peft_hf.data.sources import LoadOptions, default_cache_dir, open_files, read_cloud


@pytest.fixture
def files(tmp_path, make_scans):
    make_scans(tmp_path / "scans", number=3)
    return sorted((tmp_path / "scans").rglob("*.xyz"))


READER = partial(read_cloud, num_points=None, seed=0, drop_invalid=False)


def count_reads(monkeypatch):
    reads = []

    def read(path, *args, **kwargs):
        reads.append(path)
        return read_point_cloud(path, *args, **kwargs)

    monkeypatch.setattr(sources, "read_point_cloud", read)
    return reads


def test_cached_once_and_again_when_a_file_changes(files, tmp_path, cache_dir, files_under, monkeypatch):
    reads = count_reads(monkeypatch)
    root = tmp_path / "scans"
    for _ in range(3):
        clouds, kept = open_files(files, root, READER, LoadOptions())
        assert kept.tolist() == list(range(9))
        for path, cloud in zip(files, clouds, strict=True):
            np.testing.assert_array_equal(cloud, read_point_cloud(path))
            assert cloud.dtype == np.float32
    assert len(reads) == 9
    assert len(files_under(cache_dir)) == 2
    np.savetxt(files[4], np.arange(12.0).reshape(4, 3))
    clouds, _ = open_files(files, root, READER, LoadOptions())
    np.testing.assert_array_equal(clouds[4], np.arange(12).reshape(4, 3))
    assert len(reads) == 18
    assert len(files_under(cache_dir)) == 2  # the old one is gone
    os.utime(files[0], ns=(1, 1))
    open_files(files, root, READER, LoadOptions())
    assert len(reads) == 27
    open_files(files[:8], root, READER, LoadOptions())
    assert len(reads) == 35
    other = partial(read_cloud, num_points=None, seed=1, drop_invalid=False)
    open_files(files, root, other, LoadOptions())
    assert len(reads) == 44


def test_the_cache_is_a_plain_npy_file(files, tmp_path, cache_dir):
    open_files(files, tmp_path, READER, LoadOptions())
    (path,) = cache_dir.glob("*.npy")
    rows = np.load(path)
    np.testing.assert_array_equal(rows, np.concatenate([read_point_cloud(file) for file in files]))


@pytest.mark.parametrize("damage", ["cut", "deleted", "no index", "broken index", "other index"])
def test_damaged_caches_are_made_again(files, tmp_path, cache_dir, damage):
    open_files(files, tmp_path, READER, LoadOptions())
    (data,), (index,) = cache_dir.glob("*.npy"), cache_dir.glob("*.json")
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-5])
    elif damage == "deleted":
        data.unlink()
    elif damage == "no index":
        index.unlink()
    elif damage == "broken index":
        index.write_text(index.read_text()[:-5])
    else:
        index.write_text(json.dumps({"fingerprint": json.loads(index.read_text())["fingerprint"]}))
    clouds, _ = open_files(files, tmp_path, READER, LoadOptions())
    np.testing.assert_array_equal(clouds[8], read_point_cloud(files[8]))


def test_nothing_is_left_of_a_failed_pass(files, tmp_path, cache_dir, files_under):
    files[7].write_text("oops")
    with pytest.raises(PointCloudError, match="oops"):
        open_files(files, tmp_path, READER, LoadOptions())
    assert files_under(cache_dir) == []

    def interrupted(path):
        if path == files[5]:
            raise KeyboardInterrupt
        return read_point_cloud(path)

    with pytest.raises(KeyboardInterrupt):
        open_files(files, tmp_path, interrupted, LoadOptions())
    assert files_under(cache_dir) == []


def test_full_disk(files, tmp_path, cache_dir, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sources, "_write_cache", fail)
    with pytest.warns(UserWarning, match="cache cannot be written .No space left on device.*POINT_PEFT_HF_CACHE"):
        clouds, _ = open_files(files, tmp_path, READER, LoadOptions())
    np.testing.assert_array_equal(clouds[3], read_point_cloud(files[3]))
    with pytest.raises(PointCloudError, match="chosen: the cache cannot be written: No space"):
        open_files(files, tmp_path, READER, LoadOptions(cache_dir=tmp_path / "chosen"))


def test_workers_give_the_same(files, tmp_path):
    expected = [read_point_cloud(path) for path in files]
    files[2].write_text("oops")
    options = LoadOptions(cache_dir=tmp_path / "cache", num_workers=2, skip_bad_files=True)
    with pytest.warns(UserWarning, match="1 of 9 files are skipped"):
        clouds, kept = open_files(files, tmp_path, READER, options)
    assert kept.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    for cloud, index in zip(clouds, kept, strict=True):
        np.testing.assert_array_equal(cloud, expected[index])
    with pytest.raises(PointCloudError, match="oops"):
        open_files(files, tmp_path, READER, LoadOptions(num_workers=2))


def test_pickled_clouds_are_small_and_open_again(files, tmp_path):
    clouds, _ = open_files(files, tmp_path, READER, LoadOptions())
    data = pickle.dumps(clouds)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)[6], clouds[6])
    np.testing.assert_array_equal(clouds[-1], clouds[8])
    with pytest.raises(IndexError):
        clouds[9]


def test_pickled_data_set_reads_the_same_file(files, tmp_path):
    # As for the workers of a DataLoader where processes are spawned.
    dataset = load_dataset(tmp_path / "scans", num_points=30)["train"]
    data = pickle.dumps(dataset)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data)[4]["points"], dataset[4]["points"])


def test_large_clouds_are_thinned(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3000, dtype=np.float32).reshape(1000, 3))
    thinned = read_cloud(tmp_path / "a.npy", None, 0, False, max_points=100)
    assert thinned.shape == (100, 3)
    assert (np.diff(thinned[:, 0]) > 0).all()
    np.testing.assert_array_equal(thinned, read_cloud(tmp_path / "a.npy", None, 0, False, max_points=100))


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("POINT_PEFT_HF_CACHE", "/a/b")
    assert default_cache_dir() == Path("/a/b")
    monkeypatch.delenv("POINT_PEFT_HF_CACHE")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert default_cache_dir() == Path("/hf/point_peft_hf")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_dir() == Path("/xdg/huggingface/point_peft_hf")
