"""``vidssl show``: what is drawn of a run, and of which videos."""

import base64
import hashlib
import io
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.sources.moving_digits import MovingDigits, encode
from vidssl.engine.checkpoint import encoder_prefix, read_checkpoint, save_checkpoint
from vidssl.engine.runfolder import create_run
from vidssl.evaluate.subject import recipe_of, trained_backbone, trained_objective, trained_tokenizer
from vidssl.interfaces import Objective
from vidssl.maskers.bevt import Tube
from vidssl.objectives.bevt import BEVTVideo
from vidssl.tokenizers.dalle import DALLE
from vidssl.tokenizers.vqvae import VQVAE

WORLD = "type: moving_digits, size: 32, digit_size: 24, num_frames: 4, num_videos: 24"
VQ = "type: vqvae, vocab_size: 16, code_dim: 4, width: 8, stride: 8, num_res_blocks: 0"
VIT = "type: vit, embed_dim: 12, depth: 3, num_heads: 2, patch_size: [2, 8, 8], drop_path: 0.9"
IMAGE = f"""
  image:
    source: {{{WORLD}, split: train}}
    test_source: {{{WORLD}, split: test}}
    views: {{type: single_image, size: 32}}
    batch_size: 4"""
VIDEO = f"""
  video:
    source: {{{WORLD}, split: train}}
    test_source: {{{WORLD}, split: test}}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 32}}
    batch_size: 4"""
PAIR = VIDEO.replace("single_clip, ", "clip_pair, fps: null, ")
PROBE = f"""
  probe:
    train: {{{WORLD}, split: train}}
    test: {{{WORLD}, split: test}}
    views: {{type: uniform_clips, num_frames: 2, frame_stride: 1, size: 32}}"""
END = """
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 1}
run: {workers: 0, device: cpu}
"""
MASKED = f"backbone: {{{VIT}}}\ntokenizer: mine.yaml\nmasker: {{type: tube, min_block: 2}}\n"
CONTRAST = "objective: {type: vimpac_contrast, head_hidden_dim: 8, head_dim: 4}\n"
RECIPES = {
    "tokenizer": f"objective: {{type: tokenizer}}\ntokenizer: {{{VQ}}}\ndata:{IMAGE}{END}",
    "bevt": f"objective: {{type: bevt}}\n{MASKED}data:{VIDEO}{IMAGE}{PROBE}{END}",
    "bevt_image": f"objective: {{type: bevt_image}}\n{MASKED}data:{IMAGE}{END}",
    "vimpac": "objective: {type: vimpac, head_hidden_dim: 8, head_dim: 4}\n"
    "backbone: {type: factorized, vocab_size: 16, num_frames: 4, height: 4, width: 4, embed_dim: 8, depth: 1,"
    f" num_heads: 2}}\ntokenizer: mine.yaml\nmasker: {{type: block_3d}}\ndata:{PAIR}{END}",
    "looks": f"{CONTRAST}backbone: {{{VIT}, class_token: true}}\ndata:{PAIR}{PROBE}{END}",
    "timesformer": f"{CONTRAST}backbone: {{type: timesformer, embed_dim: 12, depth: 2, num_heads: 3, "
    f"patch_size: 8, num_frames: 4, size: 32}}\ndata:{PAIR}{END}",
    "no_token": f"{CONTRAST}backbone: {{{VIT}}}\ndata:{PAIR}{END}",
    "swin": f"{CONTRAST}backbone: {{type: video_swin, embed_dim: 8, depths: [1, 1], num_heads: [1, 1], "
    f"window: [2, 4, 4]}}\ndata:{PAIR}{END}",
    "no_videos": f"{CONTRAST}backbone: {{{VIT}, class_token: true}}\ndata:"
    + PAIR.replace(f"\n    test_source: {{{WORLD}, split: test}}", "")
    + END,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a tokenizer and a run of every recipe, all of them of random weights."""
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name, text in RECIPES.items():
            Path(f"{name}.yaml").write_text(f"name: {name}{chr(10)}{text}")
            recipe = load_recipe(f"{name}.yaml")
            torch.manual_seed(0)
            objective = build.objective(recipe, say=lambda line: None)
            run = create_run(Path("runs"), name, resolved_text(recipe))
            save_checkpoint(run.checkpoint_path(7), objective, step=7, recipe=resolved_text(recipe))
            if name == "tokenizer":
                weights = run.checkpoint_path(7)
                digest = hashlib.sha256(weights.read_bytes()).hexdigest()
                Path("mine.yaml").write_text(
                    f"{VQ.replace(', ', chr(10))}\nweights: {weights}\nsha256: {digest}\n"
                    "source: x\nlicence: y\n"
                )
    return path


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def drawn(run: str, what: str, *words: str) -> Image.Image:
    """The sheet that the command leaves in the run's folder."""
    assert main(["show", f"runs/{run}", "--what", what, *words]) == 0
    with Image.open(f"runs/{run}/pictures/{what}-step-000007.png") as sheet:
        return sheet.convert("RGB")


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


# the command


def test_clips_of_a_run_lie_beside_its_other_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "runs/looks", "--what", "clips", "--videos", "1"]) == 0
    assert "Picture: runs/looks/pictures/clips-looks-probe-test.png" in capsys.readouterr().out
    assert Path("runs/looks/pictures/clips-looks-probe-test.png").is_file()


@pytest.mark.parametrize("run", ["looks", "timesformer"])
def test_attention_is_drawn_of_a_run_as_a_sheet_and_an_animation(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    sheet = drawn(run, "attention", "--videos", "2")
    said = capsys.readouterr().out
    assert f"Picture: runs/{run}/pictures/attention-step-000007.png" in said
    assert f"Picture: runs/{run}/pictures/attention-step-000007.webp" in said
    heads, rows = {"looks": 2, "timesformer": 3}[run], 4
    assert sheet.height > 96 * (rows + heads)
    with Image.open(f"runs/{run}/pictures/attention-step-000007.webp") as moving:
        # the run with a probe is shown on the probe's views of two frames
        assert moving.n_frames == {"looks": 2, "timesformer": 4}[run]


@pytest.mark.parametrize(("run", "rows"), [("bevt", 5), ("vimpac", 5)])
def test_what_was_predicted_is_drawn_of_a_run(run: str, rows: int) -> None:
    sheet = drawn(run, "reconstruction", "--videos", "2")
    assert sheet.height > 2 * rows * 96
    with Image.open(f"runs/{run}/pictures/reconstruction-step-000007.webp") as moving:
        assert moving.n_frames == 4  # the views that it learned from, not the probe's


@pytest.mark.slow
def test_a_page_has_moving_clips_neighbours_and_a_map_and_says_what_it_lacks() -> None:
    """Two runs: one that fills in what is hidden, one with a class token."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    for run in ("bevt", "looks"):
        assert main(["eval", f"runs/{run}", "--protocol", "knn"]) == 0
    assert main(["report", "runs/bevt", "runs/looks", "-o", "page.html"]) == 0
    parts = Path("page.html").read_text().split("<h2>")[1:]
    sections = {part.partition("<")[0]: part for part in parts}
    for title, frames, lacks in (
        ("Clips: what was hidden, and what was filled in", [4], "looks: .* predicts nothing that is hidden"),
        ("Clips: where the class token looks", [2], r"bevt: .*\(class_token: false\)"),
        ("Nearest neighbours of test videos", [2, 2], ""),
    ):
        drawn = re.findall(r'src="data:image/webp;base64,([^"]+)"', sections[title])
        opened = [Image.open(io.BytesIO(base64.b64decode(data))) for data in drawn]
        assert [picture.n_frames for picture in opened] == frames, title
        assert min(min(picture.size) for picture in opened) > 160
        assert re.search(lacks, sections[title])
    assert sections["Map of test videos"].count("<svg") == 2 * 5  # labels
    assert sections["Confusion"].count("data:image/webp") == 2 * 5


def test_single_images_stand_side_by_side_and_do_not_move() -> None:
    for run, rows in (("bevt_image", 5), ("tokenizer", 2)):
        sheet = drawn(run, "reconstruction")
        assert 8 * 96 < sheet.width < 11 * 96
        assert rows * 96 < sheet.height < (rows + 1) * 96 + 100
        assert not Path(f"runs/{run}/pictures/reconstruction-step-000007.webp").exists()


def test_a_tokenizer_file_is_drawn_on_moving_digits_or_on_what_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = partial(MovingDigits, num_videos=5)
    monkeypatch.setattr("vidssl.pictures.clips.MovingDigits", few)
    assert main(["show", "mine.yaml", "--what", "reconstruction", "--videos", "1"]) == 0
    with Image.open("pictures/reconstruction-mine.webp") as moving:
        assert moving.n_frames == 8
    views = "views={type: uniform_clips, num_frames: 3, frame_stride: 1, size: 16}"
    data = f"data={{{WORLD}, split: test}}"
    words = ["mine.yaml", "--what", "reconstruction", "--videos", "1", data, views, "--out", "small"]
    assert main(["show", *words]) == 0
    with Image.open("small/reconstruction-mine.webp") as moving:
        assert moving.n_frames == 3


def test_video_files_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    frames = torch.zeros(6, 40, 48, 3, dtype=torch.uint8)
    frames[..., 0] = 200
    for name in ("red.mp4", "again.mp4"):
        Path(name).write_bytes(encode(frames.numpy(), "mpeg4"))
    words = ("--video", "red.mp4", "--video", "again.mp4", "--out", "red")
    assert main(["show", "runs/looks", "--what", "attention", *words]) == 0
    with Image.open("red/attention-step-000007.png") as sheet:
        red = [count for count, (r, g, b) in sheet.getcolors(1 << 24) or [] if r > 170 and g < 30 and b < 30]
    assert sum(red) >= 2 * 2 * 96 * 96  # two videos of two frames
    own = Path("runs/looks/pictures/attention-step-000007.png")
    assert main(["show", "runs/looks", "--what", "attention"]) == 0
    before = own.read_bytes()
    for words, name in (
        (("--video", "red.mp4"), "red"),
        ((f"data={{{WORLD}, split: test}}", "--videos", "1"), "data"),
    ):
        assert main(["show", "runs/looks", "--what", "attention", *words]) == 0
        assert own.with_name(f"attention-step-000007-{name}.png").is_file()
    assert own.read_bytes() == before
    capsys.readouterr()
    words = ("runs/looks", "--what", "attention", "--video", "nothing.mp4")
    assert "nothing.mp4: the file does not exist" in fails(capsys, *words)


def test_pictures_follow_from_the_run_alone() -> None:
    for run, what in (("bevt", "reconstruction"), ("looks", "attention")):
        files = [Path(f"runs/{run}/pictures/{what}-step-000007.{kind}") for kind in ("png", "webp")]
        main(["show", f"runs/{run}", "--what", what, "--videos", "1"])
        first = [file.read_bytes() for file in files]
        torch.manual_seed(123)
        main(["show", f"runs/{run}", "--what", what, "--videos", "1"])
        assert first == [file.read_bytes() for file in files]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("runs/swin", "'video_swin' does not expose its class token's attention; these do: timesformer, vit"),
        ("runs/no_token", "class_token: false"),
        ("runs/tokenizer", "trained a tokenizer, which has no class token"),
        ("mine.yaml", "has no class token: --what reconstruction"),
        ("runs/no_videos", "names no held-out videos: name some, data="),
        ("runs", "a folder, but not that of a run"),
        ("runs/nothing", "no such run or file. Runs: "),
        ("python.safetensors", "was trained without a recipe"),
        ("runs/looks dta=x", "unknown key. Did you mean 'data'?"),
        ("runs/looks data.type=video_folder data.root=nowhere", "nowhere"),
        ("runs/looks --video a.mp4 data.type=video_folder", "leave out one of the two"),
        ("runs/looks views.type=uniform_clips views.size=30", "whole multiples of (2, 8, 8)"),
        ("runs/looks views.type=stored_clip", "learned from stored ids, and pictures are drawn of pixels"),
        ("runs/looks runs/bevt", "show takes one run"),
        ("runs/looks --videos 0", "--videos: expected a whole number of at least 1"),
        ("runs/looks --videos 1 --out bevt.yaml/x", "name another with --out"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == "python.safetensors":
        save_checkpoint(Path(words), _python_objective(), step=1, recipe="")
    assert says in fails(capsys, *words.split(), "--what", "attention")


def test_an_objective_that_predicts_nothing_is_refused_with_those_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = fails(capsys, "runs/looks", "--what", "reconstruction")
    assert "'vimpac_contrast' predicts nothing that is hidden; these do: bevt, bevt_image" in said
    assert ", svt" not in said


def test_what_to_draw_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--what" in fails(capsys, "runs/looks")
    assert "invalid choice: 'dreams'" in fails(capsys, "runs/looks", "--what", "dreams")


def test_a_tokenizer_without_a_decoder_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bare = DALLE(vocab_size=8, width=4, num_blocks=1, with_decoder=False)
    save_file(bare.state_dict(), "bare.safetensors")
    digest = hashlib.sha256(Path("bare.safetensors").read_bytes()).hexdigest()
    Path("bare.yaml").write_text(
        "type: dalle\nvocab_size: 8\nwidth: 4\nnum_blocks: 1\nwith_decoder: false\n"
        f"weights: bare.safetensors\nsha256: {digest}\nsource: x\nlicence: y\n"
    )
    words = ("bare.yaml", "--what", "reconstruction", f"data={{{WORLD}, split: test}}")
    views = "views={type: uniform_clips, num_frames: 2, frame_stride: 1, size: 32}"
    assert "bare.yaml: this DALL-E tokenizer has no decoder" in fails(capsys, *words, views)


# whose weights


@pytest.mark.parametrize("name", ["bevt", "vimpac", "timesformer", "tokenizer"])
def test_what_is_drawn_has_the_weights_of_the_checkpoint(name: str) -> None:
    checkpoint = read_checkpoint(Path(f"runs/{name}/checkpoints/step-000007.safetensors"))
    recipe = recipe_of(checkpoint, "")
    part = trained_tokenizer if name == "tokenizer" else trained_backbone
    for key, value in part(recipe, checkpoint).state_dict().items():
        assert torch.equal(value, checkpoint.encoder[key]), key
    objective = trained_objective(recipe, checkpoint, lambda text: None)
    state, prefix = objective.state_dict(), encoder_prefix(objective)
    given = {f"{prefix}{key}": value for key, value in checkpoint.encoder.items()} | checkpoint.objective
    assert state.keys() == given.keys()
    assert all(torch.equal(state[key], given[key]) for key in given)


def _python_objective() -> Objective:
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
    return BEVTVideo(net, VQVAE(vocab_size=16, code_dim=4, width=8, num_res_blocks=0), Tube(min_block=2))
