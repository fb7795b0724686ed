"""Test views: how many there are of a video, and that a video's views are averaged with each other only."""

import pytest
import torch
from torch import Tensor, nn

from vidssl import api as v
from vidssl.data.views.uniform import SegmentMiddles, SlowFast
from vidssl.interfaces import Backbone, Evaluator, Features, LabelledFeatures, ViewSampler


@pytest.fixture(scope="module")
def videos() -> v.MovingDigits:
    return v.MovingDigits(split="test", size=32, digit_size=24, num_frames=8, num_videos=5)


class Colours(Backbone):
    """The mean colour of a clip and its number of frames: enough to tell views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 4
        self.strides = (1, 1, 1)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        means = x.mean((2, 3, 4)) * self.scale
        vector = torch.cat([means, means.new_full((len(x), 1), x.shape[2])], dim=1)
        return Features(patches=vector[:, None, None, None])


class Fixed(Evaluator):
    """Logits that are a function of a view's features alone; notes how many samples it was given."""

    score_kind = "logits"

    def __init__(self) -> None:
        self.learned = self.tested = 0

    def class_scores(self, train: LabelledFeatures, test: Tensor, generator: torch.Generator) -> Tensor:
        self.learned, self.tested = len(train.vectors), len(test)
        weights = torch.randn(test.shape[1], train.num_classes, generator=torch.Generator().manual_seed(0))
        return 30 * test @ weights


@pytest.mark.parametrize(
    ("views", "count", "frames"),
    [
        (v.UniformClips(num_clips=4, num_crops=3, num_frames=2, frame_stride=1, size=16), 12, 2),
        (v.UniformClips(num_clips=10, num_crops=1, num_frames=2, frame_stride=1, size=16), 10, 2),
        (SegmentMiddles(num_frames=4, num_crops=3, size=16), 3, 4),
        # the mean of 2 slow and 4 fast frames, for each of 2 clips x 3 crops
        (SlowFast(num_frames=(2, 4), frame_strides=(2, 1), sizes=(16, 8), num_clips=2), 6, 3),
    ],
)
def test_every_video_has_as_many_views_as_clips_times_crops(
    views: ViewSampler, count: int, frames: int, videos: v.MovingDigits
) -> None:
    table = v.extract(Colours(), videos, views, batch_size=2)
    assert table.vectors.shape == (5, count, 4)
    assert (table.vectors[:, :, 3] == frames).all()
    generator = torch.Generator()
    for number in range(
        5
    ):  # in the order of clips, crops inside; of slow and fast clips the i-th go together
        slots = views.sample(videos, number, generator)
        clips = [[slot.float().div(255).mean((1, 2, 3)) for slot in given] for given in slots.values()]
        means = torch.stack([torch.stack(pair).mean(0) for pair in zip(*clips, strict=True)])
        torch.testing.assert_close(table.vectors[number, :, :3], means)


def test_softmax_is_averaged_over_the_views_of_each_video(videos: v.MovingDigits) -> None:
    views = v.UniformClips(num_clips=2, num_crops=3, num_frames=2, frame_stride=1, size=16)
    table = v.extract(Colours(), videos, views, batch_size=2)
    evaluator = Fixed()
    scores = {s.label: s for s in v.probe(evaluator, table, table, average="probabilities", overlap="allow")}
    assert (evaluator.learned, evaluator.tested) == (5 * 6, 5 * 6)
    for label, found in scores.items():
        weights = torch.randn(4, len(table.classes[label]), generator=torch.Generator().manual_seed(0))
        expected = [(30 * table.vectors[n] @ weights).softmax(1).mean(0).argmax().item() for n in range(5)]
        assert list(found.predicted) == expected
        assert found.num_test == 5


def test_the_vector_of_a_clip_is_the_class_token_or_the_mean_of_patches(videos: v.MovingDigits) -> None:
    torch.manual_seed(0)
    network = v.ViT(embed_dim=8, depth=1, num_heads=2, patch_size=(2, 8, 8), class_token=True).eval()
    views = v.UniformClips(num_clips=1, num_frames=4, frame_stride=1, size=16)
    clip = (
        torch.stack([views.sample(videos, n, torch.Generator())["clip"][0] for n in range(5)]).float() / 255
    )
    with torch.no_grad():
        expected = network(clip)
    torch.testing.assert_close(v.extract(network, videos, views).vectors[:, 0], expected.cls)
    found = v.extract(network, videos, views, layers="patches").vectors[:, 0]
    torch.testing.assert_close(found, expected.patches.mean((1, 2, 3)))
