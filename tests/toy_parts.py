"""Toy components of every kind, a recipe of them, and tables that hold them."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from vidssl.backbones import BACKBONES
from vidssl.build import build
from vidssl.config.recipe import Recipe, load_recipe, recipe_from_text
from vidssl.data import SOURCES, VIEWS
from vidssl.errors import UsageError
from vidssl.interfaces import (
    Backbone,
    Batch,
    DataSource,
    Features,
    LossOutput,
    Masker,
    Objective,
    Progress,
    SampleInfo,
    Tokenizer,
    ViewSampler,
)
from vidssl.interfaces.grids import GridSize
from vidssl.maskers import MASKERS
from vidssl.objectives import OBJECTIVES
from vidssl.tokenizers import TOKENIZERS


class ToyBackbone(Backbone):
    """A toy that reads pixels."""

    def __init__(self, *, dim: int = 4, patch: tuple[int, int, int] = (2, 4, 4)) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim must be even, got {dim}")
        self.embed_dim = dim
        self.strides = patch
        self.layer = nn.Linear(3, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        raise NotImplementedError


class IdsBackbone(ToyBackbone):
    """A toy that reads ids."""

    input_kind = "tokens"

    def __init__(self, *, dim: int = 4, vocab_size: int = 8) -> None:
        super().__init__(dim=dim, patch=(1, 1, 1))
        self.vocab_size = vocab_size

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        if height > 8:
            raise ValueError(f"has positions for 8 rows of ids, got {height}")
        return num_frames, height, width


class MasklessBackbone(ToyBackbone):
    """A toy that takes no mask."""

    takes_mask = False


class ToyTokenizer(Tokenizer):
    """A toy tokenizer."""

    def __init__(self, *, vocab_size: int = 8, stride: int = 8) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.strides = (1, stride, stride)
        self.table = nn.Parameter(torch.zeros(vocab_size))

    def encode(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


class ToyMasker(Masker):
    """A toy masker."""

    def __init__(self, *, min_cells: int = 1, mode: Literal["tube", "cube"] = "tube") -> None:
        self.min_cells = min_cells

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        if grid[1] < self.min_cells:
            raise ValueError(f"grid {grid} has fewer rows than {self.min_cells}")
        mask = torch.zeros(batch_size, *grid, dtype=torch.bool)
        mask[..., 0] = True
        return mask


class ToyObjective(Objective):
    """A toy that masks and predicts."""

    needs_views: Mapping[str, int] = {"clip": 1, "image": 1}

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker, *, video_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.masker, self.video_weight = (
            backbone,
            tokenizer,
            masker,
            video_weight,
        )

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        raise NotImplementedError

    def encoder(self) -> Backbone:
        return self.backbone


class PlainObjective(ToyObjective):
    """A toy with a backbone alone."""

    needs_views: Mapping[str, int] = {"clip": 2}

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)
        self.backbone = backbone


class TrainsTokenizer(ToyObjective):
    """A toy that trains a tokenizer."""

    needs_views: Mapping[str, int] = {"clip": 1}

    def __init__(self, tokenizer: Tokenizer) -> None:
        nn.Module.__init__(self)
        self.tokenizer = tokenizer

    def encoder(self) -> Tokenizer:
        return self.tokenizer


class ToyViews(ViewSampler):
    """Toy views."""

    def __init__(self, *, name: str, size: int = 32, num_frames: int = 4, slots: int = 1) -> None:
        self._shapes = {name: ((num_frames, size, size),) * slots}

    @property
    def shapes(self) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
        return self._shapes

    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        raise NotImplementedError


class NoSource(DataSource):
    """A source that says when it is opened."""

    def __init__(self, *, root: str) -> None:
        raise UsageError(f"{root}: no such folder")

    def __len__(self) -> int:
        return 0

    def info(self, index: int) -> SampleInfo:
        raise NotImplementedError

    def read(self, index: int, frames: object) -> Tensor:
        raise NotImplementedError


class OpenSource(NoSource):
    """A source of that many samples."""

    def __init__(self, *, count: int) -> None:
        self.count = count
        self.label_classes = {}

    def __len__(self) -> int:
        return self.count


RECIPE = """\
name: toy
objective: {type: toy}
backbone: {type: toy}
tokenizer: trained
masker: {type: toy}
data:
  video:
    source: {type: none, root: a}
    views: {type: toy, name: clip}
    batch_size: 4
  image:
    source: {type: none, root: b}
    views: {type: toy, name: image, num_frames: 1}
    batch_size: 4
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 5}
"""
VIDEO_ONLY = RECIPE[: RECIPE.index("  image:")] + RECIPE[RECIPE.index("optim:") :]


def set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts the toys into the tables, and a trained toy tokenizer into what becomes the working folder."""
    for name, toy in {"toy": ToyBackbone, "ids": IdsBackbone, "maskless": MasklessBackbone}.items():
        monkeypatch.setitem(BACKBONES, name, toy)
    for name, toy in {"toy": ToyObjective, "plain": PlainObjective, "trains": TrainsTokenizer}.items():
        monkeypatch.setitem(OBJECTIVES, name, toy)
    monkeypatch.setitem(TOKENIZERS, "toy", ToyTokenizer)
    monkeypatch.setitem(MASKERS, "toy", ToyMasker)
    monkeypatch.setitem(SOURCES, "none", NoSource)
    monkeypatch.setitem(SOURCES, "open", OpenSource)
    monkeypatch.setitem(VIEWS, "toy", ToyViews)
    monkeypatch.chdir(tmp_path)
    content = save({"table": torch.arange(8.0)})
    digest = hashlib.sha256(content).hexdigest()
    folder = tmp_path / "tokenizers"
    folder.mkdir()
    (folder / "trained.safetensors").write_bytes(content)
    (folder / "trained.yaml").write_text(
        f"type: toy\nweights: trained.safetensors\nsha256: {digest}\nsource: a friend\nlicence: MIT\n"
    )


def changed(*overrides: str) -> Recipe:
    Path("x.yaml").write_text(RECIPE)
    return load_recipe("x.yaml", overrides)


def edited(old: str, new: str) -> Recipe:
    assert old in RECIPE
    return recipe_from_text(RECIPE.replace(old, new, 1), "x.yaml")


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def refusal(old: str, new: str) -> str:
    return message(lambda: build.check(edited(old, new)))


class Means(Backbone):
    """One number a clip: the mean of its pixels, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 1
        self.strides = (1, 1, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        mean = x.float().mean(dim=tuple(range(1, x.dim())))
        return Features(patches=x[:, :1].movedim(1, -1), cls=mean[:, None] * self.scale)
