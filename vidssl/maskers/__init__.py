"""Which cells of a clip are hidden."""

from vidssl.interfaces import Masker
from vidssl.interfaces.table import Table

MASKERS: Table[Masker] = Table(
    {
        "block_3d": "vidssl.maskers.block_3d:Block3D",
        "blockwise": "vidssl.maskers.blockwise:Blockwise",
        "frame_diff": "vidssl.maskers.frame_diff:FrameDiff",
        "random_3d": "vidssl.maskers.random_3d:Random3D",
        "random_frame": "vidssl.maskers.random_frame:RandomFrame",
        "tube": "vidssl.maskers.tube:Tube",
    }
)


def __getattr__(name: str) -> object:
    return MASKERS.constructor(name, __name__)
