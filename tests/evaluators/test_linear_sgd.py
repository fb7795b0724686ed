"""SGD on frozen features: torch's own SGD step by step, scikit-learn's optimum, and who chooses."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from vidssl.data.classes import repeated
from vidssl.errors import UsageError
from vidssl.evaluators.held_out import shown
from vidssl.evaluators.linear import LinearSGD
from vidssl.interfaces import LabelledFeatures


def blobs(num: int, classes: int, distance: float, seed: int) -> LabelledFeatures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (num,), generator=generator)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(1)) * distance
    return LabelledFeatures(centres[labels] + torch.randn(num, 6, generator=generator), labels, classes)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def by_torch(
    train: LabelledFeatures, *, rate: float, decay: float, epochs: int, weight: torch.Tensor | None = None
) -> torch.nn.Linear:
    """SVT's loop: torch.optim.SGD, the rate set once an epoch along a cosine to 0."""
    generator = seeded()
    layer = torch.nn.Linear(6, train.num_classes)
    start = torch.randn(train.num_classes, 7, generator=generator) * 0.01
    layer.weight.data.copy_(start[:, :-1])
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * 32 / 256, momentum=0.9, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.labels), generator=generator).split(32):
            optimizer.zero_grad()
            loss = F.cross_entropy(layer(train.vectors[rows]), train.labels[rows], weight, reduction="sum")
            (loss / len(rows)).backward()
            optimizer.step()
        schedule.step()
    return layer


def test_steps_are_those_of_torchs_sgd_with_a_cosine_per_epoch():
    train = blobs(75, 3, 1.0, 2)  # the last batch of an epoch is smaller
    expected = by_torch(train, rate=0.4, decay=0.01, epochs=7)(train.vectors)
    probe = LinearSGD(lr=0.4, weight_decay=0.01, batch_size=32, epochs=7)
    torch.testing.assert_close(
        probe.class_scores(train, train.vectors, seeded()), expected.detach(), atol=1e-5, rtol=1e-4
    )


def test_a_long_training_ends_at_scikit_learns_optimum():
    train = blobs(60, 3, 0.7, 3)
    decay = 0.05
    probe = LinearSGD(lr=4.0, weight_decay=decay, batch_size=60, epochs=400)
    ours = probe.class_scores(train, train.vectors, seeded()).softmax(1)
    # the bias is decayed too, so it is a weight of a feature that is always 1
    inputs = F.pad(train.vectors, (0, 1), value=1.0).double().numpy()
    model = LogisticRegression(C=1 / (decay * 60), fit_intercept=False, tol=1e-10, max_iter=5000)
    theirs = model.fit(inputs, train.labels.numpy()).predict_proba(inputs)
    torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), atol=1e-3, rtol=0)


def test_the_pair_that_is_best_on_held_out_videos_is_trained_again_on_all():
    train = blobs(200, 4, 2.0, 4)
    hopeless = 1e-9
    grid = LinearSGD(lr=(hopeless, 0.5), weight_decay=(0.0, 1e-3), batch_size=16, epochs=5)
    scores = grid.class_scores(train, train.vectors, seeded())
    assert (scores.argmax(1) == train.labels).float().mean() > 0.9
    fixed, words = grid.settled(train, seeded())
    assert (fixed.rates, words.partition(",")[0]) == ((0.5,), "lr 0.5 (the largest tried)")
    untrained = LinearSGD(lr=hopeless, batch_size=16, epochs=5).class_scores(train, train.vectors, seeded())
    assert (untrained.argmax(1) == train.labels).float().mean() < 0.6


def test_a_grid_is_trained_as_each_pair_alone():
    train = blobs(50, 3, 1.0, 5)
    probe = LinearSGD(lr=(0.1, 0.4), batch_size=16, epochs=3)
    pairs = ((0.1, 0.0), (0.4, 0.01))
    together = probe._fit(train.vectors, train.labels, 3, pairs, seeded())
    for number, pair in enumerate(pairs):
        alone = probe._fit(train.vectors, train.labels, 3, (pair,), seeded())
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[number], one[0])


def test_what_else_is_tested_changes_no_score():
    train = blobs(60, 3, 0.8, 5)
    probe = LinearSGD(lr=(0.01, 0.4), epochs=3)
    some = probe.class_scores(train, train.vectors[:7], seeded())
    torch.testing.assert_close(some, probe.class_scores(train, train.vectors, seeded())[:7])


def test_too_few_videos_to_choose_are_named():
    two = LabelledFeatures(torch.zeros(2, 6), torch.tensor([0, 1]), 2)
    with pytest.raises(UsageError, match="2 videos, one of each class, are too few"):
        LinearSGD(lr=(0.1, 1.0)).class_scores(two, torch.zeros(1, 6), seeded())
    assert LinearSGD(lr=0.1).class_scores(two, torch.zeros(1, 6), seeded()).shape == (1, 2)


@pytest.mark.parametrize(
    "keys",
    [{"lr": ()}, {"lr": 0.0}, {"weight_decay": -1.0}, {"momentum": 1.0}, {"epochs": 0}],
)
def test_numbers_out_of_range_are_refused(keys):
    with pytest.raises(ValueError, match="must"):
        LinearSGD(**keys)


def unequal() -> LabelledFeatures:
    """20 samples of a class, 4 of another and none of a third, whose blobs overlap."""
    labels = torch.tensor([0] * 20 + [1] * 4)
    noise = torch.randn(24, 6, generator=torch.Generator().manual_seed(5))
    return LabelledFeatures(0.3 * labels[:, None] + noise, labels, 3)


def test_a_balanced_loss_weighs_samples_as_scikit_learn_does():
    train = unequal()
    by_sklearn = compute_class_weight("balanced", classes=np.arange(2), y=train.labels.numpy())
    weight = torch.tensor([*by_sklearn, 0.0], dtype=torch.float32)
    expected = by_torch(train, rate=0.4, decay=0.01, epochs=7, weight=weight)(train.vectors)
    probe = LinearSGD(lr=0.4, weight_decay=0.01, batch_size=32, epochs=7, balance="loss")
    torch.testing.assert_close(
        probe.class_scores(train, train.vectors, seeded()), expected.detach(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_what_balances_classes_names_more_of_the_rare_one(balance):
    train = unequal()

    def rare(probe: LinearSGD) -> int:
        return int((probe.class_scores(train, train.vectors, seeded()).argmax(1)[20:] == 1).sum())

    settings = {"lr": 2.0, "batch_size": 8, "epochs": 20}
    assert rare(LinearSGD(**settings, balance=balance)) > rare(LinearSGD(**settings))


def test_sampling_shows_every_class_as_often():
    assert repeated([0, 0, 0, 1, -1]) == [0, 1, 2, 3, 3, 3]
    rows, weights = shown(torch.tensor([0, 0, 0, 1]), "sampling", 2)
    assert rows.tolist() == [0, 1, 2, 3, 3, 3]
    assert weights.tolist() == [1.0, 1.0]
