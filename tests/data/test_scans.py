"""Scans: .las and .laz, .bin, .e57."""

import shutil
import struct
import sys
import time
import types
from pathlib import Path

import laspy
import numpy as np
import pytest

from point_peft_hf.data import READERS, PointCloudError, load_dataset, read_point_cloud
from point_peft_hf.data.part_files import read_labelled_cloud

POINTS = np.random.default_rng(0).normal(size=(50, 3)).round(3)
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "files"


def write_las(path, version="1.2", classes=None, vlrs=(), evlrs=()):
    header = laspy.LasHeader(point_format=6 if version == "1.4" else 3, version=version)
    header.scales = [0.001] * 3
    las = laspy.LasData(header)
    las.xyz = POINTS
    if classes is not None:
        las.classification = classes
    las.vlrs.extend(vlrs)
    if evlrs:
        las.evlrs = laspy.vlrs.vlrlist.VLRList(evlrs)
    las.write(path)
    return path


RECORD = laspy.VLR("somebody", 1, "a record", b"12345")


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize(
    ("version", "records"), [("1.2", {}), ("1.2", {"vlrs": [RECORD]}), ("1.3", {}), ("1.4", {"evlrs": [RECORD]})]
)
def test_las(tmp_path, suffix, version, records):
    pytest.importorskip("lazrs")
    path = write_las(tmp_path / f"a{suffix}", version, **records)
    np.testing.assert_allclose(read_point_cloud(path), POINTS, atol=1e-3)


@pytest.mark.parametrize("point_format", [0, 1, 3, 6, 7, 8])
@pytest.mark.parametrize("extra", [0, 3])
def test_compressed_points_of_several_chunks(tmp_path, point_format, extra):
    pytest.importorskip("lazrs")
    header = laspy.LasHeader(point_format=point_format, version="1.4" if point_format > 5 else "1.2")
    header.scales = [0.001] * 3
    if extra:
        header.add_extra_dim(laspy.ExtraBytesParams("more", f"{extra}u1"))
    las = laspy.LasData(header)
    points = np.resize(POINTS, (120_000, 3))
    las.xyz = points
    las.write(tmp_path / "a.laz")
    np.testing.assert_allclose(read_point_cloud(tmp_path / "a.laz"), points, atol=1e-3)
    # A layer, or the table of chunks, that promises gigabytes.
    data = bytearray((tmp_path / "a.laz").read_bytes())
    start, length = struct.unpack_from("<I", data, 96)[0], struct.unpack_from("<H", data, 105)[0]
    table = struct.unpack_from("<q", data, start)[0]
    for place in (table + 4, start + 8 + length + 4)[: 2 if point_format > 5 else 1]:
        (tmp_path / "b.laz").write_bytes(data[:place] + b"\xff" * 4 + data[place + 4 :])
        with pytest.raises(PointCloudError, match="b.laz: its (table promises|compressed points go beyond)"):
            read_point_cloud(tmp_path / "b.laz")


def change(path, **numbers):
    """Write other numbers into the header of a .las file."""
    data = bytearray(path.read_bytes())
    places = {"records": (100, "<I"), "points": (107, "<I"), "start": (96, "<I"), "size": (94, "<H")}
    places |= {"evlr_start": (235, "<Q"), "evlrs": (243, "<I"), "points_1_4": (247, "<Q")}
    for name, number in numbers.items():
        struct.pack_into(places[name][1], data, places[name][0], number)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize(
    ("version", "numbers", "message"),
    [
        ("1.2", {"records": 2**32 - 1}, "promises 4294967295 records"),
        ("1.2", {"records": 3}, "promises 3 records"),
        ("1.2", {"start": 2**31}, "damaged or truncated"),
        ("1.2", {"size": 10}, "damaged or truncated"),
        ("1.4", {"evlrs": 2**32 - 1, "evlr_start": 400}, "promises 4294967295 records after byte 400"),
        ("1.4", {"evlrs": 1, "evlr_start": 2**60}, "promises 1 records after byte"),
        ("1.2", {"points": 2**32 - 1}, "a.la[sz]: "),
        ("1.4", {"points_1_4": 2**63}, "a.la[sz]: "),
    ],
)
def test_headers_that_promise_too_much_end_soon(tmp_path, suffix, version, numbers, message):
    pytest.importorskip("lazrs")
    path = change(write_las(tmp_path / f"a{suffix}", version), **numbers)
    start = time.perf_counter()
    with pytest.raises(PointCloudError, match=message):
        read_point_cloud(path)
    assert time.perf_counter() - start < 20  # a billion records took minutes


def test_a_las_file_that_was_not_closed(tmp_path):
    path = change(write_las(tmp_path / "a.las"), points=30)
    with pytest.raises(PointCloudError, match="promises 30 points of 34 bytes, .* room for 50; was it closed"):
        read_point_cloud(path)


def test_classification(tmp_path):
    for suffix, version in ((".las", "1.2"), (".laz", "1.4")):
        if suffix == ".laz":
            pytest.importorskip("lazrs")
        classes = np.arange(50) % 7
        read = read_labelled_cloud(write_las(tmp_path / f"a{suffix}", version, classes))
        np.testing.assert_allclose(read[:, :3], POINTS, atol=1e-3)
        np.testing.assert_array_equal(read[:, 3], classes)
    with pytest.raises(PointCloudError, match="no point is classified"):
        read_labelled_cloud(write_las(tmp_path / "b.las"))


class PanicException(BaseException):
    """As those of libraries in Rust, which are no Exception."""


def test_a_panic_is_an_error_of_the_file(write, monkeypatch):
    def fail(path):
        raise PanicException("no chunk table")

    for kind in ("a", "b"):
        for index in range(3):
            write(f"{kind}/{index}.xyz", "1 2 3\n4 5 6\n7 8 10\n")
    path = write("a/old.laz", "LASF")
    monkeypatch.setitem(READERS, ".laz", fail)
    with pytest.raises(PointCloudError, match="old.laz: cannot be read; broken. .* no chunk table"):
        read_point_cloud(path)
    with pytest.warns(UserWarning, match="1 of .* files are skipped"):
        load_dataset(str(path.parent.parent), skip_bad_files=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_is_passed_on(write, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setitem(READERS, ".xyz", fail)
    with pytest.raises(error):
        read_point_cloud(write("a.xyz", "1 2 3\n"))


@pytest.mark.parametrize("name", ["k01_old_laszip.laz", "k02_garbage_vlr.las"])
def test_real_files_that_broke_it(tmp_path, name):
    pytest.importorskip("lazrs")
    if not (CASES / name).is_file():
        pytest.skip("needs files of other projects")
    shutil.copy(CASES / name, tmp_path)
    with pytest.raises(PointCloudError, match=name):
        read_point_cloud(tmp_path / name)


@pytest.mark.parametrize("columns", [3, 4, 5, 6])
def test_bin(tmp_path, columns):
    rows = np.random.default_rng(0).normal(size=(60, columns)).astype("<f4")
    rows.tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.bin", num_columns=columns), rows[:, :3])
    with pytest.raises(PointCloudError, match="num_columns=4 for KITTI .*, 5 for nuScenes .* fit .3, 4, 5"):
        read_point_cloud(tmp_path / "a.bin")
    with pytest.raises(PointCloudError, match="not a whole number of points of 7 float32"):
        read_point_cloud(tmp_path / "a.bin", num_columns=7)
    with pytest.raises(ValueError, match="num_columns is for .bin files, and at least 3, got 2"):
        read_point_cloud(tmp_path / "a.bin", num_columns=2)
    with pytest.raises(ValueError, match="num_columns is for .bin files"):
        read_point_cloud(tmp_path / "a.npy", num_columns=4)


def test_e57_without_the_library_names_a_way_out(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pye57", None)
    with pytest.raises(ImportError, match="pip install pye57; or convert it with PDAL: pdal translate a.e57 a.laz"):
        read_point_cloud(write("a.e57", b"ASTM-E57" + bytes(40)))
    with pytest.raises(PointCloudError, match="does not start with ASTM-E57"):
        read_point_cloud(write("b.e57", b"hello"))


def test_e57_joins_its_scans(write, monkeypatch):
    """The library is not among those of the tests; `compare_readers.py` uses it where it is installed."""

    class E57:
        scan_count = 2

        def __init__(self, path):
            assert path.endswith("a.e57")

        def read_scan(self, index, ignore_missing_fields):
            rows = POINTS[25 * index : 25 * index + 25]
            return {f"cartesian{axis}": rows[:, column] for column, axis in enumerate("XYZ")}

    monkeypatch.setitem(sys.modules, "pye57", types.SimpleNamespace(E57=E57))
    path = write("a.e57", b"ASTM-E57" + bytes(40))
    np.testing.assert_allclose(read_point_cloud(path), POINTS, rtol=1e-6)
    monkeypatch.setattr(E57, "read_scan", lambda *args, **kwargs: {"sphericalRange": POINTS[:, 0]})
    with pytest.raises(PointCloudError, match="none of its 2 scans has Cartesian coordinates"):
        read_point_cloud(path)
