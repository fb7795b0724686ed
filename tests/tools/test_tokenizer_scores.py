"""Tokenizers measured side by side: constructed ones whose numbers are known, and the command."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.cli.main import main
from vidssl.config.recipe import recipe_from_text
from vidssl.engine.checkpoint import read_checkpoint, save_checkpoint
from vidssl.engine.runfolder import create_run
from vidssl.errors import UsageError
from vidssl.evaluate.subject import trained_tokenizer
from vidssl.interfaces import Tokenizer
from vidssl.pictures import pages
from vidssl.pictures.pages import Strip, sheet
from vidssl.tokenizers import measure as measuring
from vidssl.tokenizers.measure import ids_per_second, measure, ssim
from vidssl.tokenizers.vqvae import VQVAE
from vidssl.tools import tokenizer_scores

WORLD = "type: moving_digits, split: test, size: 32, digit_size: 24, num_frames: 4, num_videos: 6"
VIEWS = "{type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32}"
SMALL = [f"data.test={{{WORLD}}}", f"views={VIEWS}", "measure.shown=2"]
PARTS = '''
import torch
from vidssl.interfaces import Tokenizer

class Mirror(Tokenizer):
    """Five bits of each colour of each pixel."""
    def __init__(self, *, side: int = 1) -> None:
        super().__init__()
        self.vocab_size, self.strides = 32**3, (1, side, side)
        self.scale = torch.nn.Parameter(torch.tensor([1024, 32, 1]).float())
    def encode(self, clip):
        self.grid(*clip.shape[2:])
        return ((clip * 31).round() * self.scale.view(3, 1, 1, 1)).sum(1).long()
    def decode(self, ids):
        return torch.stack([ids // 1024, ids // 32 % 32, ids % 32], dim=1) / 31

class Grey(Mirror):
    """One code for everything, drawn as grey."""
    def encode(self, clip):
        return torch.full(clip[:, 0, :, ::4, ::4].shape, 7)
    def decode(self, ids):
        return torch.full((len(ids), 3, ids.shape[1], 4 * ids.shape[2], 4 * ids.shape[3]), 0.5)

class Blind(Grey):
    """Cannot draw."""
    def decode(self, ids):
        raise ValueError("has no decoder")
'''


class Levels(Tokenizer):
    """Every pixel's red to one of 256 levels: exact on clips of grey uint8 pixels. Counts its calls."""

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__()
        self.vocab_size, self.strides = 256, (1, 1, 1)
        self.seconds, self.calls = seconds, 0

    def encode(self, clip: Tensor) -> Tensor:
        self.calls += 1
        return (clip[:, 0] * 255).round().long()

    def decode(self, ids: Tensor) -> Tensor:
        return (ids / 255)[:, None].expand(-1, 3, -1, -1, -1)


class OneCode(Levels):
    """The same id for every pixel, drawn as ``level``."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def encode(self, clip: Tensor) -> Tensor:
        return torch.full_like(clip[:, 0], 3).long()

    def decode(self, ids: Tensor) -> Tensor:
        return torch.full((len(ids), 3, *ids.shape[1:]), self.level)


def grey_clips(count: int = 3) -> Tensor:
    levels = torch.randint(256, (count, 1, 2, 16, 16), generator=torch.Generator().manual_seed(0))
    return levels.to(torch.uint8).expand(-1, 3, -1, -1, -1)


def test_a_tokenizer_that_loses_nothing_has_no_error_and_uses_what_there_is() -> None:
    clips = grey_clips()
    found = measure(Levels(), clips, torch.Generator().manual_seed(0), batch_size=2)
    assert found.psnr == math.inf
    assert found.ssim == pytest.approx(1)
    assert found.used_codes == len(clips[:, 0].unique())
    assert 200 < found.perplexity < found.used_codes
    # noise of 2.55 levels in both copies leaves few pixels on their level
    assert 0.7 < found.flicker < 0.95


def test_one_code_for_everything_is_worth_what_its_colour_is() -> None:
    found = measure(OneCode(0.5), torch.zeros(2, 3, 2, 16, 16), torch.Generator())
    assert found.psnr == pytest.approx(10 * math.log10(4))
    assert (found.used_codes, found.perplexity, found.flicker) == (1, 1, 0)
    # both pictures are even: only their brightness is compared
    assert found.ssim == pytest.approx(0.01**2 / (0.5**2 + 0.01**2))


def test_an_image_is_measured_through_a_tokenizer_of_tubelets() -> None:
    torch.manual_seed(0)
    model = VQVAE(vocab_size=8, code_dim=4, width=8, stride=8, num_res_blocks=0, temporal_stride=2).eval()
    images = torch.rand(3, 3, 1, 32, 32)
    expected = (model.decode(model.encode(images)).mean(dim=2, keepdim=True) - images).square().mean()
    found = measure(model, images, torch.Generator().manual_seed(0), batch_size=2)
    assert found.psnr == pytest.approx(-10 * math.log10(float(expected)), rel=1e-4)


def slow_ssim(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, Eq. 13 to 16, window by window, of brightness [H, W]."""
    offsets = torch.arange(11) - 5.0
    window = torch.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2)).double()
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = (z[i : i + 11, j : j + 11] for z in (x, y))
            ma, mb = (float((window * z).sum()) for z in (a, b))
            va, vb = (float((window * (z - m) ** 2).sum()) for z, m in ((a, ma), (b, mb)))
            cov = float((window * (a - ma) * (b - mb)).sum())
            values.append(
                (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            )
    return sum(values) / len(values)


def test_ssim_agrees_with_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 1, 14, 17, generator=generator)
    y = (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]).double()
    a, b = (torch.einsum("chw,c->hw", clip[0, :, 0].double(), weights) for clip in (x, y))
    assert float(ssim(x, y)) == pytest.approx(slow_ssim(a, b), rel=1e-6)
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ssim(x, y)) < float(ssim(x, 0.5 * (x + y))) < 1


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11 pixels, and frames are"):
        ssim(torch.rand(1, 3, 1, 10, 32), torch.rand(1, 3, 1, 10, 32))


def test_ids_a_second_are_those_of_the_fastest_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Levels(0.5), Levels(2.0)
    turns: list[tuple[Levels, float]] = []

    def timed(tokenizer: Levels, clip: Tensor) -> float:
        slower = 3.0 if len(turns) < 2 else 1.0  # in the first round the machine is busy
        turns.append((tokenizer, slower))
        return tokenizer.seconds * slower

    monkeypatch.setattr(measuring, "_seconds", timed)
    clip = torch.rand(2, 3, 2, 4, 4)
    assert ids_per_second([fast, slow], clip, rounds=2) == [2 * 2 * 16 / 0.5, 2 * 2 * 16 / 2.0]
    assert [tokenizer for tokenizer, _ in turns] == [fast, slow, fast, slow]
    assert (fast.calls, slow.calls) == (1, 1)  # warmed up once each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with three tokenizers, one without weights, and a run that trained one of tubelets."""
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("tokenizer_toys.py").write_text(PARTS)
        Path("tokenizers").mkdir()
        save_file({"scale": torch.tensor([1024.0, 32.0, 1.0])}, "tokenizers/w.safetensors")
        digest = hashlib.sha256(Path("tokenizers/w.safetensors").read_bytes()).hexdigest()
        for name, weights in (("Mirror", "w"), ("Grey", "w"), ("Lost", "away")):
            kind = "Mirror" if name == "Lost" else name
            write_spec(f"tokenizers/{name.lower()}.yaml", kind, digest, weights)
        write_spec("blind.yaml", "Blind", digest, "tokenizers/w")
        write_spec("coarse.yaml", "Mirror", digest, "tokenizers/w", "side: 5\n")
        save_run()
    return path


def write_spec(path: str, kind: str, digest: str, weights: str, more: str = "") -> None:
    Path(path).write_text(
        f"type: tokenizer_toys.py:{kind}\nweights: {weights}.safetensors\nsha256: {digest}\n"
        f"source: a friend\nlicence: MIT\ncommand: make {weights}\n{more}"
    )


def save_run() -> None:
    recipe = recipe_from_text(
        "name: tubes\nobjective: {type: tokenizer, view: clip}\n"
        "tokenizer:\n  {type: vqvae, vocab_size: 8, code_dim: 4, width: 8, num_res_blocks: 0, "
        "temporal_stride: 2}\n"
        f"data:\n  video:\n    source: {{{WORLD}}}\n    batch_size: 2\n"
        "    views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 32}\n"
        "optim: {type: adamw, lr: 1e-3}\nschedule: {type: cosine, steps: 5}\n",
        "tubes.yaml",
    )
    torch.manual_seed(0)
    run = create_run(Path("runs"), "tubes", resolved_text(recipe))
    objective = build.objective(recipe, say=lambda line: None)
    save_checkpoint(run.checkpoint_path(7), objective, step=7, recipe=resolved_text(recipe))


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def evaluate(*words: str) -> int:
    return main(["eval", "--protocol", "tokenizer", *SMALL, *words])


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", *words, *SMALL]) == 2
    return re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_recipe_takes_the_tokenizer_that_a_run_trained() -> None:
    checkpoint = read_checkpoint(Path("runs/tubes/checkpoints/step-000007.safetensors"))
    recipe = recipe_from_text(checkpoint.recipe, "run.yaml")
    start, end = checkpoint.recipe.index("tokenizer:"), checkpoint.recipe.index("data:")
    text = checkpoint.recipe[:start] + "tokenizer: runs/tubes\n" + checkpoint.recipe[end:]
    found = recipe_from_text(text, "mine.yaml")
    made = build.tokenizer(found.tokenizer, say=lambda line: None)
    for name, tensor in trained_tokenizer(recipe, checkpoint).state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
    again = recipe_from_text(resolved_text(found), "kept.yaml").tokenizer
    assert again is not None
    assert again.weights is not None
    assert again.weights.path.name == "step-000007.safetensors"
    assert resolved_text(recipe_from_text(resolved_text(found), "kept.yaml")) == resolved_text(found)
    Path("runs/borrowed").mkdir()
    Path("runs/borrowed/recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"mine.yaml:\d+: tokenizer: runs/borrowed: this run trained no tok"):
        recipe_from_text(text.replace("runs/tubes", "runs/borrowed"), "mine.yaml")


def test_named_tokenizers_stand_in_one_table_and_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("mirror", "tokenizers/grey.yaml", "runs/tubes") == 0
    said = capsys.readouterr().out
    record = json.loads(Path("tokenizer_scores/tokenizer.json").read_text())
    mirror, grey, tubes = record["tokenizers"]
    assert [row["name"] for row in record["tokenizers"]] == ["mirror", "grey", "runs/tubes"]
    assert mirror["psnr"] > 35
    assert mirror["ssim"] > 0.9 > 0.5 > grey["ssim"]
    assert mirror["speed"] == 1
    assert (grey["used_codes"], grey["perplexity"], grey["flicker"]) == (1, 1, 0)
    assert grey["psnr"] < 12
    assert tubes["strides"] == [2, 8, 8]
    assert tubes["bits_per_pixel"] == pytest.approx(3 / 128)
    assert len(record["videos"]) == 6
    assert "num_clips: 1" in record["protocol"]  # defaults are written out
    for shown in ("mirror", "grey", "runs/tubes", "2x8x8", "1/32768", f"{mirror['psnr']:.1f}"):
        assert shown in said


def test_the_sheet_has_a_row_of_originals_and_one_of_each_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Strip] = []

    def keeping(title: str, strips: Sequence[Strip]) -> Image.Image:
        drawn.extend(strips)
        return sheet(title, strips)

    monkeypatch.setattr(pages, "sheet", keeping)
    assert evaluate("mirror", "grey", "runs/tubes", "name=drawn") == 0
    assert len(drawn) == 2
    for strip in drawn:
        frames, mirror, grey, tubes = strip.rows
        assert [row.label for row in strip.rows] == ["frames", "mirror", "grey", "runs/tubes"]
        assert (mirror.frames.int() - frames.frames.int()).abs().max() <= 5
        assert (grey.frames == 128).all()
        assert tubes.frames.shape == frames.frames.shape == (4, 32, 32, 3)
        found = re.findall(r"(\S+) (\d+\.\d) dB", strip.caption)
        error = (grey.frames / 255 - frames.frames / 255).square().mean()
        assert float(dict(found)["grey"]) == pytest.approx(-10 * math.log10(error.item()), abs=0.1)
    with Image.open("tokenizer_scores/drawn.png") as picture:
        assert min(picture.size) > 300


def test_unnamed_all_that_have_weights_are_measured_and_the_others_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {path.stem: path for path in Path("tokenizers").resolve().glob("*.yaml")}
    monkeypatch.setattr(tokenizer_scores, "spec_files", lambda kind: own)
    assert evaluate() == 0
    record = json.loads(Path("tokenizer_scores/tokenizer.json").read_text())
    assert [row["name"] for row in record["tokenizers"]] == ["grey", "mirror"]
    assert len(record["not_measured"]) == 1
    assert "not measured: lost: no weights at" in capsys.readouterr().out
    monkeypatch.setattr(tokenizer_scores, "spec_files", lambda kind: {"lost": own["lost"]})
    assert "no tokenizer has weights: lost: no weights at" in fails(capsys, "--protocol", "tokenizer")


def test_a_run_alone_keeps_its_scores_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("runs/tubes") == 0
    kept = Path("runs/tubes/tokenizer_scores")
    assert sorted(path.name for path in kept.iterdir()) == [
        "tokenizer-step-000007.json",
        "tokenizer-step-000007.png",
    ]
    assert "runs/tubes/tokenizer_scores/tokenizer-step-000007.json" in capsys.readouterr().out


def test_images_are_measured_too() -> None:
    image = "{type: uniform_clips, num_frames: 1, frame_stride: 1, size: 32}"
    assert evaluate("runs/tubes", "mirror", f"views={image}", "name=images") == 0
    rows = json.loads(Path("tokenizer_scores/images.json").read_text())["tokenizers"]  # not the run's folder
    assert rows[1]["psnr"] > 35 > rows[0]["psnr"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mirror", "--protocol", "tokenizer", "--protocol", "knn"), "under one protocol at a time"),
        (("mirror", "tokenizers/mirror.yaml", "--protocol", "tokenizer"), "mirror: named twice"),
        (("lost", "--protocol", "tokenizer"), "The weights come from: a friend"),
        (("coarse.yaml", "--protocol", "tokenizer"), "coarse: Mirror takes clips whose"),
        (("blind.yaml", "--protocol", "tokenizer"), "blind: has no decoder"),
        (("nothing", "--protocol", "tokenizer"), "nothing: no such tokenizer"),
        (("runs/tubes", "--protocol", "knn"), "--protocol tokenizer measures it"),
        (("mirror", "--protocol", "tokenizer", "measure.videos=0"), "must be at least 1"),
        (("mirror", "--protocol", "tokenizer", "measure.noise=-0.1"), "must be at least 0"),
        (("mirror", "--protocol", "tokenizer", "measure.loud=1"), "unknown key"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in fails(capsys, *words)


@pytest.mark.skipif(
    not os.environ.get("VIDSSL_CLIPS"), reason="VIDSSL_CLIPS does not name the folder of real clips"
)
def test_real_clips_are_measured() -> None:
    clips = Path(os.environ["VIDSSL_CLIPS"]) / "good"
    real = f"data.test={{type: video_folder, root: {clips}}}"
    assert evaluate("mirror", "grey", real, "measure.videos=4", "name=real") == 0
    mirror, grey = json.loads(Path("tokenizer_scores/real.json").read_text())["tokenizers"]
    assert mirror["psnr"] > 35 > 20 > grey["psnr"]
