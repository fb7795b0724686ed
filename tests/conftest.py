"""One thread for the tests and the processes they start: on tiny tensors threads only wait for each other.

SIGTERM ends the tests as Ctrl-C does, so that fixtures end the processes that they started.

Python looks for cycles neither while tests are collected nor, later, in what is there by then: libraries and
thousands of tests, which take half a second each time; and in what is new less often than it would by itself,
which took a tenth of all the time.
"""

import gc
import os
import shutil
import signal
import tempfile
from types import FrameType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, which reads it once
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="vidssl-tests-")  # what runs of own parts are noted in
_OWN_PID = os.getpid()
_VIDEOS = ""
if "PYTEST_XDIST_WORKER" not in os.environ:  # moving digits, which all tests of all processes share
    _VIDEOS = os.environ["VIDSSL_CACHE"] = tempfile.mkdtemp(prefix="vidssl-tests-videos-")


def _end(number: int, frame: FrameType | None) -> None:
    if os.getpid() == _OWN_PID:
        pytest.exit("ended by SIGTERM", returncode=143)
    signal.signal(number, signal.SIG_DFL)  # a forked child ends as if this handler were not there
    os.kill(os.getpid(), number)


signal.signal(signal.SIGTERM, _end)
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    if _VIDEOS and os.getpid() == _OWN_PID:
        shutil.rmtree(_VIDEOS, ignore_errors=True)
