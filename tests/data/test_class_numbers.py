"""One numbering of classes, by name, for the videos that are learned from and those that are tested on."""

import pytest
import torch
from torch import Tensor
from toy_parts import Means

from vidssl import api as v
from vidssl.data.classes import class_counts, counted_classes, numbered_together, ordered_classes
from vidssl.data.loader import Loader, Stream, numbered_alike
from vidssl.data.views.random import SingleClip
from vidssl.errors import UsageError
from vidssl.evaluate.report import classes_of
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.scores import probe
from vidssl.interfaces import DataSource, SampleInfo

CLIP = SingleClip(num_frames=2, frame_stride=1, size=4)


class Named(DataSource):
    """Grey videos, each of a class that is given by name."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.label_classes = {"class": tuple(sorted(set(names)))}

    def __len__(self) -> int:
        return len(self.names)

    def info(self, index: int) -> SampleInfo:
        number = self.label_classes["class"].index(self.names[index])
        return SampleInfo(f"{index}.mp4", 8, 30.0, {"class": number})

    def read(self, index: int, frames: object) -> Tensor:
        return torch.zeros(len(list(frames)), 3, 16, 16, dtype=torch.uint8)


def table(vectors: list[list[float]], numbers: list[int], *classes: str) -> FeatureTable:
    keys = tuple(map(str, range(len(numbers))))
    return FeatureTable(
        torch.tensor(vectors)[:, None],
        {"class": torch.tensor(numbers)},
        {"class": classes},
        keys,
        len(keys),
        (),
    )


def test_classes_are_those_that_occur_in_order_of_number_or_name() -> None:
    assert ordered_classes(["10", "9", "0", "9"], "class", "here") == ("0", "9", "10")
    assert ordered_classes(["10", "b", "9"], "class", "here") == ("10", "9", "b")
    with pytest.raises(UsageError, match="here: label 'class' has the class 2000000000"):
        ordered_classes(["2000000000", "1"], "class", "here")


def test_a_test_set_may_lack_classes_and_have_its_own() -> None:
    train, test = {"class": ("a", "b"), "who": ("x",)}, {"class": ("b", "c")}
    assert numbered_together(train, test) == {"class": ("a", "b", "c")}
    lines = [*class_counts({"class": [0, 0, 1]}, {"class": [1, 2, 2, -1]}, {"class": ("a", "b", "c")})]
    assert lines == [
        "train, label 'class': 3 classes: a (2), b (1), c (0)",
        "test, label 'class': 3 classes: a (0), b (1), c (2)",
        "label 'class': no test video is of a, so nothing is said of it; "
        "'vidssl data split' shares classes out",
        "label 'class': 2 test videos are of classes that no training video has (c), and count as wrong; "
        "'vidssl data split' shares classes out",
    ]
    assert counted_classes(range(11), list("abcdefghijk")).endswith(
        "1 to 1 video each. Is it an ID, not a class?"
    )


def test_a_probe_numbers_train_and_test_together() -> None:
    learned = table([[1.0, 0.0], [0.0, 1.0]], [0, 1], "a", "b")
    tested = table([[0.1, 1.0], [1.0, 0.2], [0.0, 1.0]], [0, 1, -1], "b", "c")
    (score,) = probe(KNN(k=1), learned, tested)
    assert (score.top1, score.num_test) == (0.5, 2)  # b is b, though it is 1 in one and 0 in the other
    shared = numbered_together(learned.classes, tested.classes)
    lines = classes_of(learned.renumbered(shared), tested.renumbered(shared))
    assert "test, label 'class': 3 classes: a (0), b (1), c (1)" in lines


def test_test_streams_go_by_the_numbers_of_training_streams() -> None:
    streams = {"video": Stream(Named("a", "b"), CLIP, batch_size=2)}
    tests = {"video": Stream(Named("b", "c"), CLIP, batch_size=2)}
    with Loader(numbered_alike(tests, streams)) as batches:
        batch = next(batches)
    named = dict(zip(batch.indices["video"].tolist(), batch.labels["video"]["class"].tolist(), strict=True))
    assert named == {0: 1, 1: 2}
    with pytest.raises(UsageError, match=r"data.video.test_source: .*\(c\): .* objective.num_classes=3"):
        v.train(
            v.Classification(Means(), num_classes=2),
            streams,
            optim=v.AdamW(lr=1e-3),
            schedule=v.Cosine(steps=1),
            name="x",
            run=v.RunSpec(device="cpu"),
            test_streams=tests,
        )
