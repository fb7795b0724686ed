"""Which cells of a clip are hidden."""

from vidssl.maskers.block_3d import Block3D
from vidssl.maskers.blockwise import Blockwise
from vidssl.maskers.frame_diff import FrameDiff
from vidssl.maskers.random_3d import Random3D
from vidssl.maskers.random_frame import RandomFrame
from vidssl.maskers.tube import Tube

MASKERS = {
    "block_3d": Block3D,
    "blockwise": Blockwise,
    "frame_diff": FrameDiff,
    "random_3d": Random3D,
    "random_frame": RandomFrame,
    "tube": Tube,
}
