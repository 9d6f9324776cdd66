"""Pickles of arrays in lists, tuples and dictionaries, read without running anything from the file.

`pickle` builds objects by calling whatever a file names. Here the names of numpy's own functions stand for functions
of this module, every other name is refused, and so is every instruction that plain data do not need.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from .errors import PointCloudError, shorten

_KINDS = "biuf"
_MAX_DEPTH = 16
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL "
    "REDUCE BUILD"
).split()


def _refuse(reason: str) -> NoReturn:
    raise pickle.UnpicklingError(reason)


@dataclass
class _Array:
    """A numpy array on its way out of a pickle."""

    value: np.ndarray | list | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _build(dtype, shape, data, "F" if fortran else "C")


class _DType:
    """A numpy type of number on its way out of a pickle; others, but for object as in a list, are refused."""

    def __init__(self, text: Any):
        text = text.decode("ascii") if isinstance(text, bytes) else text
        self.is_object = text in ("O", "O8", "|O")
        self.dtype = np.dtype("u1")
        if not self.is_object:
            if not isinstance(text, str) or len(text) > 4:
                _refuse(f"an array of {shorten(text)}, which is not a type of number")
            self.dtype = np.dtype(text)
            if self.dtype.kind not in _KINDS:
                _refuse(f"an array of {self.dtype}, which is not a type of number")

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, ...): the order is all that a number has.
        if state[1] in ("<", ">") and not self.is_object:
            self.dtype = self.dtype.newbyteorder(state[1])


def _build(dtype: Any, shape: Any, data: Any, order: str) -> np.ndarray | list:
    if not isinstance(dtype, _DType):
        _refuse("an array without a type")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        _refuse(f"an array of shape {shorten(shape)}")
    if dtype.is_object:
        if not isinstance(data, list) or len(shape) != 1 or len(data) != shape[0]:
            _refuse("an array of objects that is not a plain list")
        return data
    if isinstance(data, str):  # bytes, as Python 2 wrote them
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
        _refuse(f"an array of shape {shorten(shape)} with other data than that takes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


@dataclass(frozen=True)
class _Stub:
    """Stands for a function of numpy; cannot be changed by the pickle."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        _refuse("it sets the state of a function")


def _scalar(dtype: Any, data: Any) -> Any:
    return _build(dtype, (), data, "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        _refuse(f"text encoded as {shorten(encoding)}")
    return text.encode("latin-1")


_ALLOWED = {
    ("numpy", "dtype"): lambda text, align=False, copy=False: _DType(text),
    ("numpy", "ndarray"): lambda *args: _refuse("it makes an array in an unusual way"),
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # how the old protocols write empty data
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = lambda kind, shape, code: _Array()
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = lambda data, dtype, shape, order: _Array(
        _build(dtype, shape, data, order)
    )


class _File:
    """The file of a pickle, which refuses lengths beyond its end before any memory is taken for them."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, number: int) -> bytes:
        if not 0 <= number <= self.size - self._file.tell():
            raise EOFError("it ends too early")
        return self._file.read(number)

    def readline(self) -> bytes:
        return self._file.readline()


# The C unpickler takes memory for whatever index a file names, and its instructions cannot be restricted; the Python
# one is fast enough, as the bulk of these files are arrays, one instruction each.
class _RestrictedUnpickler(pickle._Unpickler):
    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS
    }

    def find_class(self, module: str, name: str) -> _Stub:
        if (module, name) not in _ALLOWED:
            _refuse(f"it asks for {shorten(f'{module}.{name}')}, which plain arrays do not need; it could run code")
        return _Stub(_ALLOWED[module, name])

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load_restricted_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of plain data: numbers, text, lists, tuples, dictionaries, and arrays of numbers.

    Arrays are read-only views of the data. Anything else in it, as in pickles that run code, is an error.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _load(file, str(path))
    except OSError as error:
        raise PointCloudError(f"{path}: cannot be read: {error.strerror or error}") from error


def _load(file: BinaryIO, name: str) -> Any:
    guarded = _File(file)
    if guarded.size == 0:
        raise PointCloudError(f"{name}: is empty (0 bytes)")
    try:
        # Python 2 wrote bytes as text of one byte a character, which latin-1 gives back unchanged.
        loaded = _RestrictedUnpickler(guarded, encoding="latin-1").load()
        return _finish(loaded, {}, 0)
    except pickle.UnpicklingError as error:
        raise PointCloudError(f"{name}: refused as a pickle of arrays: {error}") from None
    except KeyError as error:
        what = f"instruction {error.args[0]}" if error.args and isinstance(error.args[0], int) else str(error)
        raise PointCloudError(f"{name}: refused as a pickle of arrays: {what} is not one of plain data") from None
    except Exception as error:  # a broken pickle can fail in any way
        raise PointCloudError(f"{name}: not a readable pickle of arrays, or truncated: {error!r}"[:300]) from None


def _finish(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Replace the stand-ins by what they stand for."""
    if isinstance(value, _Array):
        value = value.value
        if value is None:
            _refuse("an array without data")
    if isinstance(value, _Stub | _DType):
        _refuse("it holds a function or a type where data should be")
    if not isinstance(value, list | tuple | dict):
        return value
    if depth > _MAX_DEPTH:
        _refuse("its lists are nested too deeply, or hold themselves")
    if id(value) not in done:  # the same list named many times is converted once
        if isinstance(value, dict):
            made: Any = {_finish(key, done, depth + 1): _finish(item, done, depth + 1) for key, item in value.items()}
        else:
            made = type(value)(_finish(item, done, depth + 1) for item in value)
        done[id(value)] = (value, made)  # with the original, so that its id stays taken
    return done[id(value)][1]
