"""Videos become ids once: what is stored is what pixels give, and nothing that was finished is lost."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_clips import write_clip
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from vidssl import build
from vidssl.cli import main
from vidssl.data import whole_videos
from vidssl.data.crops import resize_short_side
from vidssl.data.sources import VideoFolder
from vidssl.data.times import kept_frames
from vidssl.data.token_source import TokenStore
from vidssl.data.views_stored import StoredClip, StoredClipPair
from vidssl.data.views_vimpac import ClipPair
from vidssl.engine.token_store import CROPS, StoreReader, Transform, transforms_of
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample
from vidssl.objectives.frozen import FrozenTokenizer
from vidssl.recipe import load_recipe
from vidssl.runs import train_recipe
from vidssl.tokenizers import VQVAE
from vidssl.tokenizing import tokenize, video_tokenizer
from vidssl.tokenizing.request import TokenizeRequest, read_request

LENGTHS = {"a/0.mp4": 60, "a/1.mp4": 45, "a/2.mp4": 70, "b/0.mp4": 50, "b/1.mp4": 6}
FPS = 10.0
RECIPE = """\
name: toy
objective: {type: vimpac, head_layers: 2, head_hidden_dim: 8, head_dim: 4}
backbone: {type: factorized, vocab_size: 8, embed_dim: 8, depth: 2, num_heads: 2, num_frames: 4,
  height: 4, width: 4}
tokenizer: toy
masker: {type: block_3d, num_blocks: 2}
data:
  video:
    source: {type: video_folder, root: videos}
    views: {type: clip_pair, num_frames: 4, fps: 10.0, size: 16}
    batch_size: 4
optim: {type: adamw, lr: 1e-2}
schedule: {type: cosine, steps: 1}
run: {workers: 0, device: cpu, log_every_steps: 1}
"""
STORED = ("data.video.source={type: token_store, root: store}", "data.video.views.type=stored_clip_pair")
CLASSES = (
    "masker=null",
    "objective={type: classification, num_classes: 2, head_std: 1.0}",
    "data.video.views={type: %s, num_frames: 2, frame_stride: 1, fps: 10.0, size: 16%s}",
)


def make_tokenizer(folder: Path, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = VQVAE(vocab_size=8, code_dim=4, width=4, stride=4)
    content = save({key: value.contiguous() for key, value in net.state_dict().items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    (folder / f"{name}.yaml").write_text(
        f"type: vqvae\nvocab_size: 8\ncode_dim: 4\nwidth: 4\nstride: 4\nweights: {name}.safetensors\n"
        f"sha256: {hashlib.sha256(content).hexdigest()}\nsource: a test\nlicence: MIT\n"
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, two tokenizers, a recipe, and the finished stores of one and of twelve transforms."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tokenizers").mkdir()
    make_tokenizer(folder / "tokenizers", "toy", 0)
    make_tokenizer(folder / "tokenizers", "other", 1)
    for key, length in LENGTHS.items():
        write_clip(folder / "videos" / key, length, noise=120)
    (folder / "toy.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill("store")
        fill("twelve", resize=(1.0, 1.25), crops=CROPS, flips=(False, True))
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def fill(out: str, *overrides: str, **asked: object) -> str:
    """What ``vidssl tokenize`` said."""
    console = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    given = {"fps": FPS, "videos_per_shard": 2, **asked}
    with console.file:
        tokenize.tokenize(load_recipe("toy.yaml", overrides), TokenizeRequest(Path(out), **given), console)
    return console.export_text()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def shards(out: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((Path(out) / "shards").iterdir())}


def first_step(*overrides: str) -> dict[str, float]:
    """All that was logged of a run's first step but times."""
    recipe = load_recipe("toy.yaml", overrides)
    _, result = train_recipe(recipe, Console(quiet=True))
    record = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])
    return {name: value for name, value in record.items() if not re.search("second|wait", name)}


def same_by_hand(source: VideoFolder, index: int, transform: Transform) -> Tensor:
    """Ids [frame, h, w] of a whole video, one frame at a time."""
    net = build.tokenizer("toy")
    rows = []
    for frame in kept_frames(source.info(index), FPS):
        pixels = resize_short_side(source.read(index, [frame]), transform.short_side)[0]
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
    monkeypatch.setattr(whole_videos, "PIECE", 7)
    monkeypatch.setattr(video_tokenizer, "PIECE", 7)
    fill("pieces", "run.workers=1")
    assert shards("pieces") == shards("store")


def test_training_from_the_store_gives_the_loss_of_training_from_pixels() -> None:
    # the shortest video is padded in one and held in the other
    readable = "data.video.views={type: clip_pair, num_frames: 2, fps: 10.0, size: 16}"
    pixels = first_step(readable)
    stored = first_step(readable, *STORED)
    assert pixels == stored
    assert pixels["loss_mask"] > 1
    assert pixels["grad_norm"] > 0


def test_classes_are_learned_from_the_store_as_from_pixels() -> None:
    *sections, views = CLASSES
    store = "data.video.source={type: token_store, root: twelve}"
    pixels = first_step(*sections, views % ("corner_clip", ""))
    stored = first_step(*sections, store, views % ("stored_clip", ", flip: false"))
    flipped = first_step(*sections, store, views % ("stored_clip", ""))
    assert pixels == stored
    assert flipped["loss"] != stored["loss"]
    mixing = "objective={type: classification, num_classes: 2, mixup: 0.8}"
    words = message(lambda: first_step(sections[0], mixing, store, views % ("stored_clip", "")))
    assert "mixup" in words
    assert "stored ids" in words


@pytest.mark.parametrize("distance", [None, 0.5])
def test_pairs_are_the_clips_that_pixels_give(distance: float | None) -> None:
    store, source, net = TokenStore(root="store"), VideoFolder(root="videos"), build.tokenizer("toy")
    keys = {"num_frames": 3, "frame_stride": 2, "fps": FPS, "size": 16, "max_distance_seconds": distance}
    for index in range(4):
        for seed in range(4):
            pixels = ClipPair(**keys).sample(source, index, torch.Generator().manual_seed(seed))["clip"]
            stored = StoredClipPair(**keys).sample(store, index, torch.Generator().manual_seed(seed))["clip"]
            for clip, ids in zip(pixels, stored, strict=True):
                assert ids.dtype == torch.int64
                assert torch.equal(net.encode(clip[None].float() / 255)[0], ids)


def test_every_stored_transform_is_drawn_and_those_not_asked_for_never_are() -> None:
    store, reader = TokenStore(root="twelve"), StoreReader(Path("twelve"))
    whole = {tuple(reader.ids(0, t)[:20].ravel().tolist()): t for t in reader.info.transforms}
    for views, wanted in (
        (StoredClip(num_frames=20, frame_stride=1, fps=FPS, size=16), 12),
        (StoredClip(num_frames=20, frame_stride=1, fps=FPS, size=16, flip=False), 6),
        (StoredClip(num_frames=20, frame_stride=1, fps=FPS, size=16, crops=("top",), resize=(1.25,)), 2),
    ):
        drawn = set()
        for seed in range(120):
            (ids,) = views.sample(store, 0, torch.Generator().manual_seed(seed))["clip"]
            drawn.add(whole[tuple(ids.flatten().tolist())])
        assert drawn == set(views.wanted.transforms)
        assert len(drawn) == wanted


def test_one_transform_serves_both_clips_of_a_pair() -> None:
    store = TokenStore(root="twelve")
    views = StoredClipPair(
        num_frames=20, fps=FPS, size=16, resize=(1.0, 1.25), crops=("top", "middle", "bottom"), flip=True
    )
    for seed in range(20):
        first, second = views.sample(store, 0, torch.Generator().manual_seed(seed))["clip"]
        assert torch.equal(first, second)  # all frames of the video


def test_short_videos_end_in_padding() -> None:
    store = TokenStore(root="store")
    first, second = StoredClipPair(num_frames=4, fps=FPS, size=16).sample(store, 4, torch.Generator())["clip"]
    stored = torch.from_numpy(StoreReader(Path("store")).all_ids(4)[0].astype("int64"))
    assert torch.equal(first[:2], stored)
    assert torch.equal(first[2:], torch.full((2, 4, 4), 9))  # the release's place: behind V and one more
    assert torch.equal(first, second)
    backbone = build.backbone(load_recipe("toy.yaml"), say=lambda text: None)
    assert store.pad_id == backbone.pad_id


def test_a_store_of_another_tokenizer_is_refused_with_both_hashes() -> None:
    words = message(lambda: build.streams(load_recipe("toy.yaml", (*STORED, "tokenizer=other"))))
    assert TokenStore(root="store").stored.tokenizer in words
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", words))) == 2
    assert "weights_sha256 differ" in words


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.video.views.fps=2", "holds videos at 10 fps, and the views want 2 fps"),
        ("data.video.views.fps=null", "the views want their own frame rates"),
        ("data.video.views.size=32", "holds squares of 16 pixels, and size is 32"),
        ("data.video.views.flip=true", "lacks '16 px middle flipped'"),
        ("data.video.views.crops=[top]", "it has '16 px middle'"),
    ],
)
def test_a_store_that_lacks_what_views_want_says_what_it_has(change: str, says: str) -> None:
    assert says in message(lambda: build.streams(load_recipe("toy.yaml", (*STORED, change))))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (STORED[:1], "'clip_pair' cuts pixels, and the source holds ids"),
        (STORED[1:], "'stored_clip_pair' read stored ids"),
        ((*STORED, "augment={type: per_clip}"), "changes pixels"),
        (
            (
                *STORED,
                "backbone={type: vit, embed_dim: 12, depth: 2, num_heads: 2, patch_size: [1, 4, 4]}",
            ),
            "'vit' reads pixels, and data.video gives stored ids",
        ),
    ],
)
def test_what_does_not_go_with_stored_ids_is_refused_before_data_is_touched(
    overrides: tuple[str, ...], says: str
) -> None:
    assert says in message(lambda: build.check(load_recipe("toy.yaml", overrides)))


def test_probes_and_other_objectives_do_not_take_stored_ids() -> None:
    store = "{type: token_store, root: store}"
    probe = f"data.probe={{train: {store}, test: {store}, views: %s}}"
    views = "{type: stored_clip, num_frames: 4, fps: 10.0, size: 16}"
    words = message(lambda: build.check(load_recipe("toy.yaml", (probe % views,))))
    assert "'stored_clip' gives stored ids, and test views are taken of pixels" in words
    held = FrozenTokenizer(build.tokenizer("toy"))
    assert "gives stored ids" in message(lambda: held(torch.zeros(1, 4, 4, 4, dtype=torch.int64)))


def test_stores_of_stores_and_pixels_of_stores_are_refused() -> None:
    assert "holds ids already" in message(lambda: fill("again", *STORED))
    assert "holds ids, no pixels" in message(lambda: TokenStore(root="store").read(0, [0]))
    assert "must be of type token_store" in message(
        lambda: StoredClip().sample(VideoFolder(root="videos"), 0, torch.Generator())
    )


def test_finished_shards_stay_and_missing_ones_are_made() -> None:
    fill("resumed")
    kept, whole = Path("resumed/shards/00001.ids"), shards("resumed")
    stamp = kept.stat().st_mtime_ns
    Path("resumed/shards/00000.json").unlink()
    with open("resumed/shards/00002.ids", "ab") as file:
        file.write(b"xx")
    Path("resumed/shards/.00000.ids.123.tmp").write_bytes(b"of a process that was killed")
    assert "2 of 3 shards are missing or damaged" in message(lambda: TokenStore(root="resumed"))
    assert "1 of 3 shards are there" in fill("resumed")
    assert shards("resumed") == whole == shards("store")
    assert kept.stat().st_mtime_ns == stamp
    assert "nothing is left to do" in fill("resumed")


@pytest.mark.parametrize(
    ("overrides", "asked", "names"),
    [
        ((), {"fps": 5.0}, "fps"),
        ((), {"flips": (False, True)}, "transforms"),
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


def test_an_estimate_comes_before_the_first_shard() -> None:
    said = fill("estimated").splitlines()
    size = sum(path.stat().st_size for path in Path("estimated/shards").glob("*.ids"))
    found = re.search(r"5 videos, about (\d+) frames, 1 transforms .*: ([\d.]+) kB; .* are free", said[0])
    assert found, said
    # of five videos all are looked at, some of them more often
    assert float(found[2]) * 1000 == pytest.approx(size, rel=0.3)
    assert re.search(r"at \d+ frames a second, measured on 3 videos", said[1])
    assert "shard 1/3" in said[2]


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
    assert shards("holes") == shards("store")


def test_ids_that_are_no_longer_those_of_the_video_are_found() -> None:
    fill("rotten")
    for path in Path("rotten/shards").glob("*.ids"):
        ids = np.fromfile(path, "<u2")
        ids[::7] ^= 1
        ids.tofile(path)
    assert "of its ids differ from the stored ones" in message(lambda: fill("rotten"))
    fill("rotten", spot_checks=0)


def test_a_full_disk_loses_nothing_that_was_finished() -> None:
    """The limit on a file's size is the operating system's own; ids of the first shard still fit."""
    fill("full")
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


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no token store"), ("{", "damaged"), ('{"format": 9}', "format 9"), ('{"format": 1}', "damaged")],
)
def test_what_is_no_store_is_named(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "store.json").write_text(text)
    assert says in message(lambda: TokenStore(root=str(tmp_path)))


def asked(**given: str) -> TokenizeRequest:
    words: dict[str, str | None] = {"purpose": "pretraining", "fps": None, "resize": None, "crops": None}
    return read_request(
        out="x",
        spot_checks=3,
        videos_per_shard=128,
        retry_unreadable=False,
        **{**words, "flip": None, **given},
    )


def test_the_papers_settings_are_the_defaults() -> None:
    assert asked() == TokenizeRequest(Path("x"), 2.0, (1.0,), ("middle",), (False,))
    tuning = asked(purpose="finetuning")
    assert (tuning.fps, tuning.resize, tuning.crops, tuning.flips) == (
        16.0,
        (1.0, 1.25),
        CROPS,
        (False, True),
    )
    directed = asked(purpose="finetuning", flip="no", fps="own", crops="bottom,top", resize="1.5")
    assert (directed.fps, directed.resize, directed.crops, directed.flips) == (
        None, (1.5,), ("top", "bottom"), (False,),
    )  # fmt: skip
    for wrong in ({"fps": "fast"}, {"fps": "0"}, {"crops": "centre"}, {"resize": "0.5"}):
        message(lambda wrong=wrong: asked(**wrong))


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
