import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from point_peft_hf.data import PointCloudError
from point_peft_hf.data.layouts_releases import read_dat
from point_peft_hf.data.restricted_pickle import _load, load_restricted_pickle


def loads(data, name):
    return _load(io.BytesIO(data), name)


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(4, 3),
    np.asfortranarray(np.arange(12.0).reshape(4, 3)),
    np.arange(3, dtype=">i4"),
    np.array([True, False]),
    np.array(5, dtype=np.uint8),
    np.empty((0, 3), dtype=np.float16),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data(tmp_path, protocol):
    plain = {"a": [1, -(2**70), 1.5, None, True, "text", b"bytes"], "b": (np.float64(2.5), np.int32(7), ())}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([ARRAYS, plain], protocol=protocol))
    arrays, found = load_restricted_pickle(path)
    assert found == plain
    for expected, array in zip(ARRAYS, arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_old_names_of_numpy_and_python_2():
    # What numpy 1 under Python 2 wrote for np.array([1, 2], dtype="<i2"), protocol 0.
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\nS'b'\np3\ntp4\nRp5\n"
        b"(I1\n(I2\ntp6\ncnumpy\ndtype\np7\n(S'i2'\np8\nI0\nI1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nb"
        b"I00\nS'\\x01\\x00\\x02\\x00'\np13\ntp14\nb."
    )
    np.testing.assert_array_equal(loads(data, "old"), [1, 2])


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


ran = []


def record(*args):
    ran.append(args)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Runs(record, 1), id="own function"),
        Runs(os.system, "true"),
        Runs(eval, "1"),
        Runs(np.load, "a.npy"),
        Runs(np.fromfile, "a.npy"),
        [1, {"points": (Runs(record, 2),)}],
        np.array([Runs(record, 3), None], dtype=object),
        np.zeros(2, dtype=[("x", "f4")]),
        np.array(["text"]),
        np.array(["2020"], dtype="M8[D]"),
        record,
        np.ndarray,
        np.dtype("f4"),
        PointCloudError,
        slice(1),
    ],
)
def test_code_and_strange_types_are_refused(tmp_path, value, protocol):
    path = tmp_path / "evil.dat"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(PointCloudError, match="refused as a pickle of arrays") as error:
        load_restricted_pickle(path)
    assert str(path) in str(error.value)
    assert not ran


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(S'true'\ntR.",
        b"(S'true'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02cnumpy\ndtype\n)\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"Pid\n.",  # PERSID
        b"cnumpy.core.multiarray\n_reconstruct\n}S'__code__'\nI1\nsb.",  # the state of an allowed function
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\ndtype.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.newbyte\x93.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2**63 bytes
        b"B\xff\xff\xff\x7f.",  # bytes beyond the end
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray beyond the end
        b"K\x01r\xff\xff\xff\xff",  # the last place of a memo of 2**32
        b"]q\x00h\x00a.",  # a list that holds itself
        b"(" * 5000 + b"t" * 5000 + b".",
        b"(" * 50 + b"t" * 50 + b".",
        b"I1" + b"0" * 9999 + b"\n.",
        b".",
        b"\x80\x63.",
        b"",
    ],
)
def test_hand_made_attacks(data):
    with pytest.raises(PointCloudError, match="^name: "):
        loads(data, "name")


def test_shared_lists_are_converted_once():
    bomb = [np.arange(3)]
    for _ in range(14):
        bomb = [bomb] * 1000
    assert len(loads(pickle.dumps(bomb), "bomb")) == 1000


DAT = pickle.dumps([[np.ones((4, 6), np.float32)] * 2, [np.array([0], np.int32), np.array([1], np.int32)]], protocol=4)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    st.integers(0, len(DAT)),
    st.lists(st.tuples(st.integers(0, len(DAT) - 1), st.integers(0, 255)), max_size=5),
    st.binary(max_size=8),
)
def test_damaged_dat_files_are_read_or_refused(tmp_path_factory, cut, changes, tail):
    data = bytearray(DAT)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.dat"
    path.write_bytes(bytes(data[:cut]) + tail)
    try:
        clouds, labels = read_dat(path, num_classes=2)
    except PointCloudError as error:
        message = str(error)
    else:
        message = str(path)
        assert len(clouds) == len(labels)
        assert all(cloud.dtype == np.float32 and cloud.shape[1] == 3 for cloud in clouds)
    assert str(path) in message


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.lists(st.sampled_from(list(b"(.0]}eatub\x85\x86K\x01cnumpy\nqhRXS'")), max_size=40))
def test_any_bytes_are_plain_data_or_refused(data):
    try:
        found = loads(bytes(data), "fuzz")
    except PointCloudError:
        return
    assert isinstance(
        found, int | float | str | bytes | bytearray | list | tuple | dict | None | np.ndarray | np.generic
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5)
        | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(PROTOCOLS),
)
def test_plain_data_round_trip(value, protocol):
    assert loads(pickle.dumps(value, protocol=protocol), "fuzz") == value


def test_lengths_are_checked_before_memory_is_taken():
    # An array of 2**40 numbers with 4 bytes of data.
    shape = struct.pack("<Q", 2**40)
    data = pickle.dumps(np.zeros(77, np.uint8), protocol=2).replace(b"KM\x85", b"\x8a\x08" + shape + b"\x85")
    with pytest.raises(PointCloudError, match="name: "):
        loads(data, "name")
