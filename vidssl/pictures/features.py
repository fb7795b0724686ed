"""Pictures of features: which videos lie near one another, and a map of all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from vidssl.build import build
from vidssl.config.protocol import Protocol, load_protocol
from vidssl.config.strict_yaml import nearest
from vidssl.data.samples import InOrder
from vidssl.engine.checkpoint import Checkpoint
from vidssl.errors import UsageError
from vidssl.evaluate.feature_cache import FeatureStore
from vidssl.evaluate.subject import home, recipe_of, spec_of, trained_backbone
from vidssl.evaluators.features import FeatureTable
from vidssl.interfaces import DataSource, ViewSampler, as_clip
from vidssl.pictures.pages import FrameRow, Strip, as_frames, evenly_spaced, sheet

QUERIES, NEAREST = 5, 5
MOST_POINTS = 1500  # of a map


@dataclass(frozen=True)
class RunFeatures:
    """Features of a run's labelled videos, and where the videos are.

    Attributes:
        train, test: numbered together.
        sources: of train and test.
        views: of a video, as the features were taken from.
    """

    train: FeatureTable
    test: FeatureTable
    sources: tuple[DataSource, DataSource]
    views: ViewSampler

    def label(self, asked: str | None) -> str:
        """The label that is asked for, or that which test videos share most with their nearest neighbour.

        "Most" is beyond the share of the commonest class, so that the label is one that the features know.

        Raises:
            UsageError: if the videos lack it.
        """
        if asked is not None and asked not in self.test.labels:
            raise UsageError(f"no label '{asked}'. {nearest(asked, self.test.labels, 'There are')}")
        if asked is not None or len(self.test.labels) == 1:
            return asked or next(iter(self.test.labels))
        closest = (unit_vectors(self.test) @ unit_vectors(self.train).T).argmax(dim=1)

        def shared(label: str) -> float:
            own, others = self.test.labels[label], self.train.labels[label]
            known = own[own >= 0]
            if not len(known):
                return 0.0
            return float(((own == others[closest]) & (own >= 0)).sum() - known.bincount().max()) / len(known)

        return max(self.test.labels, key=shared)


def run_features(
    checkpoint: Checkpoint, console: Console, *, protocol: str | None = None, trust: bool = False
) -> RunFeatures:
    """Features of the trained network under a protocol; those that an evaluation kept are read.

    Args:
        protocol: whose views and layers are taken; None for knn.
        trust: use code and addresses that the run's recipe names, whoever trained it.

    Raises:
        UsageError: if the run has no backbone or names no labelled videos, or they cannot be read.
    """
    recipe = recipe_of(checkpoint, "without one its videos are not known", trust=trust)
    if recipe.backbone is None:
        raise UsageError(f"{checkpoint.path}: this run trained a tokenizer, which has no features")
    asked = load_protocol(protocol or "knn", (), recipe)
    if not isinstance(asked, Protocol):
        raise UsageError(
            f"{protocol}: finetunes, and features are those of the network as it was pre-trained"
        )
    if asked.data is None:
        raise UsageError(f"{checkpoint.path}: its recipe names no labelled videos (data.probe)")
    networks = {"trained": trained_backbone(recipe, checkpoint)}
    store = FeatureStore(spec_of(recipe), networks, folder=home(checkpoint) / "features", console=console)
    train, test = store.tables(asked)["trained"]
    sources = store.source(asked.data.train), store.source(asked.data.test)
    return RunFeatures(train, test, sources, build.views(asked.data.views))


def unit_vectors(table: FeatureTable) -> Tensor:
    """Mean over views, of length 1: float32 [N, D]."""
    return torch.nn.functional.normalize(table.vectors.float().mean(1), dim=1)


def neighbour_strips(features: RunFeatures, label: str, videos: int = QUERIES) -> list[Strip]:
    """Test videos, each beside the training videos whose features are most alike (cosine similarity).

    Returns:
        A strip for each test video, with T rows: those of one point in time.
    """
    test, train = features.test, features.train
    similar = unit_vectors(test) @ unit_vectors(train).T
    names = test.classes[label]
    strips = []
    for place in evenly_spaced(len(test.keys), videos):
        values, found = similar[place].topk(min(NEAREST, len(train.keys)))
        own = int(test.labels[label][place])
        clips = [_clip(features, 1, test.keys[place])]
        clips += [_clip(features, 0, train.keys[number]) for number in found.tolist()]
        headings = [_named(names, own)]
        for value, number in zip(values.tolist(), found.tolist(), strict=True):
            other = int(train.labels[label][number])
            headings.append(f"{value:.2f} {'same' if other == own else f'as {_named(names, other)}'}")
        rows = tuple(FrameRow("", torch.stack(frames)) for frames in zip(*clips, strict=True))
        strips.append(Strip(f"{label}: {test.keys[place]}, then its nearest", tuple(headings), rows))
    return strips


def _named(names: Sequence[str], number: int) -> str:
    return names[number] if number >= 0 else "unlabelled"


def _clip(features: RunFeatures, part: int, key: str) -> Tensor:
    """A video's first view: uint8 [T, H, W, 3]."""
    source = features.sources[part]
    index = next(number for number in range(len(source)) if source.key(number) == key)
    sample = InOrder(source, features.views)[index]
    if sample.views is None:
        raise UsageError(str(sample.failures[0]))
    return as_frames(as_clip(next(iter(sample.views.values()))[0]))


def neighbour_pages(title: str, strips: Sequence[Strip]) -> list[Image.Image]:
    """A page for each point in time: a strip a line."""
    times = min(len(strip.rows) for strip in strips)
    return [
        sheet(title, [Strip(s.caption, s.headings, (s.rows[time],)) for s in strips]) for time in range(times)
    ]


def embedding(features: RunFeatures) -> tuple[NDArray[np.float64], list[int]]:
    """A map of the test videos by t-SNE (van der Maaten and Hinton 2008), the same at every call.

    Returns:
        [N, 2], and which test videos they are; of many an even choice.

    Raises:
        UsageError: if there are fewer than five.
    """
    from sklearn.manifold import TSNE

    chosen = evenly_spaced(len(features.test.keys), MOST_POINTS)
    if len(chosen) < 5:
        raise UsageError(f"a map takes five test videos or more, got {len(chosen)}")
    vectors = unit_vectors(features.test)[chosen].cpu().numpy()
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    made = TSNE(init="pca", random_state=0, perplexity=perplexity, max_iter=500).fit_transform(vectors)
    return made.astype(np.float64), chosen
