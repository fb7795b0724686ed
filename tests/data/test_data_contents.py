"""What is decoded from memory comes out, and fails, as it does from a file."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from data_clips import write_clip, write_sound
from PIL import Image

from vidssl.data.decode.content import Content
from vidssl.data.decode.decode import probe, read_frames
from vidssl.data.decode.decoders import TorchCodec, why_unusable
from vidssl.data.decode.images import read_image
from vidssl.interfaces import UnreadableSample


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mpg"])
def test_content_gives_what_its_file_gives(tmp_path: Path, suffix: str) -> None:
    codec = {".avi": "mpeg4", ".mpg": "mpeg2video"}.get(suffix, "libx264")
    path = write_clip(tmp_path / f"clip{suffix}", 20, codec=codec)
    content = Content(f"shard/clip{suffix}", path.read_bytes())
    facts = probe(content)
    assert facts == probe(path)
    assert torch.equal(read_frames(content, [13, 2, 13], facts), read_frames(path, [13, 2, 13], facts))
    with pytest.raises(ValueError, match=rf"^shard/clip{suffix}: frame numbers must be"):
        read_frames(content, [20], facts)


@pytest.mark.parametrize("spoil", ["empty", "text", "zeros", "cut", "noise", "sound"])
def test_content_that_cannot_be_read_is_told_as_its_file_is(tmp_path: Path, spoil: str) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20)
    if spoil == "sound":
        path = write_sound(tmp_path / "clip.mp4")
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not found, sorry\n" * 9,
            "zeros": bytes(999),
            "cut": content[: len(content) // 2],
            "noise": random.Random(0).randbytes(999),
            "sound": content,
        }[spoil]
    )
    with pytest.raises(UnreadableSample) as of_file:
        probe(path)
    with pytest.raises(UnreadableSample) as of_content:
        probe(Content("key.mp4", path.read_bytes()))
    assert of_content.value.key == "key.mp4"
    assert of_content.value.reason == of_file.value.reason


def test_content_is_not_read_from_the_file_that_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    with pytest.raises(UnreadableSample):
        probe(Content(str(path), b"\xff\xd8 is no picture"))


def test_an_image_from_memory_is_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    assert torch.equal(read_image(Content("a.png", path.read_bytes()), "a"), read_image(path, "a"))
    with pytest.raises(UnreadableSample, match=r"^a: the file is empty"):
        read_image(Content("a.png", b""), "a")
    with pytest.raises(UnreadableSample, match=r"^a: the image is truncated or damaged"):
        read_image(Content("a.png", path.read_bytes()[:2000]), "a")


@pytest.mark.skipif(bool(why_unusable("cpu")), reason="torchcodec does not decode here")
def test_torchcodec_decodes_from_memory(tmp_path: Path, caplog) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20)
    content, facts = Content("clip.mp4", path.read_bytes()), probe(path)
    given = TorchCodec("cpu").read(content, [13, 2], facts)
    assert torch.equal(given, TorchCodec("cpu").read(path, [13, 2], facts))
    assert caplog.text == ""
