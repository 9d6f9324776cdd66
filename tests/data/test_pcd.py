import base64
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.formats.pcd import lzf_decompress
from point_peft_hf.data.part_files import read_labelled_cloud

# Written by pypcd4 1.5.1, whose LZF is that of LibLZF: 48 points with x = i // 4 / 2, y = i % 3 / 4 - 1, z = 2, and a
# fourth field of zeros.
BY_PYPCD4 = base64.b64decode(
    "VkVSU0lPTiAwLjcKRklFTERTIHggeSB6IGludGVuc2l0eQpTSVpFIDQgNCA0IDQKVFlQRSBGIEYgRiBGCkNPVU5UIDEgMSAxIDEKV0lEVEggNDgK"
    "SEVJR0hUIDEKVklFV1BPSU5UIDAuMCAwLjAgMC4wIDEuMCAwLjAgMC4wIDAuMApQT0lOVFMgNDgKREFUQSBiaW5hcnlfY29tcHJlc3NlZApsAAAA"
    "AAMAAAEAAOAIAAA/IBHgAgMAgCAL4AMDAMAgD+ADAwEAQOAFAwAgIA/gAwMAQCAP4AMDAGAgD+ADAwCAIA/gAwMAkCAP4AMDAKAgD+ADAwCwIA/g"
    "AwMBgL8gXyADAAAgA+CrC+EHP+CoD+CyAAEAAA=="
)
POINTS = np.array([[0, 0, 0], [1, 2, 3], [-4, 5.5, 6.25]], dtype=np.float32)


def header(encoding, number=3, fields="x y z", sizes="4 4 4", types="F F F", counts="1 1 1"):
    return (
        f"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\n"
        f"COUNT {counts}\nWIDTH {number}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {number}\nDATA {encoding}\n"
    ).encode()


def literals(data):
    """Compress by not compressing: LZF with runs of literals only."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def test_compressed_by_another_library(write):
    index = np.arange(48)
    expected = np.stack([index // 4 / 2, index % 3 / 4 - 1, np.full(48, 2)], axis=1)
    np.testing.assert_array_equal(read_point_cloud(write("a.pcd", BY_PYPCD4)), expected)


def test_ascii(write):
    rows = "".join(f"9 8 {z:g} {x:g} {y:g}\n" for x, y, z in POINTS)
    content = header("ascii", fields="pair z x y", sizes="4 4 4 4", types="U F F F", counts="2 1 1 1") + rows.encode()
    np.testing.assert_array_equal(read_point_cloud(write("a.pcd", content)), POINTS)


def test_binary_with_padding_and_double(write):
    rows = np.zeros(3, dtype=[("pad", "u1", 3), ("xyz", "<f8", 3), ("label", "<i2")])
    rows["xyz"] = POINTS
    content = header("binary", fields="_ x y z label", sizes="1 8 8 8 2", types="U F F F I", counts="3 1 1 1 1")
    np.testing.assert_array_equal(read_point_cloud(write("a.pcd", content + rows.tobytes())), POINTS)


def test_compressed_by_hand(write):
    plain = np.ascontiguousarray(POINTS.T).tobytes()  # field by field
    packed = literals(plain)
    content = header("binary_compressed") + struct.pack("<II", len(packed), len(plain)) + packed
    np.testing.assert_array_equal(read_point_cloud(write("a.pcd", content)), POINTS)


def test_lzf_by_hand():
    # "ab", a copy of 3 bytes from 2 back (overlapping), a long copy of 9 + 1 from 1 back.
    assert lzf_decompress(bytes([1, 97, 98, 0x20, 1, 0xE0, 1, 0]), 15) == b"ababa" + b"a" * 10
    for broken in (bytes([5, 97]), bytes([0x20]), bytes([0xE0]), bytes([0, 97, 0x20, 9]), bytes([0, 97])):
        with pytest.raises(ValueError, match="."):
            lzf_decompress(broken, 4)


def test_unmeasured_points(write):
    points = POINTS.copy()
    points[1] = np.nan
    path = write("a.pcd", header("binary") + points.tobytes())
    with pytest.raises(PointCloudError, match="1 of 3 points have NaN .* number 1 .* drop_invalid=True"):
        read_point_cloud(path)
    np.testing.assert_array_equal(read_point_cloud(path, drop_invalid=True), POINTS[[0, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("ascii"), "promises 3 points, the file holds 0 rows"),
        (header("binary") + b"\0" * 35, "promises 3 points, the file holds 35 bytes, of 12 a point"),
        (header("binary_compressed"), "no sizes"),
        (header("binary_compressed") + struct.pack("<II", 50, 36), "0 of 50 compressed bytes"),
        (header("binary_compressed") + struct.pack("<II", 2, 36) + b"\0a", "the compressed data are broken"),
        (header("binary_compressed", number=9) + struct.pack("<II", 2, 36) + b"\0a", "36 bytes, of 12 a point"),
        (header("gzip"), "DATA must be"),
        (header("ascii", types="F F Q"), "header that cannot be read"),
        (header("ascii", sizes="4 4"), "must be of one length"),
        (header("ascii", fields="a b c"), "needs the fields x, y and z"),
        (header("ascii", number=-3), "cannot be -3"),
        (header("binary", number=10**15), "truncated"),
        (b"# .PCD\nFIELDS x y z\nDATA ascii\n0 0 0\n", "the header has no SIZE, TYPE"),
        (b"# .PCD\nFIELDS x y z\n", "none found"),
        (header("ascii") + b"0 0 0\n1 one 1\n2 2 2\n", "line 13: expected a number in column 2, got 'one'"),
    ],
)
def test_broken(write, content, message):
    path = write("broken.pcd", content)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)


ROWS = "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in POINTS).encode()


@pytest.mark.parametrize(
    "content",
    [
        header("ascii").replace(b"FIELDS", b"COLUMNS").replace(b"# .PCD v0.7", b"# .PCD v0.5") + ROWS,
        (header("ascii") + ROWS).replace(b"\n", b"\r\n"),
        (header("ascii") + ROWS).replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + header("ascii") + ROWS,
        (header("ascii") + ROWS).decode().encode("utf-16"),
        header("ascii").replace(b"FIELDS x y z", b"fields X Y Z") + ROWS,
        header("binary") + POINTS.tobytes() + bytes(4096),
        header("ascii", types="f f f") + ROWS + b"\n\n",
    ],
)
def test_odd_files(write, content):
    np.testing.assert_array_equal(read_point_cloud(write("a.pcd", content)), POINTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("ascii") + ROWS + b"1 1 1\n", "promises 3 points, 4 rows follow"),
        (header("binary") + POINTS.astype("<f8").tobytes(), "36 bytes follow the 3 points of 12 bytes"),
        (
            header("binary_compressed", number=2) + struct.pack("<II", 38, 36) + literals(POINTS.tobytes()),
            "12 bytes foll",
        ),
        (header("ascii").replace(b"WIDTH 3", b"WIDTH 4") + ROWS, "POINTS says 3, WIDTH and HEIGHT say 4"),
    ],
)
def test_longer_than_the_header_says(write, content, message):
    with pytest.raises(PointCloudError, match=message):
        read_point_cloud(write("a.pcd", content))


@pytest.mark.parametrize("name", ["label", "Class", "semantic"])
@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_labels(write, name, encoding):
    head = header(encoding, fields=f"x y z {name} rgb", sizes="4 4 4 4 4", types="F F F U F", counts="1 1 1 1 1")
    rows = np.zeros(3, [("xyz", "<f4", 3), ("label", "<u4"), ("rgb", "<f4")])
    rows["xyz"], rows["label"] = POINTS, [7, 0, 2**24]
    body = rows.tobytes()
    if encoding == "ascii":
        body = "".join(f"{x} {y} {z} {label} 0\n" for (x, y, z), label, _ in rows.tolist()).encode()
    elif encoding == "binary_compressed":
        plain = POINTS.T.tobytes() + rows["label"].tobytes() + rows["rgb"].tobytes()
        body = struct.pack("<II", len(literals(plain)), len(plain)) + literals(plain)
    read = read_labelled_cloud(write("a.pcd", head + body))
    np.testing.assert_array_equal(read, np.column_stack([POINTS, [7, 0, 2**24]]))


def test_no_label(write):
    with pytest.raises(PointCloudError, match="no field is named as labels are"):
        read_labelled_cloud(write("a.pcd", header("ascii") + ROWS))


def read_bytes(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fuzz.pcd")
        path.write_bytes(content)
        try:
            points = read_point_cloud(path)
        except PointCloudError as error:
            message = str(error)
        else:
            message = str(path)
            assert points.dtype == np.float32
            assert points.shape[1] == 3
        assert str(path) in message


def damaged(content):
    """Cut a file, and overwrite some of its bytes."""
    flips = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)

    def damage(cut, changes):
        data = bytearray(content)
        for place, value in changes:
            data[place] = value
        return bytes(data[:cut])

    return st.builds(damage, st.integers(0, len(content)), flips)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    damaged(BY_PYPCD4)
    | damaged(header("binary") + POINTS.tobytes())
    | damaged(header("ascii") + b"0 0 0\n1 1 1\n2 2 2\n")
)
def test_damaged_files_are_read_or_refused(content):
    read_bytes(content)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(["ascii", "binary", "binary_compressed"]),
    st.integers(-1, 2**70),
    st.text("xyz_ ", max_size=9),
    st.text("1248 -", max_size=9),
    st.text("FIU ", max_size=9),
    st.binary(max_size=80),
)
@pytest.mark.filterwarnings("ignore:coordinates far")
def test_any_header_is_read_or_refused(encoding, number, fields, sizes, types, body):
    read_bytes(header(encoding, number, fields, sizes, types) + body)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_lzf_gives_the_promised_size_or_refuses(data, size):
    try:
        assert len(lzf_decompress(data, size)) == size
    except ValueError:
        pass


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_lzf_literals_round_trip(data):
    assert lzf_decompress(literals(data), len(data)) == data
