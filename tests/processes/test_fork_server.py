"""The fork server beside `python -c`: the same process but for its imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from .fork_server import ForkServer

LOOK = """
import atexit, json, logging, os, resource, signal, sys, threading
atexit.register(lambda: os.write(1, b"and left"))
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "name": __name__,
    "main": sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__")),
    "cwd": os.getcwd(),
    "environment": dict(os.environ),
    "handled": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "threads": [thread.name for thread in threading.enumerate()],
    "tasks": len(os.listdir("/proc/self/task")),
    "handlers": [str(handler) for handler in logging.getLogger().handlers],
    "descriptors": len(os.listdir("/proc/self/fd")),
    "stdin": sys.stdin.read(),
    "line_buffering": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "group": os.getpgid(0),
    "pytest": [name for name in sys.modules if "pytest" in name],
    "limits": [resource.getrlimit(number) for number in range(16)],
}), flush=True)
print("said", file=sys.stderr)
sys.exit(3)
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def light():
    """A server without heavy imports."""
    with ForkServer(("json",)) as server:
        yield server


def test_it_is_the_process_that_python_starts(light, tmp_path, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_SERVER_BEGAN", "yes")
    light.run("pass")
    given = ("one", "two words", "\u00e9")
    forked = light.run(LOOK, *given, cwd=tmp_path, environment={"NO_COLOR": "1"})
    plain = subprocess.run(
        [sys.executable, "-c", LOOK, *given],
        cwd=tmp_path,
        env=os.environ | {"NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (forked.returncode, forked.stderr) == (plain.returncode, plain.stderr) == (3, "said\n")
    found, expected = (json.loads(one.stdout.splitlines()[0]) for one in (forked, plain))
    # One more is open, by which the parent learns of the end.
    assert found.pop("descriptors") == expected.pop("descriptors") + 1
    assert found == expected
    assert forked.stdout.splitlines()[1] == plain.stdout.splitlines()[1] == "and left"


def test_the_heavy_modules_are_there(forks):
    code = "import sys; print(*sorted({'torch', 'transformers', 'strata.scripts.cli'} & set(sys.modules)))"
    assert forks.run(code).stdout == "strata.scripts.cli torch transformers\n"


def test_a_child_computes_as_any_process(forks):
    """A fork whose parent had begun to compute in threads could wait for them for good."""
    code = "import torch; torch.set_num_threads(2); x = torch.ones(900, 900); print(float((x @ x).sum()))"
    assert forks.run(code).stdout == f"{900.0**3}\n"


def test_children_run_beside_each_other_and_leave_nothing_to_the_next(light):
    first = light.start("import os, sys, time; os.environ['LEFT'] = 'x'; sys.left = 1; time.sleep(60)")
    second = light.run("import os, sys; print(os.environ.get('LEFT'), hasattr(sys, 'left'))")
    assert second.stdout == "None False\n"
    with pytest.raises(TimeoutError, match="still runs"):
        first.wait(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == -signal.SIGTERM
    first.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("raise ValueError('odd')", 1, "ValueError: odd\n"),
        ("import sys; sys.exit('words')", 1, "words\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("print('x' * 1_000_000)", 0, ""),
        ("import threading, time; threading.Thread(target=lambda: print('late')).start()", 0, ""),
    ],
)
def test_ends(code, status, told, light):
    """As `python -c` ends, which is run beside it."""
    forked = light.run(code)
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert forked.returncode == plain.returncode == status
    assert forked.stdout == plain.stdout
    assert forked.stderr.endswith(told)
    assert plain.stderr.endswith(told)


def test_what_imports_read_cannot_be_changed(light):
    with pytest.raises(ValueError, match=r"OMP_NUM_THREADS: read by imports"):
        light.start("", environment={"OMP_NUM_THREADS": "7"})
