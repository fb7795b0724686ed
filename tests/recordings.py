"""Made recordings as people have them: cameras, takes, long files with annotations, a copy, a broken file."""

import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 10
ACTIONS = ("left", "right", "rise")


def write_frames(path: Path, frames: Sequence[np.ndarray], *, crf: int = 18) -> Path:
    """An H.264 file of RGB frames uint8 [H, W, 3] at 10 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": "ultrafast"})
        height, width = frames[0].shape[:2]
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def moving(action: str, camera: int, take: int, *, frames: int = 16, side: int = 48) -> list[np.ndarray]:
    """A square that moves over the ground of a camera; a take has a path of its own."""
    ground = np.random.default_rng(camera).integers(40, 120, (side // 8, side // 6, 3)).astype(np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    rng = np.random.default_rng(1000 * camera + 10 * take + ACTIONS.index(action))
    colour, lane = rng.integers(150, 255, 3), int(rng.integers(0, side - 12))
    paths: dict[str, Callable[[float], tuple[int, int]]] = {
        "right": lambda part: (lane, int(part * (side - 12))),
        "left": lambda part: (lane, int((1 - part) * (side - 12))),
        "rise": lambda part: (int((1 - part) * (side - 12)), lane),
    }
    found = []
    start = rng.uniform(0, 0.3)
    for number in range(frames):
        top, left = paths[action](start + (1 - start) * number / frames)
        picture = ground.copy()
        picture[top : top + 12, left : left + 12] = colour
        found.append(picture)
    return found


def write_takes(root: Path, counts: dict[str, int], cameras: int = 2) -> list[Path]:
    """``cam1_left_0.mp4`` and so on: so many takes of each action with each camera."""
    return [
        write_frames(root / f"cam{camera}_{action}_{take}.mp4", moving(action, camera, take))
        for action, count in counts.items()
        for camera in range(cameras)
        for take in range(count)
    ]


def write_recording(root: Path, name: str, actions: Sequence[str], camera: int = 0) -> str:
    """One long file of several actions, 1.6 seconds each; gives rows of annotations for it."""
    frames = [frame for take, action in enumerate(actions) for frame in moving(action, camera, 50 + take)]
    write_frames(root / f"{name}.mp4", frames)
    rows = [f"{name},{action},{1.6 * take:.1f},{1.6 * (take + 1):.1f}" for take, action in enumerate(actions)]
    return "".join(row + "\n" for row in rows)


def write_collection(root: Path, table: Path, cameras: int = 12) -> None:
    """Recordings of ten segments each and a CSV file of them: unequal classes, a copy, a broken file."""
    actions = ["left"] * 5 + ["right"] * 3 + ["rise"] * 2
    rows = ["recording,action,start,end,camera"]
    for camera in range(cameras):
        order = np.random.default_rng(camera).permutation(actions).tolist()
        lines = write_recording(root, f"day0_cam{camera}", order, camera=camera).splitlines()
        rows += [f"{line},cam{camera}" for line in lines]
    shutil.copy(root / "day0_cam0.mp4", root / "copy.mp4")
    rows += [line.replace("day0_cam0", "copy") for line in rows if line.startswith("day0_cam0,")]
    half = (root / "day0_cam1.mp4").read_bytes()
    (root / "torn.mp4").write_bytes(half[: len(half) // 2])
    rows += ["torn,left,0,1.6,cam1", "torn,right,1.6,3.2,cam1"]
    table.write_text("".join(row + "\n" for row in rows))
