"""The classification objective: what it learns, from which samples, and what answers in the end."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_parts import Means

from vidssl.backbones.vit import ViT
from vidssl.data.classes import class_weights
from vidssl.engine.optim import AdamW
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, Progress, Tokenizer
from vidssl.objectives.classification import Classification, mix

HERE = Progress(0, 1)


class IdMeans(Means):
    input_kind = "tokens"


class Threshold(Tokenizer):
    """Id 3 for each bright pixel, 0 for a dark one."""

    vocab_size = 4
    strides = (1, 1, 1)

    def encode(self, clip: Tensor) -> Tensor:
        return (clip[:, 0] > 0.5) * 3

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(size: int = 8, *shape: int, seed: int = 0) -> Tensor:
    return torch.rand(size, 3, *(shape or (2, 4, 4)), generator=generator(seed))


def batch(numbers: Sequence[int], seed: int = 0, label: str = "action") -> Batch:
    return Batch(
        views={"clip": (clips(len(numbers), seed=seed),)}, labels={"video": {label: torch.tensor(numbers)}}
    )


def simple(**keys: object) -> Classification:
    torch.manual_seed(0)
    return Classification(Means(), num_classes=3, head_std=1.0, **keys)


def test_samples_without_the_label_are_left_out() -> None:
    objective = simple()
    given = batch([0, -1, 2, -1])
    rows = given.views["clip"][0][[0, 2]]
    kept = Batch(views={"clip": (rows,)}, labels={"video": {"action": torch.tensor([0, 2])}})
    with_gaps, without = (objective(b, HERE, generator()) for b in (given, kept))
    torch.testing.assert_close(with_gaps.loss, without.loss)
    assert with_gaps.metrics["accuracy"] == without.metrics["accuracy"]


def test_a_batch_without_any_label_gives_a_loss_of_zero_with_a_gradient() -> None:
    objective = simple()
    loss = objective(batch([-1, -1]), HERE, generator()).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_the_label_is_found_by_name_or_as_the_only_one() -> None:
    two = batch([0, 1])
    two = Batch(two.views, labels={"video": {"action": torch.tensor([0, 1]), "speed": torch.tensor([2, 2])}})
    chosen = simple(label="speed")(two, HERE, generator()).loss
    only = simple()(Batch(two.views, labels={"video": {"speed": torch.tensor([2, 2])}}), HERE, generator())
    assert chosen == only.loss
    with pytest.raises(UsageError, match="needs just one label, and the videos have: action, speed"):
        simple()(two, HERE, generator())
    with pytest.raises(UsageError, match="needs the label 'colour' once, and the videos have: action"):
        simple(label="colour")(two, HERE, generator())


def test_a_class_beyond_num_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="num_classes is 3, and a video is of class 3"):
        simple()(batch([0, 3]), HERE, generator())


def test_features_of_several_views_are_averaged_before_the_layer() -> None:
    objective = simple(views=("slow", "fast")).eval()
    assert objective.needs_views == {"slow": 1, "fast": 1}
    slow, fast = clips(4, 2, 4, 4), clips(4, 6, 2, 2, seed=1)
    features = (slow.mean((1, 2, 3, 4)) + fast.mean((1, 2, 3, 4)))[:, None] / 2
    torch.testing.assert_close(objective.class_logits([slow, fast]), objective.classifier.head(features))
    given = Batch(
        views={"fast": (fast,), "slow": (slow,)}, labels={"video": {"x": torch.tensor([0, 1, 2, 0])}}
    )
    expected = F.cross_entropy(objective.classifier.head(features), torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(objective(given, HERE, generator()).loss, expected)


def test_ids_are_made_for_a_backbone_that_reads_them() -> None:
    objective = Classification(IdMeans(), Threshold(), num_classes=3).eval()
    x = clips(4)
    expected = objective.classifier.head((x[:, 0] > 0.5).float().mean((1, 2, 3))[:, None] * 3)
    torch.testing.assert_close(objective.class_logits([x]), expected)
    with pytest.raises(ValueError, match="a tokenizer must make them"):
        Classification(IdMeans(), num_classes=3)
    with pytest.raises(ValueError, match="nothing would use the tokenizer"):
        Classification(Means(), Threshold(), num_classes=3)


def test_a_head_of_deviation_zero_starts_undecided() -> None:
    objective = Classification(Means(), num_classes=7, head_std=0.0)
    assert not objective.classifier.head.weight.any()
    loss = objective(batch([0, 6, 3]), HERE, generator()).loss
    torch.testing.assert_close(loss, torch.tensor(7.0).log())


def test_dropout_smoothing_and_mixing_act_in_training_alone() -> None:
    plain, rich = simple().eval(), simple(dropout=0.5, label_smoothing=0.3, mixup=0.8, cutmix=1.0)
    given = batch([0, 1, 2, 1])
    outputs = [o(given, HERE, generator()) for o in (plain, rich.eval())]
    assert outputs[0].loss == outputs[1].loss
    assert outputs[1].metrics["most_frequent"] == 0.5
    assert rich.train()(given, HERE, generator()).loss != outputs[0].loss
    smooth = simple(label_smoothing=0.3)(given, HERE, generator()).loss
    logits = plain.class_logits([given.views["clip"][0]])
    soft = F.one_hot(torch.tensor([0, 1, 2, 1]), 3) * 0.7 + 0.1
    torch.testing.assert_close(smooth, -(soft * logits.log_softmax(1)).sum(1).mean())


def test_weights_of_classes_weigh_their_samples_losses() -> None:
    plain, weighted = (
        Classification(Means(), num_classes=2, class_weights=weights) for weights in (None, (0.5, 3.0))
    )
    weighted.load_state_dict(plain.state_dict())
    each = [
        float(plain(batch([number], seed=number), HERE, generator()).metrics["loss"]) for number in (0, 1)
    ]
    found = [
        float(weighted(batch([number], seed=number), HERE, generator()).metrics["loss"]) for number in (0, 1)
    ]
    assert found == pytest.approx([0.5 * each[0], 3.0 * each[1]])
    with pytest.raises(ValueError, match="class_weights must be 2 numbers"):
        Classification(Means(), num_classes=2, class_weights=(1.0,))


def test_balanced_weights_leave_out_a_class_that_no_sample_has() -> None:
    """Four samples of two classes, and a third that is empty: 4 / (2 x 3), 0 and 4 / (2 x 1)."""
    weights = class_weights(torch.tensor([0, 0, 0, 2]), num_classes=3)
    assert weights.tolist() == pytest.approx([2 / 3, 0.0, 2.0])


def test_the_average_follows_the_weights_and_answers_in_evaluation_mode() -> None:
    objective = simple(ema_momentum=0.25)
    names = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert names == {name for name, _ in objective.named_parameters() if name.startswith("average.")}
    start = [p.clone() for p in objective.classifier.parameters()]
    with torch.no_grad():
        for p in objective.classifier.parameters():
            p += 1
    objective.after_step(HERE, generator())
    assert objective.average is not None
    for first, kept in zip(start, objective.average.parameters(), strict=True):
        torch.testing.assert_close(kept, first + 0.25)
    assert objective.encoder() is objective.average.backbone
    assert objective.trained_encoder() is objective.classifier.backbone
    x = clips(4)
    assert torch.equal(objective.eval().class_logits([x]), objective.average([x]))
    assert torch.equal(objective.train().class_logits([x]), objective.classifier([x]))


def test_statistics_of_batch_norms_go_over_to_the_average() -> None:
    torch.manual_seed(0)
    backbone = Means()
    backbone.norm = nn.BatchNorm1d(2)
    objective = Classification(backbone, num_classes=2, ema_momentum=0.1)
    backbone.norm(torch.rand(8, 2))
    objective.after_step(HERE, generator())
    assert objective.average is not None
    assert torch.equal(objective.average.backbone.norm.running_mean, backbone.norm.running_mean)


def test_the_encoder_s_rate_is_that_of_the_trained_weights_also_beside_an_average() -> None:
    objective = simple(ema_momentum=0.1)
    groups = AdamW(lr=1.0, encoder_lr_scale=0.1).build(objective).param_groups
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["classifier.backbone.scale"] == pytest.approx(0.1)
    assert scales["classifier.head.weight"] == 1.0
    assert not [name for name in scales if name.startswith("average.")]


def separable(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise that is a little redder or a little bluer."""
    numbers = torch.randint(0, 2, (count,), generator=generator(seed))
    x = torch.rand(count, 3, 2, 16, 16, generator=generator(seed + 1)) * 0.5
    x[numbers == 1, 0] += 0.2
    x[numbers == 0, 2] += 0.2
    return x, numbers


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_tiny_vit_learns_what_can_be_told_apart_and_nothing_else(shuffled: bool) -> None:
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8), init_std=0.2)
    objective = Classification(net, num_classes=2)
    (x, numbers), (test, truth) = separable(64, seed=0), separable(200, seed=7)
    if shuffled:
        numbers, truth = (y[torch.randperm(len(y), generator=generator())] for y in (numbers, truth))
    given = Batch(views={"clip": (x,)}, labels={"video": {"colour": numbers}})
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(given, HERE, generator()).loss.backward()
        optimizer.step()
    right = (objective.eval().class_logits([test]).argmax(1) == truth).float().mean()
    assert 0.4 < right < 0.6 if shuffled else right > 0.9


def test_mixup_adds_neighbours_and_their_targets_alike() -> None:
    x, targets = clips(6), torch.eye(6)
    (mixed,), soft = mix([x], targets, mixup=0.8, cutmix=0.0, generator=generator())
    share = soft[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.roll(1, 0))
    torch.testing.assert_close(soft, share * targets + (1 - share) * targets.roll(1, 0))


def test_cutmix_replaces_one_box_in_all_frames_and_counts_its_area() -> None:
    x, targets = clips(4, 3, 32, 32), torch.eye(4)
    small = clips(4, 5, 8, 8, seed=1)
    for seed in range(20):
        (mixed, also), soft = mix([x, small], targets, mixup=0.0, cutmix=1.0, generator=generator(seed))
        own, other = mixed == x, mixed == x.roll(1, 0)
        assert bool((own | other).all())
        taken = (~own).any(0).any(0).any(0)  # [H, W]
        rows, columns = taken.any(1).nonzero()[:, 0], taken.any(0).nonzero()[:, 0]
        if len(rows):
            box = taken[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert bool(box.all())
        kept = [1 - taken.float().mean(), (also == small)[0, 0, 0].float().mean()]
        torch.testing.assert_close(soft.diagonal(), torch.full((4,), sum(kept) / 2))


def test_mixing_is_drawn_from_the_generator_alone_and_chooses_either_kind() -> None:
    x, targets = clips(4, 2, 16, 16), torch.eye(4)
    torch.manual_seed(1)
    first = mix([x], targets, mixup=0.8, cutmix=1.0, generator=generator(3))[0][0]
    torch.manual_seed(2)
    assert torch.equal(mix([x], targets, mixup=0.8, cutmix=1.0, generator=generator(3))[0][0], first)
    kinds = []
    for seed in range(40):
        mixed = mix([x], targets, mixup=0.8, cutmix=1.0, generator=generator(seed))[0][0]
        kinds.append(bool(((mixed == x) | (mixed == x.roll(1, 0))).all()))
    assert 8 < sum(kinds) < 32


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"views": ()}, "views must name one or more"),
        ({"views": ("clip", "clip")}, "different views"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"mixup": -1.0}, "head_std, mixup and cutmix"),
        ({"ema_momentum": 0.0}, "ema_momentum must lie above 0"),
    ],
)
def test_keys_out_of_range_are_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Classification(Means(), **{"num_classes": 3, **keys})
