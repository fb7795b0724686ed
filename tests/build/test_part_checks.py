"""Parts as a newcomer writes them, and the one line that says what each of them returned instead."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, recipe_from_text
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, Features, LossOutput, Objective, Progress
from vidssl.tokenizers.fsq import FSQ
from vidssl.tokenizers.vqvae import VQVAE

PARTS = """\
import copy

import torch
from torch import nn

from vidssl.api import Backbone, Evaluator, Features, LossOutput, Masker, Objective, Tokenizer


class Net(Backbone):
    takes_mask = True

    def __init__(self, *, dim: int = 8):
        super().__init__()
        self.embed_dim, self.strides = dim, (2, 8, 8)
        self.proj = nn.Conv3d(3, dim, (2, 8, 8), (2, 8, 8))
        self.token = nn.Parameter(torch.ones(dim))

    def cells(self, x):
        if x.shape[2] == 1:
            x = x.expand(-1, -1, 2, -1, -1)
        return self.proj(x).permute(0, 2, 3, 4, 1)

    def forward(self, x, mask=None):
        cells = self.cells(x)
        if mask is not None:
            cells = torch.where(mask[..., None], self.token, cells)
        return Features(cells)


class NoWidth(Net):
    def __init__(self):
        super().__init__()
        del self.embed_dim


class ChannelsFirst(Net):
    def forward(self, x, mask=None):
        return Features(super().forward(x, mask).patches.permute(0, 4, 1, 2, 3))


class WrongWidth(Net):
    def __init__(self):
        super().__init__()
        self.embed_dim = 16


class Plain(Net):
    def forward(self, x, mask=None):
        return super().forward(x, mask).patches


class IgnoresMask(Net):
    def forward(self, x, mask=None):
        return super().forward(x)


class CannotBeMade(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(self.width, 2)


class Fails(Net):
    def forward(self, x, mask=None):
        return Features(self.proj(x[:, 0]))


class Loss(Objective):
    needs_views = {"clip": 1}

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def features(self, batch):
        return self.backbone(batch.views["clip"][0]).pooled()

    def forward(self, batch, progress, generator):
        loss = self.features(batch).square().mean()
        return LossOutput(loss, {"loss": loss.detach()})

    def encoder(self):
        return self.backbone


class Pairs(Loss):
    def forward(self, batch, progress, generator):
        if len(batch.views["clip"][0]) < 4:
            raise ValueError("needs 4 videos")
        return super().forward(batch, progress, generator)


class Labelled(Loss):
    def forward(self, batch, progress, generator):
        loss = nn.functional.cross_entropy(self.features(batch), batch.labels["video"]["digit"])
        return LossOutput(loss, {})


class NoViews(Loss):
    needs_views = None


class ReturnsTensor(Loss):
    def forward(self, batch, progress, generator):
        return self.features(batch).square().mean()


class FloatMetrics(Loss):
    def forward(self, batch, progress, generator):
        loss = self.features(batch).square().mean()
        return LossOutput(loss, {"loss": loss.item()})


class VectorLoss(Loss):
    def forward(self, batch, progress, generator):
        return LossOutput(self.features(batch).square().mean(1), {})


class CopiedEncoder(Loss):
    def encoder(self):
        return copy.deepcopy(self.backbone)


class TrainsCopy(Loss):
    def __init__(self, backbone):
        super().__init__(backbone)
        self.net = copy.deepcopy(backbone)

    def features(self, batch):
        return self.net(batch.views["clip"][0]).pooled()


class BadHook(Loss):
    def after_step(self, progress, generator):
        self.teacher.update()


class Ids(Tokenizer):
    def __init__(self):
        super().__init__()
        self.vocab_size, self.strides = 4, (1, 8, 8)

    def encode(self, clip):
        return clip[:, 0, :, ::8, ::8].mul(4.99).long()

    def decode(self, ids):
        raise NotImplementedError


class FloatIds(Ids):
    def encode(self, clip):
        return clip[:, 0, :, ::8, ::8]


class Hides(Masker):
    def __init__(self, *, what: str = "all"):
        self.what = what

    def __call__(self, batch_size, grid, generator):
        mask = torch.rand(batch_size, *grid, generator=generator) < 0.5
        made = {
            "some": mask, "all": mask | True, "nothing": mask & False, "float": mask.float(),
            "flat": mask.flatten(1), "list": [mask],
        }
        return made[self.what]


class Probe(Evaluator):
    def __init__(self, *, what: str):
        self.what = what

    def class_scores(self, train, test_vectors, generator):
        scores = torch.zeros(len(test_vectors), train.num_classes)
        made = {"good": scores, "nan": scores * float("nan"), "narrow": scores[:, :3], "none": None}
        return made[self.what]
"""
SIZE = "{type: single_clip, num_frames: 4, frame_stride: 1, size: 16}"
RECIPE = f"""\
name: own
objective: {{type: "parts_as_written.py:Loss"}}
backbone: {{type: "parts_as_written.py:Net"}}
data:
  video:
    source: {{type: moving_digits, split: train}}
    views: {SIZE}
    batch_size: 4
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 5}}
"""


@pytest.fixture(autouse=True)
def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "parts_as_written", raising=False)
    Path("parts_as_written.py").write_text(PARTS)


def recipe(*, objective: str = "Loss", backbone: str = "Net", more: str = "") -> Recipe:
    text = RECIPE.replace(":Loss", f":{objective}").replace(":Net", f":{backbone}")
    return recipe_from_text(text + more, "x.yaml")


@pytest.mark.parametrize("objective", ["Loss", "Pairs", "Labelled"])
def test_good_parts_pass_and_random_numbers_are_left_alone(objective: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build.check(recipe(objective=objective))
    assert torch.equal(torch.rand(1), expected)


BACKBONES = {
    "NoWidth": "embed_dim is None, expected the width D of Features.pooled(): set self.embed_dim",
    "ChannelsFirst": "patches are torch.float32 [2, 8, 2, 2, 2], expected [2, 2, 2, 2, 8]:",
    "WrongWidth": "patches are torch.float32 [2, 2, 2, 2, 8], expected [2, 2, 2, 2, 16]",
    "Plain": "forward returned Tensor, expected Features",
    "IgnoresMask": "with half of its cells hidden it returned the same features as without a mask",
    "CannotBeMade": "__init__ failed: AttributeError: 'CannotBeMade' object has no attribute 'width'",
    "Fails": "forward of [2, 3, 4, 16, 16] failed: RuntimeError: ",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_that_breaks_its_contract_is_named(name: str) -> None:
    message = f"x.yaml:3: backbone: parts_as_written.py:{name}: {BACKBONES[name]}"
    with pytest.raises(UsageError, match=re.escape(message)):
        build.check(recipe(backbone=name))


OBJECTIVES = {
    "NoViews": "needs_views is None, expected the views that forward reads, e.g. {'clip': 1}",
    "ReturnsTensor": "forward returned Tensor, expected LossOutput(loss, metrics)",
    "FloatMetrics": "forward returned the metric 'loss' as float, expected a scalar tensor",
    "VectorLoss": "forward returned a loss that is [4], expected a scalar tensor: take the mean",
    "CopiedEncoder": "encoder() returned a parts_as_written.py:Net that is not one of its sub-mod",
    "TrainsCopy": "the gradient of the loss does not reach its encoder parts_as_written.py:Net",
    "BadHook": "after_step failed: AttributeError: 'BadHook' object has no attribute 'teacher' (parts_as_",
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_that_breaks_its_contract_is_named(name: str) -> None:
    message = re.escape(f"x.yaml:2: objective: parts_as_written.py:{name}: {OBJECTIVES[name]}")
    with pytest.raises(UsageError, match=message):
        build.check(recipe(objective=name))


BEVT = """\
name: own
objective: {type: bevt_video}
backbone: {type: vit, embed_dim: 8, depth: 1, num_heads: 2, patch_size: [2, 8, 8]}
tokenizer: {type: "parts_as_written.py:Ids", weights: w, sha256: "0", source: a, licence: b}
masker: {type: "parts_as_written.py:Hides", what: some}
""" + RECIPE[RECIPE.index("data:") :]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("all", "hides all of the 8 cells in 8 of 8 masks, expected some and never all"),
        ("nothing", "hides none of the 8 cells in 8 of 8 masks"),
        ("float", "returned torch.float32 [8, 2, 2, 2], expected torch.bool [8, 2, 2, 2], True where hidden"),
        ("flat", "returned torch.bool [8, 8], expected torch.bool [8, 2, 2, 2]"),
        ("list", "returned list, expected torch.bool"),
    ],
)
def test_a_masker_that_breaks_its_contract_is_named(what: str, message: str) -> None:
    text = BEVT.replace("what: some", f"what: {what}")
    text = text.replace('type: "parts_as_written.py:Ids"', "type: vqvae, width: 4, code_dim: 4, stride: 8")
    with pytest.raises(
        UsageError, match=re.escape(f"x.yaml:5: masker: parts_as_written.py:Hides: {message}")
    ):
        build.check(recipe_from_text(text, "x.yaml"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Ids", "encode returned ids from 0 to 4, expected 0 to vocab_size - 1, 3"),
        ("FloatIds", "encode returned torch.float32 [2, 4, 2, 2], expected torch.int64 [2, 4, 2, 2]"),
    ],
)
def test_a_tokenizer_that_breaks_its_contract_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"tokenizer: parts_as_written.py:{name}: {message}")):
        build.check(recipe_from_text(BEVT.replace(":Ids", f":{name}"), "x.yaml"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("good", ""),
        ("nan", "the scores of 16 of 16 samples are not finite (NaN or inf)"),
        ("narrow", "scores are torch.float32 [16, 3], expected floating-point [16, 10]"),
        ("none", "scores are NoneType, expected a tensor [16, 10]"),
    ],
)
def test_an_evaluator_that_breaks_its_contract_is_named(
    what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("evaluation").mkdir()
    part = f'{{type: "parts_as_written.py:Probe", what: {what}}}'
    Path("evaluation/p.yaml").write_text(f"name: p\nevaluator: {part}\n")
    assert main(["check", "evaluation/p.yaml"]) == (2 if message else 0)
    wanted = f"evaluation/p.yaml:2: evaluator: parts_as_written.py:Probe: {message}"
    assert (wanted in capsys.readouterr().err) == bool(message)


# what is called from Python is held to the range and the types at every call


class Pooled(Backbone):
    def __init__(self, made: object) -> None:
        super().__init__()
        self.embed_dim, self.strides, self.made = 3, (1, 1, 1), made

    def forward(self, x, mask=None):
        return Features(x.permute(0, 2, 3, 4, 1)) if self.made is None else self.made


class Mean(Objective):
    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        self.net = Pooled(None)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        return LossOutput(batch.views["clip"][0].mean(), {})

    def encoder(self) -> Backbone:
        return self.net


CLIP = torch.rand(1, 3, 2, 8, 8)
BAD_CLIPS = [
    ((CLIP * 255).to(torch.uint8), r"takes clips, float32 .* in \[0, 1\], got torch.uint8"),
    (CLIP * 255, r"takes clips in \[0, 1\], got values up to 25\d"),
]


@pytest.mark.parametrize(("clip", "message"), BAD_CLIPS, ids=["uint8", "to_255"])
def test_clips_of_another_range_are_refused_by_all_that_read_them(clip: torch.Tensor, message: str) -> None:
    generator = torch.Generator()
    fsq, vqvae = FSQ(levels=(4, 4), width=4), VQVAE(vocab_size=8, code_dim=4, width=4, stride=8)
    for name, call in {
        "Pooled": lambda x: Pooled(None)(x),
        "Mean": lambda x: Mean()(Batch({"clip": (x,)}), Progress(0, 1), generator),
        "FSQ": fsq.encode,
        "VQVAE": vqvae.reconstruct,
    }.items():
        with pytest.raises(UsageError, match=f"{name} {message}"):
            call(clip)
    Pooled(None)(CLIP * 1.2)  # augmentations leave the range by a little
    with pytest.raises(UsageError, match="Pooled: forward returned Tensor, expected Features"):
        Pooled(CLIP)(CLIP)
