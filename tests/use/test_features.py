"""Features of videos in files: which rows, of what, when, and the same as those that are scored."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.data_clips import write_clip
from vidssl import api as v
from vidssl.cli.main import main
from vidssl.engine.distributed import World
from vidssl.use import features as module

VIEWS = "views={type: uniform_clips, num_clips: 2, num_frames: 4, frame_stride: 2, size: 16}"


class OneAfterTheOther(World):
    """Processes that need not wait for each other."""

    def barrier(self) -> None:
        pass


def test_processes_agree_on_what_is_left_though_one_has_begun(tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    one, two = (OneAfterTheOther(rank, 2, store=store) for rank in (0, 1))
    assert module._done(tmp_path, 4, one) == []
    module._part(tmp_path, 0).touch()
    assert module._done(tmp_path, 4, two) == []
    assert module._done(tmp_path, 4, World()) == [0]


@pytest.mark.slow
def test_torchrun_writes_the_features_of_one_process(tiny: Path, tmp_path: Path) -> None:
    found = {}
    for side, start in (
        ("one", ["-m", "vidssl"]),
        ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vidssl"]),
    ):
        out = tmp_path / f"{side}.npz"
        words = ["features", str(tiny), "videos", "-o", str(out), "--per", "frame", "--batch-size", "1"]
        done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Features: ") == 1
        found[side] = np.load(out)
    for name in ("features", "video", "start", "end"):
        assert np.array_equal(found["one"][name], found["two"][name])


def features(*words: str) -> None:
    assert main(["features", *words]) == 0


def test_a_video_has_the_features_that_probes_see(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "digits.npz"
    source = (
        "data={type: moving_digits, split: test, size: 16, digit_size: 12, num_frames: 4, num_videos: 12}"
    )
    features(str(tiny), source, "-o", str(out))
    table = v.extract(
        v.load(tiny),
        v.MovingDigits(split="test", size=16, digit_size=12, num_frames=4, num_videos=12),
        v.UniformClips(num_frames=4, frame_stride=1, size=16),
        device=torch.device("cpu"),
    )
    found = np.load(out)
    torch.testing.assert_close(torch.from_numpy(found["features"]), table.vectors.mean(1))
    assert tuple(found["video"]) == table.keys
    digits = [table.classes["digit"][number] for number in table.labels["digit"].tolist()]
    assert found["label_digit"].tolist() == digits
    said = capsys.readouterr().out
    assert "12 x 12 float32" in said
    assert said.index("File: ") < said.index("Time: about") < said.index("Features: ")


def test_clips_windows_and_frames_say_when_they_are(tiny: Path, tmp_path: Path) -> None:
    """The long video has 31 frames at 30 fps; a clip is 4 frames 2 apart, and a patch spans 2 of them."""

    def rows(per: str, *words: str) -> list[tuple[float, float]]:
        out = tmp_path / f"{per}.npy"
        features(str(tiny), "videos", VIEWS, "-o", str(out), "--per", per, *words)
        with out.with_suffix(".csv").open() as file:
            table = list(csv.DictReader(file))
        assert np.load(out).shape == (len(table), 12)
        long = [row for row in table if row["video"] == "long.mp4"]
        return [(round(float(row["start"]) * 30, 3), round(float(row["end"]) * 30, 3)) for row in long]

    # starts are the middles of halves of 0 ... 23; the last frame of a clip lasts a thirtieth of a second
    assert rows("clip") == [(6, 13), (18, 25)]
    assert rows("window") == [(0, 7), (8, 15), (16, 23), (24, 31)]
    assert rows("window", "--every", "0.5") == [(0, 7), (15, 22)]
    frames = rows("frame")
    assert frames == [(0, 4), (4, 7), (8, 12), (12, 15), (16, 20), (20, 23), (24, 28), (28, 31)]


def test_a_row_is_what_the_network_says_of_those_frames(tiny: Path, tmp_path: Path) -> None:
    names = ("features", "start", "end")
    features(str(tiny), "videos/long.mp4", VIEWS, "-o", str(tmp_path / "a.safetensors"), "--per", "window")
    features(
        str(tiny), "videos/long.mp4", VIEWS, "-o", str(tmp_path / "b.safetensors"), "--per", "window",
        "--layer", "0", "--tokens", "patches", "--half",
    )  # fmt: skip
    pooled, cells = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert set(pooled) == set(names)
    cut = v.UniformClips(num_frames=4, frame_stride=2, size=16, num_clips=1, starts="end_to_end")
    source = v.VideoFolder(root="videos")
    number = [source.key(index) for index in range(len(source))].index("long.mp4")
    clip = cut.sample(source, number, torch.Generator())["clip"][0].float()[None] / 255
    network = v.load(tiny)
    torch.testing.assert_close(pooled["features"][0], network(clip).pooled()[0].detach())
    _, (first, _) = network.forward_intermediates(clip, output_fmt="NTHWC")
    torch.testing.assert_close(cells["features"][0], first[0].detach().half(), atol=1e-3, rtol=1e-3)


def test_parquet_keeps_names_and_shape(tiny: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "f.parquet"
    features(str(tiny), "videos", VIEWS, "-o", str(out), "--per", "clip", "--tokens", "patches")
    table = parquet.read_table(out)
    assert table.column("video").to_pylist() == [
        name for name in ("long.mp4", "middle.mp4", "short.mp4") for _ in "12"
    ]
    assert json.loads(table.schema.metadata[b"shape"]) == [2, 2, 2, 12]
    assert table.column("features").type.list_size == 96


def test_what_was_begun_goes_on_and_another_plan_begins_anew(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PART_BATCHES", 1)
    out, whole = tmp_path / "stopped.npy", tmp_path / "whole.npy"
    words = [str(tiny), "videos", VIEWS, "--per", "window", "--batch-size", "2"]
    features(*words, "-o", str(whole))
    seen: list[int] = []
    encode: Callable[..., object] = module._encoded

    def stops(*args: object, **keys: object) -> object:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return encode(*args, **keys)

    monkeypatch.setattr(module, "_encoded", stops)
    assert main(["features", *words, "-o", str(out)]) == 130
    assert not out.exists()
    monkeypatch.setattr(module, "_encoded", encode)
    features(*words, "-o", str(out))
    assert "Resumed: 2 of 3 parts" in capsys.readouterr().out
    assert np.array_equal(np.load(out), np.load(whole))
    assert not out.with_name("stopped.npy.parts").exists()
    assert main(["features", *words, "-o", str(tmp_path / "b.npy")]) == 0


def test_a_damaged_video_is_named_and_left_out(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_clip(tmp_path / "own" / "good.mp4", 8)
    (tmp_path / "own" / "bad.mp4").write_bytes(b"no video at all")
    features(str(tiny), str(tmp_path / "own"), VIEWS, "-o", str(tmp_path / "f.npy"), "--per", "clip")
    said = capsys.readouterr().out
    assert "is replaced" not in said
    features(str(tiny), str(tmp_path / "own"), VIEWS, "-o", str(tmp_path / "f.npy"))
    assert "f.npy: is there already, and is replaced" in " ".join(capsys.readouterr().out.split())
    assert "left out: bad.mp4" in said
    assert "(2 rows of 1 video; 1 left out)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("videos", "-o", "f.txt"), "features are written as .npy, .npz, .parquet, .safetensors"),
        (("videos", "-o", "nowhere/f.npy"), "nowhere: no such folder"),
        (("vidoes", "-o", "f.npy"), "vidoes: no such file or folder"),
        (("-o", "f.npy"), "which videos?"),
        (("videos", "-o", "f.npy", "--layer", "7"), "--layer 7: ViT has no such block"),
        (("videos", "-o", "f.npy", "--every", "1"), "--every is for --per window, not --per video"),
        (
            ("videos", VIEWS, "-o", "f.npy", "--tokens", "patches"),
            "--tokens patches has a grid for each clip",
        ),
        (
            ("videos", "views={type: slow_fast}", "-o", "f.npy", "--per", "clip"),
            "the views are of type SlowFast",
        ),
        (
            ("videos", "views={type: uniform_clips, size: 12, num_frames: 4}", "-o", "f.npy"),
            "does not take clips",
        ),
        (("videos", "average=scores", "-o", "f.npy"), "average=scores: this command knows"),
    ],
)
def test_what_does_not_go_is_refused(
    tiny: Path, capsys: pytest.CaptureFixture, words: tuple[str, ...], message: str
) -> None:
    assert main(["features", str(tiny), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
