"""VIMPAC's transformer: sizes of the paper, layouts, positions of other shapes, released checkpoints."""

import json

import pytest
import torch
from torch import Tensor
from vimpac_reference import FOLDER, TOY, difference, load, part, toy_backbone

from vidssl.backbones.factorized import Branch, Factorized, FactorizedPositions, parse_layout
from vidssl.errors import UsageError
from vidssl.weights.published_keys import is_published, published_keys, resize_table


def toy(**keys: object) -> Factorized:
    torch.manual_seed(0)
    return Factorized(**{**TOY, "num_frames": 2, "height": 4, "width": 4, "dropout": 0.0, **keys})


def paper_size(**keys: object) -> Factorized:
    with torch.device("meta"):
        return Factorized(**{"vocab_size": 8192, "num_frames": 5, "height": 16, "width": 16, **keys})


def example(grid: tuple[int, int, int] = (2, 4, 4), batch: int = 2) -> Tensor:
    return torch.randint(0, 64, (batch, *grid), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"variant": "small"}, 29_442_048),
        ({"variant": "base"}, 119_748_096),
        ({"variant": "large_half"}, 210_106_368),
        ({"variant": "large_half", "height": 32, "width": 32}, 210_139_136),
        ({"embed_dim": 768, "depth": 6, "num_heads": 12}, 63_037_440),
        ({"embed_dim": 512, "depth": 12, "num_heads": 8}, 54_666_240),
        ({"variant": "small", "layout": "T,H,W"}, 35_751_936),
    ],
)
def test_parameters_are_as_many_as_in_the_paper(keys: dict[str, object], count: int) -> None:
    assert sum(p.numel() for p in paper_size(**keys).parameters()) == count


def test_one_joint_block_a_layer_has_table_13_s_parameters() -> None:
    net = paper_size(variant="small", layout="TxHxW")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 23.1


def test_layouts_are_read_as_blocks_of_branches_of_axes() -> None:
    assert parse_layout("T,H|W") == ((("T",),), (("H",), ("W",)))
    assert parse_layout("T, HxW") == ((("T",),), (("H", "W"),))
    assert parse_layout("TxHxW") == ((("T", "H", "W"),),)
    for wrong in ("", "T,", "T,h", "TxT", "T;H"):
        with pytest.raises(ValueError, match=r"none of the axes T, H, W"):
            parse_layout(wrong)


def slow_attention(branch: Branch, tokens: Tensor, axes: set[str], grid: tuple[int, int, int]) -> Tensor:
    """A cell at a time: it sees the class token and the cells that differ from it in ``axes`` alone."""
    q, k, v = branch.qkv(tokens).chunk(3, dim=-1)
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid))
    fixed = [i for i, axis in enumerate("THW") if axis not in axes]
    heads = [part.unflatten(-1, (branch.num_heads, -1)) for part in (q, k, v)]

    def look(at: int, seen: Tensor) -> Tensor:
        index = torch.cat((torch.zeros(1).long(), seen + 1))
        query, key, value = heads[0][:, at], heads[1][:, index], heads[2][:, index]
        weights = (torch.einsum("bmd,bnmd->bmn", query, key) / query.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bmn,bnmd->bmd", weights, value).flatten(1)

    lines = [(places[:, fixed] == place[fixed]).all(dim=1).nonzero()[:, 0] for place in places]
    outputs = [look(1 + i, line) for i, line in enumerate(lines)]
    different = {tuple(line.tolist()) for line in lines}
    copies = torch.stack([look(0, torch.tensor(line)) for line in different]).mean(0)
    return torch.stack((copies, *outputs), dim=1)


@pytest.mark.parametrize("axes", [("T",), ("W",), ("H", "W"), ("T", "W"), ("T", "H", "W")])
@torch.no_grad()
def test_branch_equals_attention_a_cell_at_a_time(axes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    branch, tokens = Branch(12, 8, num_heads=2, axes=axes, dropout=0.0), torch.randn(2, 1 + 24, 12)
    slow = slow_attention(branch, tokens, set(axes), (2, 3, 4))
    assert difference(branch(tokens, (2, 3, 4), None), slow) < 1e-6


@torch.no_grad()
def test_textbook_pre_norm_adds_to_what_came_in() -> None:
    net = toy(norm="pre", depth=1, layout="TxHxW")
    for p in net.parameters():
        p.normal_(std=0.3)
    ids, layer = example(), net.layers[0]
    cls = (net.class_token + net.positions.of_class_token()).expand(2, 1, -1)
    x = torch.cat((cls, (net.embedding(ids) + net.positions((2, 4, 4))).flatten(1, 3)), dim=1)
    x = x + layer.attentions[0](layer.attention_norms[0](x), (2, 4, 4), None)
    x = net.last_norm(x + layer.mlp(layer.mlp_norm(x)))
    features = net(ids)
    assert difference(features.cls, x[:, 0]) < 1e-5
    assert difference(features.patches.flatten(1, 3), x[:, 1:]) < 1e-5
    published = toy(norm="pre_published", depth=1, layout="TxHxW")
    published.load_state_dict(net.state_dict())
    assert difference(published(ids).patches, features.patches) > 0.01


def test_branches_add_less_at_the_start_of_a_pre_norm_model() -> None:
    torch.manual_seed(0)
    post, pre = toy(norm="post", embed_dim=128), toy(norm="pre", embed_dim=128)
    for name, share in (("attentions.0.proj", 6**-0.5), ("mlp.fc2", 6**-0.5), ("mlp.fc1", 1.0)):
        weights = [net.layers[1].get_submodule(name).weight.detach() for net in (post, pre)]
        assert float(weights[1].std() / weights[0].std()) == pytest.approx(share, rel=0.05)


@torch.no_grad()
def test_padding_stays_padding_under_the_mask_and_is_not_seen() -> None:
    net, ids = toy().eval(), example()
    ids[:, 1] = net.pad_id
    over_padding = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    over_padding[:, 1] = True
    before = net(ids)
    assert torch.equal(net(ids, over_padding).patches, before.patches)
    net.embedding.weight[net.pad_id] += 1.0
    after = net(ids)
    assert torch.equal(after.patches[:, 0], before.patches[:, 0])
    assert torch.equal(after.cls, before.cls)
    assert difference(net(example()).patches[:, 0], before.patches[:, 0]) > 0.01


@torch.no_grad()
def test_clips_of_padding_alone_give_numbers() -> None:
    net = toy().eval()
    features = net(torch.full((2, 2, 4, 4), net.pad_id))
    assert torch.isfinite(features.cls).all()
    assert torch.isfinite(features.patches).all()


def test_dropout_acts_in_training_alone() -> None:
    net, ids = toy(dropout=0.5), example()
    assert not torch.equal(net(ids).cls, net(ids).cls)
    net.eval()
    assert torch.equal(net(ids).cls, net(ids).cls)


@pytest.mark.parametrize(
    "case", ["t5h16w16_to_t10h16w16", "t5h16w16_to_t10h32w32", "t5h32w32_to_t3h16w16", "temporal"]
)
def test_position_tables_are_resized_as_published(case: str) -> None:
    golden = part(load("pos_interp"), "t2h4w4_to_t3h6w6_temporal/" if case == "temporal" else f"{case}/")
    before, after = part(golden, "before/"), part(golden, "after/")
    assert set(before) == set(after) > {"temporal_pos_embedding"}
    for key, table in before.items():
        assert difference(resize_table(table, len(after[key])), after[key]) < 1e-6


@torch.no_grad()
def test_positions_of_another_size_are_used_and_loaded_alike() -> None:
    golden = part(load("pos_interp"), "t5h16w16_to_t10h32w32/")
    names = ("temporal", "height", "width")
    before = [golden[f"before/{name}_pos_embedding"] for name in names]
    t, h, w = (golden[f"after/{name}_pos_embedding"] for name in names)
    positions = FactorizedPositions((5, 16, 16), 16)
    positions.time.data, positions.height.data, positions.width.data = before
    wanted = t[:, None, None] + h[:, None] + w
    assert difference(positions((10, 32, 32)).expand(10, 32, 32, 16), wanted) < 1e-6

    old, new = toy(num_frames=2, height=4, width=6).eval(), toy(num_frames=3, height=8, width=5).eval()
    found = new.translate(old.state_dict())
    assert found is not None
    assert found.reshaped == ("positions.time", "positions.height", "positions.width")
    new.load_state_dict(dict(found.state))
    ids = example((3, 8, 5))
    assert difference(new(ids).patches, old(ids).patches) < 1e-5


def test_joint_tables_hold_for_their_own_size() -> None:
    with pytest.raises(ValueError, match=r"made for \(2, 4, 4\) ids, got \(2, 8, 4\): set num_frames"):
        toy(positions="joint").grid(2, 8, 4)
    with pytest.raises(ValueError, match=r"of the plane is made for \(4, 4\) ids, got \(8, 4\)"):
        toy(positions="temporal")(example((2, 8, 4)))
    assert toy(positions="temporal")(example((5, 4, 4))).patches.shape == (2, 5, 4, 4, 32)


@pytest.mark.parametrize(("file", "variant"), [("keys_small", "small"), ("keys_large_half", "large_half")])
def test_every_key_of_a_release_is_taken_or_named_as_dropped(file: str, variant: str) -> None:
    known = json.loads((FOLDER / f"{file}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in known["keys"].items()}
    net = paper_size(variant=variant)
    own = net.state_dict()
    found = net.translate(state)
    assert found is not None
    assert set(found.state) == set(own)
    assert {key: x.shape for key, x in found.state.items()} == {key: x.shape for key, x in own.items()}
    taken = [name for key in own for name in published_keys(key, post_norm=True)]
    assert len(taken) == len(set(taken))
    assert set(taken) == {key for key in state if key.startswith("backbone.")}
    assert set(found.dropped) == {key for key in state if not key.startswith("backbone.")}
    assert found.reshaped == ()


def test_release_of_another_size_is_resized_and_one_of_a_finetuned_model_read() -> None:
    known = json.loads((FOLDER / "keys_small.json").read_text())
    state = {key: torch.zeros(shape) for key, shape in known["keys"].items() if key.startswith("backbone.")}
    state |= {key: torch.zeros(shape) for key, shape in known["finetune_keys"].items()}
    found = paper_size(variant="small", num_frames=10, height=32, width=32).translate(state)
    assert found is not None
    assert found.reshaped == ("positions.time", "positions.height", "positions.width")
    assert found.state["positions.time"].shape == (10, 512)
    assert set(found.dropped) == {"cls_fc.weight", "cls_fc.bias"}


def test_checkpoints_whose_norms_stand_elsewhere_are_refused() -> None:
    state = part(load("model_T_HW_preact"), "state/")
    with pytest.raises(UsageError, match="needs a backbone with norm: pre_published"):
        toy_backbone("model_T_HW").translate(state)
    with pytest.raises(UsageError, match="norm: post or pre_published"):
        toy(norm="pre").translate(state)
    with pytest.raises(UsageError, match="needs a backbone with norm: post"):
        toy_backbone("model_T_HW_preact").translate(part(load("model_T_HW"), "state/"))


def test_weights_of_others_are_no_layout_of_this_one() -> None:
    assert not is_published({"blocks.0.attn.qkv.weight": torch.zeros(1)})
    assert toy().translate({"blocks.0.attn.qkv.weight": torch.zeros(1)}) is None
    with pytest.raises(ValueError, match=r"'head\.weight' is no parameter of Factorized"):
        published_keys("head.weight", post_norm=True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"layout": "T|H|W"}, "3 branches side by side cannot share out 32 channels and 4 heads evenly"),
        ({"num_heads": 3}, "32 channels cannot be divided among 3 heads"),
        ({"variant": "small"}, "variant 'small' already sets embed_dim, depth"),
        ({"depth": None}, "give a variant"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"vocab_size": 0}, "must be positive"),
        ({"init_std": 0.0}, "init_std must be above 0"),
        ({"norm": "sandwich"}, "norm must be"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        toy(**keys)


def test_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="reads token ids"):
        toy()(torch.rand(2, 3, 4, 32, 32))


def test_layers_are_named_for_rates_that_fall_with_depth() -> None:
    net = toy()
    names = [name for layer in net.layer_names() for name in layer]
    assert all(any(key == n or key.startswith(f"{n}.") for n in names) for key, _ in net.named_parameters())
