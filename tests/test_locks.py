import pytest

from point_peft_hf import locks
from point_peft_hf.locks import locked_folder


@pytest.fixture(autouse=True)
def hardly_wait(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)


def test_a_folder_of_another_process_is_refused_until_it_ends(tmp_path, locked_elsewhere):
    with locked_elsewhere(tmp_path / "run") as process:
        with pytest.raises(ValueError, match=r"Another process is writing to .*run\. Wait until it ends"):
            with locked_folder(tmp_path / "run"):
                pass
        with locked_folder(tmp_path / "another"):
            pass
        # Killed, not told to end: nothing of it is left that would have to be cleaned up by hand.
        process.kill()
        process.wait()
        with locked_folder(tmp_path / "run"):
            pass


def test_one_process_may_lock_a_folder_again(tmp_path):
    with locked_folder(tmp_path / "run"), locked_folder(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_the_lock_outlives_the_replacement_of_the_folder(tmp_path, locked_elsewhere):
    (tmp_path / "run").mkdir()
    with locked_elsewhere(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "old")
        (tmp_path / "run").mkdir()
        with pytest.raises(ValueError, match="Another process"):
            with locked_folder(tmp_path / "run"):
                pass
