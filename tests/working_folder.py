"""Where tests run commands as a user does: in a folder of their own."""

from pathlib import Path

import pytest


def work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes it the working folder, and keeps the videos that are made in it."""
    patch.chdir(folder)
    patch.setenv("VIDSSL_CACHE", str(folder / "cache"))
