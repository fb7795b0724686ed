"""The attentive probe: where means know nothing, its grid, its seeds; patch tokens through every layer."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.evaluators.attentive import (
    Attentive,
    AttentiveNetwork,
    CrossAttention,
    _task,
    attend,
    focal_loss,
    parameter_groups,
)
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.linear import Linear
from vidssl.evaluators.scores import probe
from vidssl.interfaces import LabelledFeatures, LabelledPatches, PatchTokens

WIDTH, CLASSES = 16, 3


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def hidden_in_one_patch(num: int, seed: int, *, views: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens [N, V, 6, D] whose label lies in one patch, told by a mark; another cancels it in every mean."""
    generator = seeded(seed)
    labels = torch.randint(CLASSES, (num,), generator=generator)
    codes = torch.randn(CLASSES, WIDTH - 1, generator=seeded(77)) * 3
    tokens = 0.1 * torch.randn(num, views, 6, WIDTH, generator=generator)
    tokens[..., -1] = 0
    for row in range(num):
        for view in range(views):
            one, other = torch.randperm(6, generator=generator)[:2].tolist()
            tokens[row, view, one, :-1] += codes[labels[row]]
            tokens[row, view, other, :-1] -= codes[labels[row]]
            tokens[row, view, one, -1], tokens[row, view, other, -1] = 4, -4
    return tokens - tokens.mean(2, keepdim=True), labels


def table(tokens: Tensor, labels: Tensor, **reordered: Tensor) -> FeatureTable:
    kept = {"normal": tokens.half(), **{order: part.half() for order, part in reordered.items()}}
    return FeatureTable(
        vectors=tokens.mean(2),
        labels={"class": labels},
        classes={"class": tuple("abc")},
        keys=tuple(f"{number:04d}" for number in range(len(tokens))),
        num_listed=len(tokens),
        unreadable=(),
        reordered={order: part.mean(2) for order, part in reordered.items()},
        patches=kept,
    )


def patches(tokens: Tensor, labels: Tensor) -> LabelledPatches:
    return LabelledPatches(
        PatchTokens((tokens[:, 0].half(),), torch.arange(len(tokens))[:, None]), labels, CLASSES
    )


QUICK = {"lr": 3e-3, "num_heads": 2, "epochs": 12, "batch_size": 32}


# of one block alone, on the same videos: test_other_orders_of_frames_...
@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_learns_what_a_mean_over_patches_cannot_tell(depth):
    train, test = table(*hidden_in_one_patch(300, 1)), table(*hidden_in_one_patch(200, 2))
    (found,) = probe(Attentive(depth=depth, **QUICK), train, test)
    assert found.top1 >= 0.98
    (mean,) = probe(Linear(penalties=(10.0,), max_iterations=30), train, test)
    assert mean.low < 1 / 3 < mean.high


@pytest.mark.parametrize("average", ["features", "probabilities"])
def test_views_are_attended_to_together_or_their_answers_are_averaged(average):
    train = table(*hidden_in_one_patch(200, 1, views=2))
    (found,) = probe(Attentive(**QUICK), train, table(*hidden_in_one_patch(80, 2, views=2)), average=average)
    assert found.top1 > 0.8
    assert (found.num_train, found.num_test) == (200, 80)


def test_other_orders_of_frames_are_scored_by_the_probe_that_learned_on_normal_ones():
    tokens, labels = hidden_in_one_patch(60, 2)
    noise = torch.randn(tokens.shape, generator=seeded(3))
    train, test = table(*hidden_in_one_patch(300, 1)), table(tokens, labels, reversed=noise)
    normal, other = probe(Attentive(**QUICK), train, test)
    assert (normal.frames, other.frames) == ("normal", "reversed")
    assert normal.top1 > 0.95
    assert other.low < 1 / 3 < other.high


def test_the_order_of_videos_changes_nothing():
    tokens, labels = hidden_in_one_patch(40, 1)
    test = table(*hidden_in_one_patch(20, 2))
    shuffled = torch.randperm(40, generator=seeded(4))
    train = table(tokens, labels)
    other = FeatureTable(
        vectors=train.vectors[shuffled],
        labels={"class": labels[shuffled]},
        classes=train.classes,
        keys=tuple(train.keys[number] for number in shuffled.tolist()),
        num_listed=40,
        unreadable=(),
        patches={"normal": train.patches["normal"][shuffled]},
    )
    attentive = Attentive(lr=(1e-3, 3e-3), num_heads=2, epochs=2, batch_size=16)
    assert probe(attentive, train, test) == probe(attentive, other, test)


def test_a_seed_gives_the_same_scores_and_another_others():
    train = patches(*hidden_in_one_patch(60, 1))
    attentive = Attentive(lr=(1e-3, 3e-3), num_heads=2, epochs=2)
    first, again, other = (attentive.patch_scores(train, train.tokens, seeded(n)) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_grid_is_trained_as_each_pair_alone():
    train = patches(*hidden_in_one_patch(50, 1))
    attentive = Attentive(lr=(1e-3, 3e-3), num_heads=2, epochs=2, batch_size=16)
    rows, pairs = torch.arange(50), ((1e-3, 0.0), (3e-3, 0.5))
    together = attentive._fit(_task(train), rows, pairs, seeded())
    for network, pair in zip(together, pairs, strict=True):
        (alone,) = attentive._fit(_task(train), rows, (pair,), seeded())
        for one, many in zip(alone.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(one, many)


def test_steps_are_those_of_torchs_adamw_along_a_cosine():
    train = patches(*hidden_in_one_patch(40, 1))
    attentive = Attentive(lr=1e-3, weight_decay=0.3, num_heads=2, epochs=3, batch_size=16)
    generator = seeded()
    (expected,) = attentive._fresh(_task(train), 1, generator)
    groups = parameter_groups(expected, 1e-3, 0.3)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    for _ in range(3):
        for rows in torch.randperm(40, generator=generator).split(16):
            optimizer.zero_grad()
            logits = expected(train.tokens.tables[0][rows].float())
            torch.nn.functional.cross_entropy(logits, train.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    (found,) = attentive._fit(_task(train), torch.arange(40), ((1e-3, 0.3),), seeded())
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])


@pytest.mark.parametrize("variant", ["vjepa", "vjepa2"])
def test_the_steps_of_the_releases(variant):
    """Steps count from 1 to the last, whose rate is 0; V-JEPA clips, V-JEPA 2 decays everything."""
    train = patches(*hidden_in_one_patch(40, 1))
    keys = {"weight_decay": 0.3, "num_heads": 2, "epochs": 3, "batch_size": 16, "depth": 2}
    attentive = Attentive(lr=0.05, variant=variant, **keys)
    generator = seeded()
    (expected,) = attentive._fresh(_task(train), 1, generator)
    spared = [p for p in expected.parameters() if p.ndim == 1 and variant == "vjepa"]
    decayed = [p for p in expected.parameters() if all(p is not other for other in spared)]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": spared, "weight_decay": 0.0}])
    step, clipped = 0, 0
    for _ in range(3):
        for rows in torch.randperm(40, generator=generator).split(16):
            step += 1
            cosine = (1 + math.cos(math.pi * step / 9)) / 2
            optimizer.param_groups[0]["weight_decay"] = 1e-6 + (0.3 - 1e-6) * cosine if spared else 0.3
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * cosine
            optimizer.zero_grad()
            logits = expected(train.tokens.tables[0][rows].float())
            torch.nn.functional.cross_entropy(logits, train.labels[rows]).backward()
            if variant == "vjepa":
                clipped += torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0) > 1
            optimizer.step()
    assert clipped or variant == "vjepa2"
    (found,) = attentive._fit(_task(train), torch.arange(40), ((0.05, 0.3),), seeded())
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_initial_weights_of_the_releases_are_not_cut_and_end_branches_smaller():
    network = AttentiveNetwork(
        embed_dim=64,
        num_classes=3,
        num_queries=1,
        depth=4,
        num_heads=4,
        mlp_ratio=4.0,
        generator=seeded(),
        published=True,
    )
    stds = {name: float(p.detach().std()) for name, p in network.named_parameters() if p.ndim > 1}
    for number in (1, 2, 3):  # of the blocks; the cross-attention comes after them and counts as the third
        smaller = 0.02 / math.sqrt(2 * number)
        assert stds[f"blocks.{number - 1}.project.weight"] == pytest.approx(smaller, rel=0.05)
        assert stds[f"blocks.{number - 1}.mlp.3.weight"] == pytest.approx(smaller, rel=0.05)
        assert stds[f"blocks.{number - 1}.mlp.1.weight"] == pytest.approx(0.02, rel=0.05)
    assert stds["pool.mlp.3.weight"] == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert stds["pool.value.weight"] == pytest.approx(0.02, rel=0.05)
    assert network.pool.value.weight.abs().max() > 3 * 0.02


def test_the_chosen_pair_is_trained_in_the_same_variant():
    train = patches(*hidden_in_one_patch(60, 1))
    keys = {"num_heads": 2, "epochs": 2, "weight_decay": 0.1}
    found = [
        Attentive(lr=(1e-9, 3e-3), variant=variant, **keys).patch_scores(train, train.tokens, seeded())
        for variant in ("scaled", "vjepa", "vjepa2")
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_the_pair_that_is_best_on_held_out_videos_is_chosen():
    train = patches(*hidden_in_one_patch(150, 1))
    keys = {"num_heads": 2, "epochs": 12, "batch_size": 32}
    scores = Attentive(lr=(1e-9, 3e-3), **keys).patch_scores(train, train.tokens, seeded())
    assert (scores.argmax(1) == train.labels).double().mean() > 0.8  # the other pair learns nothing


def test_blocks_of_self_attention_stand_before_the_cross_attention():
    def parameters(depth: int) -> int:
        network = AttentiveNetwork(
            embed_dim=8,
            num_classes=3,
            num_queries=2,
            depth=depth,
            num_heads=2,
            mlp_ratio=4.0,
            generator=seeded(),
        )
        assert network(torch.zeros(5, 7, 8)).shape == (5, 3)
        return sum(parameter.numel() for parameter in network.parameters())

    # keys, queries and values, a projection, an MLP of 4 times the width, two norms
    block = 3 * (64 + 8) + (64 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    # without projection, and keys without bias
    assert parameters(1) == block - (64 + 8) - 8 + 2 * 8 + (16 * 3 + 3)
    assert parameters(4) == parameters(1) + 3 * block


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_cross_attention_is_the_textbooks(num_queries):
    pool = CrossAttention(embed_dim=12, num_heads=3, mlp_ratio=2.0)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, generator=seeded())
    queries, tokens = torch.randn(num_queries, 12), torch.randn(5, 7, 12)
    normed = pool.norm(tokens)
    attended = attend(pool.query(queries).expand(5, -1, -1), pool.key(normed), pool.value(normed), 3)
    expected = queries + attended
    torch.testing.assert_close(pool(queries, tokens), expected + pool.mlp(expected), atol=1e-4, rtol=1e-4)


def test_the_focal_loss_is_the_papers_worked_by_hand():
    zeros = focal_loss(torch.zeros(1, 3), torch.tensor([1]))  # each sigmoid is a half
    assert zeros == pytest.approx(math.log(2) * 0.25 * (0.25 + 2 * 0.75))
    odds = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # a sigmoid of 3/4
    first = 0.25 * -math.log(0.75) * 0.25**2 + 0.75 * math.log(2) / 4
    second = 0.75 * math.log(2) / 4 + 0.25 * math.log(2) / 4
    assert focal_loss(odds, torch.tensor([0, 1])) == pytest.approx(first + second)


@pytest.mark.parametrize("loss", ["softmax", "focal"])
def test_one_probe_learns_several_labels_with_a_query_each(loss):
    """Two labels, each in a patch of its own: the second's is marked in another channel."""
    tables = []
    for seed, num in ((1, 200), (2, 80)):
        (tokens, labels), (others, second) = (hidden_in_one_patch(num, seed + k) for k in (0, 10))
        made = table(torch.cat((tokens, others.roll(1, dims=-1)), dim=2), labels)
        classes = {"verb": tuple("abc"), "noun": tuple("abc")}
        tables.append(replace(made, labels={"verb": labels, "noun": second}, classes=classes))
    keys = {**QUICK, "lr": 1e-2, "epochs": 12, "loss": loss}
    verb, noun = probe(Attentive(together=("verb", "noun"), **keys), *tables)
    assert (verb.label, noun.label) == ("verb", "noun")
    assert min(verb.top1, noun.top1) > 0.9
    with pytest.raises(UsageError, match="no label 'action'"):
        probe(Attentive(together=("verb", "action"), **keys), *tables)
    with pytest.raises(ValueError, match="have a query each"):
        Attentive(together=("verb", "noun"), num_queries=2)


def test_each_label_reads_its_own_query_alone():
    network = AttentiveNetwork(
        embed_dim=8, num_classes=5, num_queries=2, depth=2, num_heads=2, mlp_ratio=4.0, generator=seeded(),
        heads=(2, 3),
    )  # fmt: skip
    tokens = torch.randn(4, 7, 8, generator=seeded(1))
    before = network(tokens)
    assert before.shape == (4, 5)
    with torch.no_grad():
        network.queries[1] += 1
    after = network(tokens)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:], atol=1e-4)


def test_tokens_are_read_where_they_lie_through_all_tables():
    tables = tuple(torch.randn(5, 2, 3, generator=seeded(n)).half() for n in (1, 2))
    tokens = PatchTokens(tables, torch.tensor([[0, 7], [9, 4], [3, 3]]))
    found = tokens.of(torch.tensor([1, 2])).read(torch.tensor([0]), torch.device("cpu"))
    assert found.dtype == torch.float32
    assert torch.equal(found[0], torch.cat((tables[1][4], tables[0][4])).float())
    assert (len(tokens), tokens.width) == (3, 3)


def test_mistakes_are_named():
    vectors = LabelledFeatures(torch.zeros(3, 6), torch.tensor([0, 1, 2]), 3)
    with pytest.raises(UsageError, match="width 6 do not divide among 4 heads"):
        Attentive(num_heads=4).class_scores(vectors, vectors.vectors, seeded())
    with pytest.raises(UsageError, match="3 videos, one of each class, are too few"):
        Attentive(num_heads=2).class_scores(vectors, vectors.vectors, seeded())
    bare = FeatureTable(
        torch.zeros(3, 1, 4), {"class": torch.arange(3)}, {"class": tuple("abc")}, tuple("xyz"), 3, ()
    )
    with pytest.raises(ValueError, match="no patch tokens"):
        probe(Attentive(lr=1e-3), bare, bare)


@pytest.mark.parametrize(
    "keys",
    [{"lr": ()}, {"lr": 0.0}, {"weight_decay": -1.0}, {"depth": 0}, {"num_queries": 0}, {"held_out": 1.0}],
)
def test_numbers_out_of_range_are_refused(keys):
    with pytest.raises(ValueError, match="must"):
        Attentive(**keys)
