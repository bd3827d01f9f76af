"""Two runs in one folder: the second is refused in one line, whoever holds the lock and however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from strata.engine.folder_lock import LOCK_NAME, lock_folder
from strata.engine.types import InputError

HOLDER = (
    "import sys, time\nfrom pathlib import Path\nfrom strata.engine.folder_lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1]), '--out'):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_a_process_that_holds_a_folder_is_named_and_its_death_frees_it(tmp_path):
    folder = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"--out: .*out is in use by another run \(process {holder.pid} on "),
        lock_folder(folder, "--out"),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / LOCK_NAME).is_file(), "a killed process cannot tidy up"
    with lock_folder(folder, "--out"):
        pass
    assert os.listdir(folder) == []


@pytest.mark.parametrize("beside", [False, True])
def test_one_process_cannot_hold_a_folder_twice(beside, tmp_path):
    folder = tmp_path / "out"
    with (
        lock_folder(folder, "--out", beside=beside),
        pytest.raises(InputError, match="in use"),
        lock_folder(folder, "--out", beside=beside),
    ):
        pass
    with lock_folder(folder, "--out", beside=beside):
        pass
    assert os.listdir(tmp_path) == [], "nothing is left where nothing was put"


def test_the_block_ends_with_its_own_error_and_gives_the_lock_back(tmp_path):
    def run():
        with lock_folder(tmp_path / "out", "--out"):
            (tmp_path / "out" / "kept").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert os.listdir(tmp_path / "out") == ["kept"]
