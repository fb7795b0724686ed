"""Small videos of awkward kinds, and how tests prepare them."""

from io import StringIO
from pathlib import Path

import torch
from data_clips import number_shown, turn_clip, write_clip
from rich.console import Console

from vidssl.tools.data.check import check_data
from vidssl.tools.data.encode import H264, Form
from vidssl.tools.data.prepare import prepare_data

UNEVEN = [0, 1, 2, 5, 6, 7, 11, 12, 13, 14, 20, 21, 22, 23]  # times of frames
SMALL = H264(short_side=24, gop=4)


def write_three(root: Path) -> Path:
    """A long group, uneven times with a quarter turn, packed B-frames without usable timestamps."""
    write_clip(root / "run" / "a.mp4", 20, gop=250)
    turn_clip(write_clip(root / "run" / "b.mp4", len(UNEVEN), times=UNEVEN), 90)
    write_clip(root / "walk" / "c.avi", 13, codec="mpeg4")
    return root


def run(path: Path, out: Path, form: Form = SMALL, **how: object) -> tuple[int, str]:
    text = StringIO()
    console = Console(file=text, width=300, force_terminal=False)
    code = prepare_data(path, out, form, console=console, **{"processes": 1, **how})
    return code, text.getvalue()


def numbers(clip: torch.Tensor, turned: bool = False) -> list[int]:
    return [number_shown(frame.rot90(1, (1, 2)) if turned else frame) for frame in clip]


def check(path: Path, **how: object) -> tuple[int, str]:
    text = StringIO()
    console = Console(file=text, width=300, force_terminal=False)
    code = check_data(path, console=console, **{"processes": 1, **how})
    return code, text.getvalue()
