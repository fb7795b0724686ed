"""``vidssl show``: what is drawn of a run, and of which videos."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vidssl import build
from vidssl.backbones import Factorized, ViT
from vidssl.cli import main
from vidssl.data.moving_digits import MovingDigits, encode
from vidssl.data.video_files import VideoFiles
from vidssl.data.views_uniform import UniformClips
from vidssl.drawings import HIDDEN, attention_drawing, prediction_drawing, strips_of, tokenizer_drawing
from vidssl.engine.checkpoint import encoder_prefix, read_checkpoint, save_checkpoint
from vidssl.engine.runfolder import create_run
from vidssl.errors import UsageError
from vidssl.interfaces import (
    Backbone,
    Batch,
    ClassAttention,
    FilledIn,
    MaskedPrediction,
    Objective,
    Progress,
    SampleInfo,
    Tokenizer,
    UnreadableSample,
)
from vidssl.maskers import Tube
from vidssl.objectives import BEVT, VIMPAC, BEVTImage, BEVTVideo, VIMPACPredict
from vidssl.picture_clips import Clips, draw_clips
from vidssl.pictures import as_frames, heat_over
from vidssl.recipe import load_recipe
from vidssl.resolved import resolved_text
from vidssl.tokenizers import VQVAE
from vidssl.tokenizers.dalle import DALLE
from vidssl.trained import recipe_of, trained_backbone, trained_objective, trained_tokenizer

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
        patch.setenv("VIDSSL_CACHE", str(path / "cache"))
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
    monkeypatch.setenv("VIDSSL_CACHE", str(folder / "cache"))


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


def clips(count: int = 2, frames: int = 4, size: int = 32) -> Clips:
    pixels = torch.rand(count, 3, frames, size, size, generator=torch.Generator().manual_seed(0))
    return Clips(pixels, tuple(f"video {i}" for i in range(count)))


class Flat(Tokenizer):
    """Every id is a flat grey of its own."""

    vocab_size = 256
    strides = (1, 8, 8)

    def encode(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        grey = ids.float().div(255).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return grey.unsqueeze(1).expand(-1, 3, -1, -1, -1)


# the command


@pytest.mark.parametrize("run", ["looks", "timesformer"])
def test_attention_is_drawn_of_a_run_as_a_sheet_and_an_animation(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    sheet = drawn(run, "attention", "--videos", "2")
    said = capsys.readouterr().out
    assert f"Picture: runs/{run}/pictures/attention-step-000007.png" in said
    assert f"Picture: runs/{run}/pictures/attention-step-000007.gif" in said
    heads, rows = {"looks": 2, "timesformer": 3}[run], 4
    assert sheet.height > 96 * (rows + heads)
    with Image.open(f"runs/{run}/pictures/attention-step-000007.gif") as gif:
        # the run with a probe is shown on the probe's views of two frames
        assert gif.n_frames == {"looks": 2, "timesformer": 4}[run]


@pytest.mark.parametrize(("run", "rows"), [("bevt", 5), ("vimpac", 5)])
def test_what_was_predicted_is_drawn_of_a_run(run: str, rows: int) -> None:
    sheet = drawn(run, "reconstruction", "--videos", "2")
    assert sheet.height > 2 * rows * 96
    with Image.open(f"runs/{run}/pictures/reconstruction-step-000007.gif") as gif:
        assert gif.n_frames == 4  # the views that it learned from, not the probe's


def test_single_images_stand_side_by_side_and_do_not_move() -> None:
    for run, rows in (("bevt_image", 5), ("tokenizer", 2)):
        sheet = drawn(run, "reconstruction")
        assert 8 * 96 < sheet.width < 11 * 96
        assert rows * 96 < sheet.height < (rows + 1) * 96 + 100
        assert not Path(f"runs/{run}/pictures/reconstruction-step-000007.gif").exists()


def test_a_tokenizer_file_is_drawn_on_moving_digits_or_on_what_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = partial(MovingDigits, num_videos=5)
    monkeypatch.setattr("vidssl.picture_clips.MovingDigits", few)
    assert main(["show", "mine.yaml", "--what", "reconstruction", "--videos", "1"]) == 0
    with Image.open("pictures/reconstruction-mine.gif") as gif:
        assert gif.n_frames == 8
    views = "views={type: uniform_clips, num_frames: 3, frame_stride: 1, size: 16}"
    data = f"data={{{WORLD}, split: test}}"
    words = ["mine.yaml", "--what", "reconstruction", "--videos", "1", data, views, "--out", "small"]
    assert main(["show", *words]) == 0
    with Image.open("small/reconstruction-mine.gif") as gif:
        assert gif.n_frames == 3


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
    capsys.readouterr()
    words = ("runs/looks", "--what", "attention", "--video", "nothing.mp4")
    assert "nothing.mp4: the file does not exist" in fails(capsys, *words)


def test_pictures_follow_from_the_run_alone() -> None:
    for run, what in (("bevt", "reconstruction"), ("looks", "attention")):
        files = [Path(f"runs/{run}/pictures/{what}-step-000007.{kind}") for kind in ("png", "gif")]
        main(["show", f"runs/{run}", "--what", what, "--videos", "1"])
        first = [file.read_bytes() for file in files]
        torch.manual_seed(123)
        main(["show", f"runs/{run}", "--what", what, "--videos", "1"])
        assert first == [file.read_bytes() for file in files]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("runs/swin", "'video_swin' cannot say what a class token attends to; these do: timesformer, vit"),
        ("runs/no_token", "class_token: false"),
        ("runs/tokenizer", "trained a tokenizer, which has no class token"),
        ("mine.yaml", "has no class token: --what reconstruction"),
        ("runs/no_videos", "names no held-out videos: name some, data="),
        ("cache", "no checkpoint in it"),
        ("runs/nothing", "neither a run's folder nor a checkpoint nor a tokenizer"),
        ("python.safetensors", "was trained without a recipe"),
        ("runs/looks dta=x", "unknown key. Did you mean 'data'?"),
        ("runs/looks data.type=video_folder data.root=nowhere", "nowhere"),
        ("runs/looks --video a.mp4 data.type=video_folder", "leave out one of the two"),
        ("runs/looks views.type=uniform_clips views.size=30", "whole multiples of (2, 8, 8)"),
        ("runs/looks views.type=stored_clip", "learned from stored ids, and pictures are drawn of pixels"),
        ("runs/looks runs/bevt", "show takes one run"),
        ("runs/looks --videos 0", "--videos must be at least 1"),
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
    assert "'vimpac_contrast' predicts no ids of what is hidden; these do: bevt, bevt_image" in said
    assert "svt" not in said


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


# what is in the pictures


def test_attention_lights_the_cells_that_have_it_and_says_how_much() -> None:
    shown, weights = clips(), torch.full((2, 3, 2, 4, 4), 0.01)
    weights[0, :, 1, 2, 3] = 0.16
    drawing = attention_drawing(shown, weights, "run: ")
    frames, attention = drawing.strips[0].rows
    assert torch.equal(frames.frames, as_frames(shown.pixels[0]))
    heat = torch.zeros(2, 4, 4)
    heat[1, 2, 3] = 1.0
    assert torch.equal(attention.frames, heat_over(frames.frames, heat))
    mean = (31 * 0.01 + 0.16) / 32
    assert drawing.strips[0].caption == f"video 0: {0.01 / mean:.2f} to {0.16 / mean:.2f} times the mean"
    assert drawing.strips[1].caption == "video 1: 1.00 to 1.00 times the mean"
    even = drawing.strips[1].rows[1].frames
    assert torch.equal(even, heat_over(as_frames(shown.pixels[1]), torch.zeros(2, 4, 4)))
    assert drawing.moves


def test_each_head_of_the_first_clip_has_a_row_and_a_scale_of_its_own() -> None:
    weights = torch.rand(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    drawing = attention_drawing(clips(), weights, "run: ")
    (details,) = drawing.details
    assert [row.label.split(",")[0] for row in details.rows] == ["head 1", "head 2", "head 3"]
    own = weights[0, 1]
    heat = (own - own.min()) / (own.max() - own.min())
    assert torch.equal(details.rows[1].frames, heat_over(as_frames(clips().pixels[0]), heat))
    mean = weights[1].mean(dim=0)
    heat = (mean - mean.min()) / (mean.max() - mean.min())
    assert torch.equal(drawing.strips[1].rows[1].frames, heat_over(as_frames(clips().pixels[1]), heat))


def test_the_rows_of_a_prediction_are_decoded_from_visible_and_predicted_ids() -> None:
    shown = clips(frames=2)
    ids = torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4)
    hidden = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    hidden[:, :, :2] = True
    predicted = torch.where(hidden, 200, ids)
    predicted[0, 0, 0, 0] = ids[0, 0, 0, 0]  # one of 16 is right
    drawing = prediction_drawing(shown, FilledIn(ids, hidden, predicted), Flat(), "run: ")
    rows = {row.label: row.frames for row in drawing.strips[0].rows}
    assert list(rows) == ["frames", "tokenizer", "hidden", "prediction", "nearest id"]
    grey = {label: frames[:, 4::8, 4::8, 0].long() for label, frames in rows.items()}
    assert torch.equal(rows["frames"], as_frames(shown.pixels[0]))
    assert torch.equal(grey["tokenizer"], ids[0])
    assert torch.equal(grey["prediction"], predicted[0])
    # rows 0 and 1 are hidden, and row 2 is the nearest that is seen
    assert torch.equal(grey["nearest id"], ids[0][:, [2, 2, 2, 3]])
    assert (rows["hidden"][:, :16] == torch.tensor(HIDDEN, dtype=torch.uint8)).all()
    assert torch.equal(rows["hidden"][:, 16:], rows["frames"][:, 16:])
    assert drawing.strips[0].caption == (
        "video 0: 50% of the ids hidden, of these 6% predicted right, 0% by copying the nearest visible id"
    )


def test_a_tokenizers_error_stands_above_its_clip() -> None:
    shown = clips()
    drawing = tokenizer_drawing(shown, (shown.pixels + 0.1), "t: ")
    assert [strip.caption for strip in drawing.strips] == ["video 0: 20.0 dB", "video 1: 20.0 dB"]
    assert [row.label for row in drawing.strips[0].rows] == ["frames", "tokenizer"]


def test_images_fill_strips_of_eight() -> None:
    images = [torch.full((1, 4, 4, 3), i, dtype=torch.uint8) for i in range(11)]
    notes = [f"note {i}" for i in range(11)]
    strips = strips_of([f"key {i}" for i in range(11)], {"a": images, "b": images[::-1]}, notes, notes)
    assert [len(strip.headings) for strip in strips] == [8, 3]
    assert strips[1].headings == ("note 8", "note 9", "note 10")
    assert strips[1].caption == "key 8 to key 10"
    first, second = strips[1].rows
    assert first.frames[:, 0, 0, 0].tolist() == [8, 9, 10]
    assert second.frames[:, 0, 0, 0].tolist() == [2, 1, 0]


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


# which videos


class Numbered(VideoFiles):
    """Videos of one colour, their number; some of them broken."""

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        super().__init__([f"{i}.mp4" for i in range(count)])
        self.broken = broken

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.key(index), 4, 8.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if index in self.broken:
            raise UnreadableSample(self.key(index), "it is broken")
        return torch.full((len(frames), 3, 16, 16), index, dtype=torch.uint8)


VIEWS = UniformClips(num_frames=2, frame_stride=1, size=16)


@pytest.mark.parametrize(
    ("count", "broken", "asked", "expected"),
    [
        (100, (), 4, [0, 25, 50, 75]),
        (100, (), None, [0, 25, 50, 75]),
        (100, (25, 26, 75), 4, [0, 27, 50, 76]),
        (3, (), 4, [0, 1, 2]),
        (3, (1,), 3, [0, 2]),
        (3, (0,), 1, [1]),
    ],
)
def test_videos_lie_evenly_over_the_source_and_broken_ones_are_replaced(
    count: int, broken: Sequence[int], asked: int | None, expected: list[int]
) -> None:
    said: list[str] = []
    found = draw_clips(Numbered(count, broken), VIEWS, asked, said.append)
    assert [int(clip[0, 0, 0, 0] * 255) for clip in found.pixels] == expected
    assert found.keys == tuple(f"{i}.mp4" for i in expected)
    assert said == [f"left out: {i}.mp4: it is broken" for i in broken]


def test_videos_none_of_which_can_be_read_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"none of the 2 videos can be read, e\.g\. 0\.mp4: it is broken"):
        draw_clips(Numbered(2, (0, 1)), VIEWS, 4, lambda text: None)


# the abilities behind them


def masked_objectives() -> dict[str, Callable[[Backbone, Tokenizer], Objective]]:
    tube = Tube(min_block=2)
    return {
        "bevt": lambda net, tokenizer: BEVT(net, tokenizer, tube),
        "bevt_image": lambda net, tokenizer: BEVTImage(net, tokenizer, tube),
        "bevt_video": lambda net, tokenizer: BEVTVideo(net, tokenizer, tube),
        "vimpac": lambda net, tokenizer: VIMPAC(net, tokenizer, tube, head_hidden_dim=8, head_dim=4),
        "vimpac_predict": lambda net, tokenizer: VIMPACPredict(net, tokenizer, tube),
    }


@pytest.mark.parametrize("name", masked_objectives())
def test_what_is_filled_in_is_what_the_metrics_measure(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
    objective = masked_objectives()[name](net, tokenizer).eval()
    frames, kind = (1, "image") if name == "bevt_image" else (4, "video")
    shown = torch.rand(6, 3, frames, 32, 32)
    views = {"clip": (shown, shown) if name == "vimpac" else (shown,), "image": (shown[:, :, :1],)}
    if name == "bevt":  # its images come first and would draw masks of their own
        metrics = objective.prediction("video", shown, torch.Generator().manual_seed(3)).metrics
    else:
        metrics = objective(Batch(views), Progress(0, 1), torch.Generator().manual_seed(3)).metrics
    assert isinstance(objective, MaskedPrediction)
    given = torch.cat((shown, shown)) if name == "vimpac" else shown
    filled = objective.fill_in(given, torch.Generator().manual_seed(3))
    assert torch.equal(filled.ids, tokenizer.encode(given))
    assert torch.equal(filled.predicted[~filled.hidden], filled.ids[~filled.hidden])
    right = (filled.predicted == filled.ids)[filled.hidden].float().mean()
    key = f"accuracy_{kind}" if name.startswith("bevt") else "accuracy_mask"
    assert float(right) == pytest.approx(float(metrics[key]))
    assert 0 < float(right) < 1


def test_images_and_clips_are_each_refused_by_the_objective_that_never_saw_them() -> None:
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net, generator = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8)), torch.Generator()
    with pytest.raises(ValueError, match="learns from single images, got clips of 4 frames"):
        BEVTImage(net, tokenizer, Tube(min_block=2)).fill_in(torch.rand(1, 3, 4, 32, 32), generator)
    with pytest.raises(ValueError, match="learns from clips, got single images"):
        BEVTVideo(net, tokenizer, Tube(min_block=2)).fill_in(torch.rand(1, 3, 1, 32, 32), generator)


def test_ids_that_only_the_backbone_knows_are_never_predicted() -> None:
    torch.manual_seed(0)
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net = Factorized(vocab_size=4, num_frames=2, height=4, width=4, embed_dim=8, depth=1, num_heads=2)
    objective = VIMPACPredict(net, tokenizer, Tube(min_block=2)).eval()
    with torch.no_grad():
        objective.prediction.head.bias[4:] = 100.0  # the special ids behind the vocabulary
    filled = objective.fill_in(torch.rand(2, 3, 2, 32, 32), torch.Generator().manual_seed(0))
    assert int(filled.predicted.max()) < 4


@pytest.mark.parametrize("frames", [1, 4])
def test_a_vits_class_attention_is_what_its_last_block_does(frames: int) -> None:
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=2, num_heads=2, patch_size=(2, 8, 8), class_token=True, init_std=0.5).eval()
    x = torch.rand(2, 3, frames, 16, 24)
    read: list[Tensor] = []
    last = net.blocks[-1].attn
    hook = last.register_forward_hook(lambda module, given, made: read.extend((given[0], made)))
    with torch.no_grad():
        net(x)
        hook.remove()
        weights = net.class_attention(x)
        values = rearrange(last.qkv(read[0]), "b n (three m d) -> three b m n d", three=3, m=2)[2]
        flat = weights.flatten(2)
        attended = (1 - flat.sum(-1, keepdim=True)) * values[:, :, 0]
        attended = attended + torch.einsum("bmn,bmnd->bmd", flat, values[:, :, 1:])
        expected = last.proj(attended.flatten(1))
    assert weights.shape == (2, 2, max(1, frames // 2), 2, 3)
    assert torch.allclose(read[1][:, 0], expected, atol=1e-5)
    assert isinstance(net, ClassAttention)


def test_class_attention_lies_on_the_patches_that_drew_it() -> None:
    """A patch that is pulled towards the class token's query is the one that gets the weight."""
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=1, num_heads=1, patch_size=(2, 8, 8), class_token=True, init_std=0.5).eval()
    x = torch.rand(1, 3, 4, 16, 24)
    with torch.no_grad():
        before = net.class_attention(x)
        x[:, :, 2:4, 8:16, 0:8] = 0.9
        change = (net.class_attention(x) / before).log()[0, 0]
    share = change - change.median()
    assert share.abs().flatten().argmax() == 1 * 6 + 1 * 3 + 0


def _python_objective() -> Objective:
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
    return BEVTVideo(net, VQVAE(vocab_size=16, code_dim=4, width=8, num_res_blocks=0), Tube(min_block=2))
