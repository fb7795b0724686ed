"""Processes that torchrun has started do not outlive it."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_launcher() -> None:
    """Has Linux kill this process when the torchrun that started it is killed; without one does nothing.

    torchrun starts its processes in sessions of their own. Left behind, they would wait half an hour for one
    another and keep GPUs and the lock of the run's folder, or train on where nobody sees it. A killed
    process loses nothing but the steps since its last checkpoint.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
