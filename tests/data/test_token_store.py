"""Videos become ids once: what is stored is what pixels give, and nothing that was finished is lost."""

import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from token_world import FPS, LENGTHS, STORED, fill, first_step, message, token_world
from torch import Tensor

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.sources.listing import groups_of
from vidssl.data.sources.origins import Overlap, shared_videos, videos_of
from vidssl.data.sources.token_store import (
    CROPS,
    StoreReader,
    TokenStore,
    Transform,
    read_info,
    transforms_of,
)
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.crops import resize_short_side
from vidssl.data.views.stored import StoredClip
from vidssl.data.views.times import kept_frames
from vidssl.interfaces import UnreadableSample
from vidssl.tools.tokenize import tokenize as tokenizing, video_tokenizer
from vidssl.tools.tokenize.tokenize import StoreSettings, predicted_frames, purpose_settings


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(token_world(tmp_path_factory.getbasetemp()))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def shards(out: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(out) / "shards").iterdir())}


def same_by_hand(source: VideoFolder, index: int, transform: Transform) -> Tensor:
    """Ids [frame, h, w] of a whole video, one frame at a time."""
    net = build.tokenizer("toy")
    rows = []
    for frame in source.read(index, kept_frames(source.info(index), FPS)):
        pixels = resize_short_side(frame[None], transform.short_side)[0]
        down, right = pixels.shape[1] - 16, pixels.shape[2] - 16
        top, left = {"top": (0, 0), "middle": (down // 2, right // 2), "bottom": (down, right)}[
            transform.crop
        ]
        square = pixels[:, top : top + 16, left : left + 16]
        square = square.flip(2) if transform.flip else square
        rows.append(net.encode(square[None, :, None].float() / 255)[0, 0])
    return torch.stack(rows)


def test_stored_ids_are_those_of_each_frame_under_each_transform() -> None:
    reader, source = StoreReader(Path("twelve")), VideoFolder(root="videos")
    assert reader.info.transforms == transforms_of(16, (1.0, 1.25), CROPS, (False, True))
    assert len(set(reader.info.transforms)) == 12
    stored = videos_of(TokenStore(root="twelve"))
    assert shared_videos(videos_of(source), stored) == Overlap(tuple(LENGTHS), len(LENGTHS), 0)
    for index, video in enumerate(reader.videos):
        assert (video.key, video.labels) == (source.key(index), source.labels(index))
        assert video.num_frames == round(LENGTHS[video.key] / 3)
    assert len(np.unique(reader.all_ids(0))) > 4  # something to be seen
    seen = set()
    for transform in reader.info.transforms:
        ids = reader.ids(3, transform)
        assert torch.equal(torch.from_numpy(ids.astype("int64")), same_by_hand(source, 3, transform))
        seen.add(ids.tobytes())
    assert len(seen) == 12


def test_long_videos_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_tokenizer, "PIECE", 7)
    fill("pieces", "run.workers=1")
    assert shards("pieces") == shards("store")


def test_stores_of_stores_and_pixels_of_stores_are_refused() -> None:
    assert "holds ids already" in message(lambda: fill("again", *STORED))
    assert "holds ids, no pixels" in message(lambda: TokenStore(root="store").read(0, [0]))
    assert "must be of type token_store" in message(
        lambda: StoredClip().sample(VideoFolder(root="videos"), 0, torch.Generator())
    )


def test_finished_shards_stay_and_missing_ones_are_made() -> None:
    shutil.copytree("store", "resumed")
    kept, whole = Path("resumed/shards/00001.ids"), shards("resumed")
    stamp = kept.stat().st_mtime_ns
    Path("resumed/shards/00000.json").unlink()
    with open("resumed/shards/00002.ids", "ab") as file:
        file.write(b"xx")
    Path("resumed/shards/.00000.ids.123.tmp").write_bytes(b"of a process that was killed")
    assert "2 of 3 shards are missing or damaged" in message(lambda: TokenStore(root="resumed"))
    assert "1 of 3 shards is there" in fill("resumed")
    assert shards("resumed") == whole == shards("store")
    assert kept.stat().st_mtime_ns == stamp
    assert "nothing is left to do" in fill("resumed")


@pytest.mark.parametrize(
    ("overrides", "asked", "names"),
    [
        ((), {"fps": 5.0}, "fps"),
        ((), {"flip": "both"}, "transforms"),
        ((), {"videos_per_shard": 3}, "videos_per_shard"),
        (("tokenizer=other",), {}, "tokenizer, tokenizer_keys"),
        (("data.video.source.limit=4",), {}, "source, videos, num_videos"),
    ],
)
def test_a_store_goes_on_only_as_it_was_begun(
    overrides: tuple[str, ...], asked: dict[str, object], names: str
) -> None:
    before = shards("store")
    assert f"another {names} was begun" in message(lambda: fill("store", *overrides, **asked))
    assert shards("store") == before


def test_processes_share_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said = fill("shared")
    assert set(shards("shared")) == {"00001.ids", "00001.json"}
    assert "2 of 3 shards are left to other processes" in said
    monkeypatch.setenv("RANK", "0")
    assert "5 of 5 videos" in fill("shared")
    assert shards("shared") == shards("store")


def test_an_estimate_comes_before_the_first_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    said = fill("estimated").splitlines()
    size = sum(path.stat().st_size for path in Path("estimated/shards").glob("*.ids"))
    found = re.search(r"5 videos, (\d+) frames, 1 transform .*: ([\d.]+) kB; .* are free", said[0])
    assert found, said
    assert float(found[2]) * 1000 == pytest.approx(size, rel=0.01)  # all five were opened
    assert re.search(r"at \d+ frames a second, measured on 3 videos", said[1])
    assert "shard 1/3" in said[2]
    monkeypatch.setattr(tokenizing, "_LOOKED_AT", 2)
    monkeypatch.setattr(tokenizing, "_LOOK_SECONDS", 0.0)
    assert re.search(r"about \d+ frames \(give or take \d+, by 2 of them\)", fill("estimated_by_two"))


def test_predicted_frames_are_near_for_lengths_that_differ_by_class_and_hold_a_few_long_ones() -> None:
    lengths = [30 + number % 7 for number in range(300)] + [900] * 40 + [4000] * 5
    draw, inside = random.Random(0), 0
    for _ in range(200):
        total, spread = predicted_frames(draw.sample(lengths, 60), len(lengths))
        inside += abs(total - sum(lengths)) <= spread
    assert 150 <= inside <= 199  # two standard errors: 95 of 100 if lengths were normal
    assert predicted_frames(lengths, len(lengths)) == (sum(lengths), 0.0)


def test_unreadable_videos_are_listed_and_stay_unreadable_samples() -> None:
    videos = Path("spoilt")
    for key in LENGTHS:
        (videos / key).parent.mkdir(parents=True, exist_ok=True)
        (videos / key).write_bytes((Path("videos") / key).read_bytes())
    (videos / "a/1.mp4").write_bytes(b"no video")
    root = "data.video.source.root=spoilt"
    words = message(lambda: fill("holes", root))
    assert "1 of 5 videos cannot be read" in words
    assert "a/1.mp4" in words
    allowed = "data.max_unreadable_share=0.2"
    said = fill("holes", root, allowed, spot_checks=5)
    assert "unreadable, left out: a/1.mp4" in said
    assert "4 of 5 videos" in said
    store = TokenStore(root="holes")
    assert len(store) == 5
    assert store.labels(1) == {"class": 0}
    with pytest.raises(UnreadableSample, match=r"a/1\.mp4"):
        store.info(1)
    assert torch.equal(
        store.read_ids(2, [0, 5], Transform(16, "middle", False)),
        TokenStore(root="store").read_ids(2, [0, 5], Transform(16, "middle", False)),
    )
    holes = "data.video.source={type: token_store, root: holes}"
    assert first_step(holes, STORED[1], allowed)["loss_mask"] > 1
    (videos / "a/1.mp4").write_bytes((Path("videos") / "a/1.mp4").read_bytes())
    assert "nothing is left" in fill("holes", root, allowed)
    assert "5 of 5" in fill("holes", root, allowed, retry_unreadable=True)
    found = {name: content.replace(b"/spoilt/", b"/videos/") for name, content in shards("holes").items()}
    assert found == shards("store")


def test_ids_that_are_no_longer_those_of_the_video_are_found() -> None:
    shutil.copytree("store", "rotten")
    for path in Path("rotten/shards").glob("*.ids"):
        ids = np.fromfile(path, "<u2")
        ids[::7] ^= 1
        ids.tofile(path)
    assert "of its ids differ from the stored ones" in message(lambda: fill("rotten"))
    fill("rotten", spot_checks=0)


def test_a_full_disk_loses_nothing_that_was_finished() -> None:
    """The limit on a file's size is the operating system's own; ids of the first shard still fit."""
    shutil.copytree("store", "full")
    whole = shards("full")
    sizes = [len(whole[f"0000{shard}.ids"]) for shard in range(3)]
    assert sizes[0] < sizes[1]
    for name in whole:
        (Path("full/shards") / name).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0], hard))
    try:
        words = message(lambda: fill("full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "00001.ids: File too large. Finished shards are kept" in words
    assert shards("full") == {name: whole[name] for name in ("00000.ids", "00000.json")}
    fill("full")
    assert shards("full") == whole


def test_images_are_videos_of_one_frame() -> None:
    from PIL import Image

    Path("images").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"images/{number}.png")
    fill("stills", "data.video.source={type: image_folder, root: images}")
    store = TokenStore(root="stills")
    assert [store.info(index).num_frames for index in range(3)] == [1, 1, 1]


def test_groups_of_a_list_are_kept(tmp_path: Path) -> None:
    keys = list(LENGTHS)[:2]
    (tmp_path / "list.csv").write_text(f"path,class,group\n{keys[0]},a,tape 1\n{keys[1]},b,tape 1\n")
    fill("grouped", f"data.video.source={{type: video_list, root: videos, list: {tmp_path / 'list.csv'}}}")
    assert groups_of(TokenStore(root="grouped"), range(2)) == ("tape 1", "tape 1")


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no token store"), ("{", "damaged"), ('{"format": 9}', "format 9"), ('{"format": 1}', "damaged")],
)
def test_what_is_no_store_is_named(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    assert says in message(lambda: TokenStore(root=str(tmp_path)))


def test_the_papers_settings_are_the_defaults() -> None:
    recipe = load_recipe("toy.yaml")
    assert purpose_settings(recipe, "pretraining") == StoreSettings(2.0, ("middle",), (1.0,), (False,))
    assert purpose_settings(recipe, "finetuning") == StoreSettings(16.0, CROPS, (1.0, 1.25), (False, True))


def test_options_go_before_the_settings_of_a_purpose() -> None:
    words = "--for finetuning --flip no --fps own --crops bottom,top --resize 1.5 --spot-checks 0"
    assert main(["tokenize", "toy.yaml", "--out", "directed", *words.split()]) == 0
    info = read_info(Path("directed"))
    assert (info.fps, info.transforms) == (None, transforms_of(16, (1.5,), ("top", "bottom"), (False,)))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--fps", "0", "expected a finite number above 0, got 0"),
        ("--fps", "fast", "expected a finite number above 0, got fast"),
        ("--crops", "centre", "expected some of top,middle,bottom,far"),
        ("--resize", "0.5", "expected numbers of at least 1"),
        ("--spot-checks", "-1", "expected a whole number of at least 0"),
    ],
)
def test_wrong_settings_are_one_line(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenize", "toy.yaml", "--out", "x", f"{option}={value}"]) == 2
    printed = capsys.readouterr().err
    assert (f"vidssl: {option}: " in printed, says in printed, printed.count("\n")) == (True, True, 1)


def test_the_command_makes_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenize", "toy.yaml", "--out", "commanded", "--fps", "10", "--videos-per-shard", "2"]
    assert main(command) == 0
    assert shards("commanded") == shards("store")
    assert "data.video.views.type=stored_clip_pair" in capsys.readouterr().out
    assert main(["tokenize", "--out", "commanded"]) == 2


def command(*words: str) -> list[str]:
    return [*words, "tokenize", "toy.yaml", "--fps", "10", "--videos-per-shard", "1"]


@pytest.mark.slow
def test_a_process_that_is_killed_loses_one_shard_at_most() -> None:
    out = Path("killed")
    words = [*command(sys.executable, "-m", "vidssl"), "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while not (out / "shards/00001.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = shards(out)
    assert "00001.json" in left
    fill(str(out), videos_per_shard=1)
    fill("unharmed", videos_per_shard=1)
    assert {name: content for name, content in left.items() if not name.startswith(".")}.items() <= (
        shards(out).items()
    )
    assert shards(out) == shards("unharmed")


@pytest.mark.slow
def test_torchrun_splits_the_videos() -> None:
    words = command(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vidssl")
    ended = subprocess.run([*words, "--out", "torchrun"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    fill("alone", videos_per_shard=1)
    assert shards("torchrun") == shards("alone")
