"""Which cells of a clip are hidden."""

from vidssl.interfaces import Masker
from vidssl.interfaces.table import Table

MASKERS: Table[Masker] = Table(
    {
        "block_3d": "vidssl.maskers.block_3d:Block3D",
        "blockwise": "vidssl.maskers.bevt:Blockwise",
        "frame_diff": "vidssl.maskers.bevt:FrameDiff",
        "multi_block": "vidssl.maskers.vjepa:MultiBlock",
        "random_3d": "vidssl.maskers.bevt:Random3D",
        "random_cells": "vidssl.maskers.bevt:Random3D",  # the name that MAE-ST's readers look for
        "random_frame": "vidssl.maskers.bevt:RandomFrame",
        "random_tube": "vidssl.maskers.videomae:RandomTube",
        "running_cell": "vidssl.maskers.videomae:RunningCell",
        "tube": "vidssl.maskers.bevt:Tube",
    }
)


def __getattr__(name: str) -> object:
    return MASKERS.constructor(name, __name__)
