"""Signals at moments in which Python cannot raise, or should not."""

from __future__ import annotations

import signal
import time

from strata.scripts.stoppable import run_stoppable


def test_an_interrupt_that_falls_into_a_destructor_stops_all_the_same(capsys):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)

    def command():
        del [Interrupted()][0]
        time.sleep(20)
        return 0

    assert run_stoppable(command, until_exit=False) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "strata: interrupted\n"


def test_an_import_is_finished_before_a_signal_stops_the_command(tmp_path, monkeypatch, capsys):
    """An extension that is interrupted while it is imported may end the process (std::terminate)."""
    (tmp_path / "imported_slowly.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.2)\nis_whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def command():
        import imported_slowly

        seen.append(imported_slowly.is_whole)
        time.sleep(20)
        return 0

    assert run_stoppable(command, until_exit=False) == 128 + signal.SIGTERM
    assert seen == [True]
    assert capsys.readouterr().err == "strata: interrupted\n"
