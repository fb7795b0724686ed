"""Probes of stored ids: the features of the same clips' pixels, without pixels or tokenizer."""

import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from token_world import FPS, message, token_world

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.sources.token_store import TokenStore, read_info
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.stored import StoredUniformClips
from vidssl.data.views.uniform import UniformClips
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.evaluators.extract import extract
from vidssl.evaluators.features import in_order
from vidssl.train.run import train_recipe

VIEWS = "{type: uniform_clips, num_clips: 2, num_frames: 4, frame_stride: 2, fps: 10.0, size: 16%s}"
VIDEOS = "{type: video_folder, root: videos}"
STORE = "{type: token_store, root: store}"


def probe(source: str, views: str) -> str:
    return f"data.probe={{train: {source}, test: {held_out(source)}, views: {views}}}"


def held_out(source: str) -> str:
    return source.replace("root: videos", "root: held").replace("root: store", "root: held_store")


PIXELS = probe(VIDEOS, VIEWS % "")
STORED = probe(STORE, (VIEWS % "").replace("uniform", "stored_uniform"))


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(token_world(tmp_path_factory.getbasetemp()))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("starts", ["middles", "end_to_end"])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_test_clips_are_those_that_pixels_give(starts: str, num_crops: int) -> None:
    """Of 43 x 16 pixels an odd number is cut off; the shortest video has two stored frames."""
    keys = {"num_clips": 3, "num_frames": 4, "frame_stride": 3, "fps": FPS, "size": 16}
    keys |= {"starts": starts, "num_crops": num_crops}
    stored, pixels = StoredUniformClips(**keys), UniformClips(**keys)
    assert stored.shapes == pixels.shapes
    store, source, net = TokenStore(root="three"), VideoFolder(root="videos"), build.tokenizer("toy")
    seen = set()
    for index in range(len(source)):
        clips = pixels.sample(source, index, torch.Generator())["clip"]
        ids = stored.sample(store, index, torch.Generator())["clip"]
        assert len(ids) == 3 * num_crops
        for clip, of_clip in zip(clips, ids, strict=True):
            assert torch.equal(net.encode(clip[None].float() / 255)[0], of_clip)
            seen.add(tuple(of_clip.flatten().tolist()))
    assert len(seen) > len(source) * num_crops


def test_features_of_stored_ids_are_those_of_pixels_in_every_order_of_frames() -> None:
    recipe = load_recipe("toy.yaml", ("backbone.init_std=0.3",))
    torch.manual_seed(0)
    network = build.backbone(recipe, say=lambda text: None)
    keys = {"num_clips": 2, "num_frames": 4, "frame_stride": 2, "fps": FPS, "size": 16}
    orders = ("normal", "single", "shuffled", "reversed")
    device = torch.device("cpu")
    of_pixels = extract(
        network,
        VideoFolder(root="videos"),
        UniformClips(**keys),
        tokenizer=build.tokenizer("toy"),
        frames=orders,
        device=device,
    )
    of_ids = extract(
        network, TokenStore(root="store"), StoredUniformClips(**keys), frames=orders, device=device
    )
    assert torch.equal(of_ids.vectors, of_pixels.vectors)
    assert of_ids.keys == of_pixels.keys
    assert torch.equal(of_ids.labels["class"], of_pixels.labels["class"])
    for order in orders[1:]:
        assert torch.equal(of_ids.reordered[order], of_pixels.reordered[order])
        assert not torch.equal(of_ids.reordered[order], of_ids.vectors)


def test_frames_of_ids_are_put_in_order_as_those_of_clips() -> None:
    ids = torch.arange(2 * 5 * 3 * 3).view(2, 5, 3, 3)
    clip = ids[:, None].expand(-1, 3, -1, -1, -1)
    for order in ("normal", "single", "shuffled", "reversed"):
        moved = in_order(ids, order, torch.tensor([4, 9]), draw=1)
        assert torch.equal(moved, in_order(clip, order, torch.tensor([4, 9]), draw=1)[:, 0])


def run(name: str, *overrides: str) -> Path:
    recipe = load_recipe("toy.yaml", (f"name={name}", "backbone.init_std=0.3", *overrides))
    return train_recipe(recipe, Console(quiet=True))[1].folder


def logged(folder: Path, word: str) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[word] for line in lines if word in line]


def test_knn_in_the_course_of_a_run_and_after_it_needs_no_pixels_and_no_tokenizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    knn = ("schedule.steps=2", "run.knn_every_steps=1")
    pixels, stored = run("probed", PIXELS, *knn), run("stored", STORED, *knn)
    assert len(logged(pixels, "knn_class")) == 2
    assert logged(pixels, "knn_class") == logged(stored, "knn_class")
    assert main(["eval", str(pixels), "--protocol", "knn", "evaluator.k=2"]) == 0
    weights = Path("tokenizers/toy.safetensors")
    weights.rename("elsewhere")
    try:
        assert main(["eval", str(stored), "--protocol", "knn", "evaluator.k=2"]) == 0
        change = [
            f"data.train={STORE}",
            f"data.test={held_out(STORE)}",
            f"data.views={VIEWS % ''}".replace("uniform", "stored_uniform"),
        ]
        assert main(["eval", str(pixels), "--protocol", "knn", "evaluator.k=2", *change]) == 0
    finally:
        Path("elsewhere").rename(weights)
    tables = re.findall(r"^. class .*$", capsys.readouterr().out, re.M)
    assert len(tables) == 6  # scores, and what differs between trained and untrained
    assert len(set(tables)) == 2


def test_knn_of_pixels_in_the_course_of_a_run_changes_no_bit_of_it_under_dropout() -> None:
    probed, alone = (
        next(
            (run(name, "backbone.dropout=0.2", "schedule.steps=2", *knn) / "checkpoints").glob(
                "*02.safetensors"
            )
        )
        for name, knn in (("watched", (PIXELS, "run.knn_every_steps=1")), ("alone", ()))
    )
    torch.testing.assert_close(
        read_checkpoint(probed).encoder, read_checkpoint(alone).encoder, atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (probe(STORE, VIEWS % ""), "'uniform_clips' cuts pixels, and the source holds ids"),
        (probe(VIDEOS, (VIEWS % "").replace("uniform", "stored_uniform")), "read stored ids"),
        ("data.probe.views.num_clips=0", "num_clips"),
        (
            "backbone={type: vit, embed_dim: 12, depth: 2, num_heads: 2, patch_size: [1, 4, 4]}",
            "'vit' reads pixels, and data.probe gives stored ids",
        ),
    ],
)
def test_what_does_not_go_with_stored_test_views_is_refused_before_data_is_touched(
    change: str, says: str
) -> None:
    assert says in message(lambda: build.check(load_recipe("toy.yaml", (STORED, change))))


def test_a_store_that_lacks_what_test_views_want_is_refused_in_eval_and_in_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run("refused", STORED)
    for change, says in (
        ("data.views.num_crops=3", "lacks '16 px top', '16 px far'"),
        ("data.views.fps=5", "holds videos at 10 fps, and the views want 5 fps"),
    ):
        assert main(["eval", str(folder), "--protocol", "knn", change]) == 2
        assert says in capsys.readouterr().err
    other = (STORED, "tokenizer=other", "run.knn_every_steps=1")
    assert "was made with another tokenizer" in message(lambda: run("other", *other))
    same = f"data.probe={{train: {VIDEOS}, test: {VIDEOS}, views: {VIEWS % ''}}}"
    assert (
        "data.probe.test: 5 of 5 test videos (a/0.mp4, a/1.mp4, a/2.mp4 and 2 more) are in train"
        in message(lambda: run("same", same, "run.knn_every_steps=1"))
    )


def test_finetuning_is_tested_on_stored_ids_or_refused_before_it_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = run("tuned")
    train = (
        "{type: stored_clip, num_frames: 4, frame_stride: 1, fps: 10.0, size: 16, flip: false, resize: [1.0]"
    )
    words = [
        "eval", str(folder), "--protocol", "vimpac_finetune_ucf101", "compare_untrained=false",
        f"train_views={train}, crops: [middle]}}", "batch_size=4", "run.precision=fp32", "backbone={}",
        "augment=null", "schedule={type: cosine, steps: 1}",
    ]  # fmt: skip
    stored = (VIEWS % "").replace("uniform", "stored_uniform")
    data = [f"data.train={STORE}", f"data.test={held_out(STORE)}"]
    assert main([*words, *data, f"views={VIEWS % ''}"]) == 2
    assert "'uniform_clips' cuts pixels, and the source holds ids" in capsys.readouterr().err
    assert main([*words, *data, f"views={stored}".replace("10.0", "5.0")]) == 2
    assert "holds videos at 10 fps" in capsys.readouterr().err
    assert main([*words, *data, f"views={stored}"]) == 0


def test_videos_of_a_probe_are_tokenized_as_its_views_want_them(capsys: pytest.CaptureFixture[str]) -> None:
    Path("probed.yaml").write_text(
        Path("toy.yaml").read_text().replace("optim:", f"  {PIXELS[5:].replace('=', ': ', 1)}\noptim:")
    )
    crops = "data.probe.views.num_crops=3"
    command = ["tokenize", "probed.yaml", crops, "--videos", "data.probe.test", "--videos-per-shard", "2"]
    assert main([*command, "--out", "tested"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "set data.probe.test='{type: token_store, root: tested}' and data.probe.views.type=stored_uniform"
        in said
    )
    info = read_info(Path("tested"))
    assert (info.fps, info.size) == (10.0, 16)
    assert [(t.short_side, t.crop, t.flip) for t in info.transforms] == [
        (16, crop, False) for crop in ("top", "middle", "far")
    ]
    build.views(load_recipe("probed.yaml", (crops,)).data.probe.views)
    assert main([*command, "--out", "own", "--fps", "own", "--crops", "top"]) == 0
    assert read_info(Path("own")).fps is None
    assert main(["tokenize", "probed.yaml", "--videos", "data.video.test_source", "--out", "x"]) == 2
    assert "there is no data.video.test_source to tokenize" in capsys.readouterr().err
    assert main(["tokenize", "toy.yaml", "--videos", "data.probe.train", "--out", "x"]) == 2
    assert "has no 'probe'" in capsys.readouterr().err
    middles = "data.probe.views={type: segment_middles, num_frames: 4, num_crops: 1, size: 16}"
    assert main(["tokenize", "probed.yaml", middles, "--videos", "data.probe.test", "--out", "x"]) == 2
    assert "test views of stored ids are those of uniform_clips" in capsys.readouterr().err
