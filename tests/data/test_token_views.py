"""Training and testing from stored ids: the same clips, losses and features as from pixels."""

import re
from pathlib import Path

import pytest
import torch
from token_world import FPS, STORED, first_step, message, token_world

from vidssl.build import build
from vidssl.config.recipe import load_recipe
from vidssl.data.sources.token_store import StoreReader, TokenStore
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.stored import StoredClip, StoredClipPair
from vidssl.data.views.vimpac import ClipPair
from vidssl.objectives.parts.masked_prediction import FrozenTokenizer

CLASSES = (
    "masker=null",
    "objective={type: classification, num_classes: 2, head_std: 1.0}",
    "data.video.views={type: %s, num_frames: 2, frame_stride: 1, fps: 10.0, size: 16%s}",
)


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(token_world(tmp_path_factory.getbasetemp()))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


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
    whole = {tuple(reader.ids(0, t)[:16].ravel().tolist()): t for t in reader.info.transforms}
    for views, wanted in (
        (StoredClip(num_frames=16, frame_stride=1, fps=FPS, size=16), 12),
        (StoredClip(num_frames=16, frame_stride=1, fps=FPS, size=16, flip=False), 6),
        (StoredClip(num_frames=16, frame_stride=1, fps=FPS, size=16, crops=("top",), resize=(1.25,)), 2),
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
        num_frames=16, fps=FPS, size=16, resize=(1.0, 1.25), crops=("top", "middle", "bottom"), flip=True
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


def test_an_objective_that_tokenizes_pixels_does_not_take_stored_ids() -> None:
    held = FrozenTokenizer(build.tokenizer("toy"))
    assert "gives stored ids" in message(lambda: held(torch.zeros(1, 4, 4, 4, dtype=torch.int64)))
