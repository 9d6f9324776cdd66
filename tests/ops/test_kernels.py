import sys
import threading

import pytest
import torch

from point_peft_hf.ops import kernels


@pytest.fixture(autouse=True)
def forget():
    kernels.compiled_loops.cache_clear()
    yield
    kernels.compiled_loops.cache_clear()


def test_a_module_that_is_there():
    pytest.importorskip("numba")
    assert kernels.compiled_loops("point_peft_hf.ops.sampling_numba").sample_numba


def test_without_numba(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.compiled_loops("point_peft_hf.ops.sampling_numba") is None


def test_numba_that_is_switched_off(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert kernels.compiled_loops("point_peft_hf.ops.sampling_numba") is None


def test_numba_that_cannot_be_imported_is_said_once(monkeypatch, recwarn):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "point_peft_hf.ops.sampling_numba", raising=False)
    for _ in range(2):
        assert kernels.compiled_loops("point_peft_hf.ops.sampling_numba") is None
    (warning,) = recwarn
    assert "without Numba" in str(warning.message)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_item_goes_to_one_thread(threads, count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done, lock = [], threading.Lock()

    def work(first, last):
        with lock:
            done.extend(range(first, last))

    kernels.share_out(work, count)
    assert sorted(done) == list(range(count))


def test_errors_of_threads_are_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def work(first, last):
        if first:
            raise ValueError("second half")

    with pytest.raises(ValueError, match="second half"):
        kernels.share_out(work, 4)
