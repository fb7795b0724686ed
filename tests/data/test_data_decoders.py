"""PyAV and torchcodec behind one interface: the same frames, or the other's; never wrong ones."""

import json
import logging
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_clips import damage_middle, number_shown, turn_clip, write_clip

from vidssl.data.decode import decoders
from vidssl.data.decode.decode import probe
from vidssl.data.decode.decoders import PyAV, TorchCodec, choose_decoder, why_unusable
from vidssl.data.loader import iterate_once
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.random import SingleImage
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample

CLIPS = os.environ.get("VIDSSL_CLIPS")
needs_clips = pytest.mark.skipif(not CLIPS, reason="VIDSSL_CLIPS does not name the folder of real clips")
WHY_NOT = why_unusable("cpu")
needs_torchcodec = pytest.mark.skipif(bool(WHY_NOT), reason=f"torchcodec: {WHY_NOT}")

# file name, codec, what else the writer is told, whether torchcodec itself reads it
KINDS = {
    "h264 with B-frames": ("a.mp4", "libx264", {}, True),
    "h264 of open groups": (
        "a.mp4",
        "libx264",
        {"options": {"sc_threshold": "0", "x264-params": "open-gop=1:bframes=2:b-adapt=0"}},
        True,
    ),
    "hevc of open groups": ("a.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}, True),
    "variable rate": ("a.mp4", "libx264", {"times": [n + n // 4 * 3 for n in range(60)]}, True),
    "start far from zero": ("a.mp4", "libx264", {"times": [n + 5000 for n in range(60)]}, True),
    "matroska": ("a.mkv", "libx264", {}, True),
    "mpeg-4 avi": ("a.avi", "mpeg4", {"max_b_frames": 0}, True),
    "avi with B-frames": ("a.avi", "mpeg4", {}, False),
    "mpeg program stream": ("a.mpg", "mpeg2video", {}, False),
}


def fake_torchcodec(monkeypatch: pytest.MonkeyPatch, decoder: type) -> None:
    """Puts a decoder in the place of torchcodec's, installed or not."""
    module = SimpleNamespace(VideoDecoder=decoder)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=module))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    why_unusable.cache_clear()


class Honest:
    """What torchcodec gives, made with PyAV, and a handle on each thing that may be wrong with it."""

    length = 0  # more than there are
    shift = 0  # of frames
    late = 0.0  # seconds
    turned_back = False
    fails: Exception | None = None

    def __init__(
        self, path: str, *, seek_mode: str, num_ffmpeg_threads: int, device: str, dimension_order: str
    ):
        assert (seek_mode, num_ffmpeg_threads, dimension_order) == ("exact", 1, "NCHW")
        self.path, self.facts = Path(path), probe(Path(path))
        self.cpu_fallback = ""

    def __len__(self) -> int:
        return self.facts.num_frames + self.length

    def get_frames_at(self, numbers: list[int]) -> SimpleNamespace:
        if self.fails:
            raise self.fails
        data = PyAV().read(self.path, [(n + self.shift) % self.facts.num_frames for n in numbers], self.facts)
        seconds = [self.facts.pts[number] * self.facts.tick_seconds + self.late for number in numbers]
        return SimpleNamespace(
            data=data.flip(-1) if self.turned_back else data,
            pts_seconds=torch.tensor(seconds, dtype=torch.float64),
        )


@pytest.fixture(autouse=True)
def _probe_anew():
    yield
    why_unusable.cache_clear()


@needs_torchcodec
@pytest.mark.parametrize("kind", KINDS)
def test_torchcodec_finds_every_frame_by_its_number(tmp_path: Path, kind: str, monkeypatch) -> None:
    name, codec, how, by_itself = KINDS[kind]
    path = write_clip(tmp_path / name, 60, codec=codec, **how)
    facts = probe(path)
    numbers = random.Random(0).sample(range(60), 12)
    asked = []
    real = decoders.read_frames
    monkeypatch.setattr(decoders, "read_frames", lambda *given: asked.append(given) or real(*given))
    clip = TorchCodec("cpu").read(path, numbers, facts)
    assert [number_shown(frame) for frame in clip] == numbers
    assert (asked == []) == by_itself


@needs_torchcodec
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_torchcodec_and_pyav_turn_alike(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "a.mp4", 8)
    turn_clip(path, degrees)
    facts = probe(path)
    one, other = (decoder.read(path, [5, 2], facts) for decoder in (PyAV(), TorchCodec("cpu")))
    assert one.shape == other.shape
    assert (one.int() - other.int()).abs().max() <= 2


@needs_torchcodec
def test_torchcodec_is_chosen_by_name_and_by_auto() -> None:
    assert choose_decoder("auto").name == choose_decoder("torchcodec").name == "torchcodec"


def test_without_torchcodec_auto_is_pyav_and_torchcodec_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    why_unusable.cache_clear()
    assert choose_decoder("auto").name == "pyav"
    with pytest.raises(UsageError, match=r"is of no use here: it is not installed.*vidssl\[torchc"):
        choose_decoder("torchcodec")


def test_torchcodec_without_ffmpeg_is_found_out_by_decoding(monkeypatch) -> None:
    class NoLibraries:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("Could not load libtorchcodec.\nA long story follows")

    fake_torchcodec(monkeypatch, NoLibraries)
    assert choose_decoder("auto").name == "pyav"
    with pytest.raises(UsageError, match=r"of no use here: Could not load libtorchcodec\. To mend it"):
        choose_decoder("torchcodec")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_decoder_of_a_gpu_needs_a_gpu() -> None:
    with pytest.raises(UsageError, match="torchcodec_cuda is of no use here: torch sees no CUDA device"):
        choose_decoder("torchcodec_cuda")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"length": 1}, "counts another number of frames"),
        ({"shift": 1}, "gives other frames"),
        ({"late": 0.04}, "timestamps are those of other frames"),
        ({"turned_back": True}, "does not turn rotated videos"),
    ],
)
def test_a_decoder_that_is_wrong_about_the_small_clip_is_refused(monkeypatch, wrong: dict, said: str) -> None:
    fake_torchcodec(monkeypatch, Honest)
    assert why_unusable("cpu") == ""
    fake_torchcodec(monkeypatch, type("Wrong", (Honest,), wrong))
    assert said in why_unusable("cpu")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"length": 1}, "it counts another number of frames"),
        ({"late": 1 / 30}, "its timestamps are those of other frames"),
        ({"fails": RuntimeError("no such thing\nmore")}, "no such thing)"),
        ({"fails": IndexError("frame 5")}, "frame 5"),
    ],
)
def test_what_disagrees_with_the_file_is_read_by_pyav_and_said_once(
    tmp_path: Path, monkeypatch, caplog, wrong: dict, said: str
) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    facts = probe(path)
    fake_torchcodec(monkeypatch, type("Wrong", (Honest,), wrong))
    decoder = TorchCodec("cpu")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [number_shown(frame) for frame in decoder.read(path, [7, 2], facts)] == [7, 2]
    (message,) = caplog.messages
    assert message.startswith(f"{path} and files like it are read by PyAV: torchcodec is not exact there")
    assert said in message


def test_memory_that_runs_out_is_no_reason_to_take_another_decoder(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    fake_torchcodec(monkeypatch, type("Full", (Honest,), {"fails": torch.OutOfMemoryError("full")}))
    with pytest.raises(torch.OutOfMemoryError):
        TorchCodec("cpu").read(path, [1], probe(path))


def test_the_decoder_of_a_gpu_is_refused_in_a_worker(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    monkeypatch.setattr(decoders, "get_worker_info", lambda: "a worker")
    with pytest.raises(UsageError, match=r"set run\.workers=0"):
        TorchCodec("cuda").read(path, [1], probe(path))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_user_can_mend_is_one_line_even_from_a_worker(tmp_path: Path, monkeypatch, workers) -> None:
    write_clip(tmp_path / "a.mp4", 5)
    source = VideoFolder(root=str(tmp_path))
    monkeypatch.setattr(source, "_decoder", TorchCodec("cuda"))
    monkeypatch.setattr(decoders, "get_worker_info", lambda: "a worker")
    passed = iterate_once(source, SingleImage(size=16), batch_size=1, workers=workers, unreadable=print)
    with pytest.raises(UsageError, match=r"^decoder torchcodec_cuda decodes in .*: set run\.workers=0$"):
        next(passed)


@pytest.mark.parametrize("name", ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)])
def test_every_decoder_says_the_same_of_what_cannot_be_read(tmp_path: Path, name) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, gop=6, noise=60, container_options={"movflags": "faststart"})
    damage_middle(path)
    facts = probe(path)
    decoder = choose_decoder(name)
    with pytest.raises(UnreadableSample, match=r"damaged: \d+ of the 60 frames it promises can be decoded"):
        decoder.read(path, range(60), facts)
    for wrong in ([], [-1], [60]):
        with pytest.raises(ValueError, match="frame numbers must be at least 0 and below 60"):
            decoder.read(path, wrong, facts)


@needs_torchcodec
def test_a_source_reads_with_the_decoder_of_its_key(tmp_path: Path, monkeypatch) -> None:
    write_clip(tmp_path / "run" / "a.mp4", 20)
    source = VideoFolder(root=str(tmp_path), decoder="torchcodec")
    monkeypatch.setattr(decoders, "read_frames", None)
    assert [number_shown(frame) for frame in source.read(0, [7, 19])] == [7, 19]


@needs_clips
@needs_torchcodec
def test_real_clips_give_the_frames_asked_for_as_with_pyav() -> None:
    root = Path(CLIPS or "")
    means = json.loads((root / "frame_means.json").read_text())
    assert len(means) == 28
    # ten bits and odd sizes are rounded otherwise by other FFmpegs: 0.11, as the clips' page says
    decoder = choose_decoder("torchcodec")
    for file, expected in means.items():
        facts = probe(root / file)
        numbers = random.Random(file).sample(range(len(expected)), min(len(expected), 8))
        clip = decoder.read(root / file, numbers, facts).float().mean(dim=(1, 2, 3))
        tolerance = 0.11 if "10bit" in file or "odd" in file else 0.0101
        assert np.allclose(clip, [expected[number] for number in numbers], atol=tolerance), file


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_of_a_gpu_finds_every_frame_by_its_number(tmp_path: Path, kind: str) -> None:
    if why_unusable("cuda"):
        pytest.skip(why_unusable("cuda"))
    name, codec, how, _ = KINDS[kind]
    path = write_clip(tmp_path / name, 60, codec=codec, **{**how, "height": 96})
    numbers = random.Random(0).sample(range(60), 12)
    clip = choose_decoder("torchcodec_cuda").read(path, numbers, probe(path))
    assert clip.device.type == "cpu"
    assert [number_shown(frame) for frame in clip] == numbers
