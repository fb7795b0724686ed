"""Weights to start from fill nine tenths of a network's numbers, or the recipe says that less will do."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.grid import load_grid
from vidssl.config.recipe import MIN_MATCHED, Recipe, load_recipe
from vidssl.engine.checkpoint import FORMAT
from vidssl.errors import UsageError
from vidssl.weights.load import load_init, load_state

ROOT = Path(__file__).parents[2]
STARTS_FROM = "\n  init: timm:vit_base_patch16_224.dino"
RECIPE = """\
name: share
objective: {type: classification, num_classes: 2}
backbone: {type: vit, embed_dim: 12, depth: 4, num_heads: 2, patch_size: [2, 8, 8]}
data:
  video:
    source: {type: moving_digits, split: train, size: 32, digit_size: 24, num_frames: 4, num_videos: 4}
    views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 32}
    batch_size: 2
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 5}
"""


def vit(depth: int = 4) -> ViT:
    torch.manual_seed(0)
    return ViT(embed_dim=12, depth=depth, num_heads=2, patch_size=(2, 8, 8))


def saved(state: dict[str, Tensor], path: Path) -> str:
    tensors = {f"encoder.{key}": value for key, value in state.items()}
    save_file(tensors, path, metadata={"format": FORMAT, "step": "1", "recipe": ""})
    return str(path)


@pytest.fixture
def shallow(tmp_path: Path) -> str:
    """A checkpoint of a network of half the depth."""
    return saved(
        {key: value + 1 for key, value in vit(depth=2).state_dict().items()}, tmp_path / "a.safetensors"
    )


def filled_by(source: ViT, net: ViT) -> float:
    own = net.state_dict()
    return sum(own[key].numel() for key in source.state_dict()) / sum(value.numel() for value in own.values())


def test_too_little_is_an_error_that_names_the_share_what_lacks_and_the_way_out(shallow: str) -> None:
    net = vit()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    share = filled_by(vit(depth=2), net)
    assert 0.5 < share < 0.8
    with pytest.raises(UsageError) as caught:
        load_init(net, shallow)
    message = str(caught.value)
    assert (
        f"fills {int(1000 * share) / 10:g} % of the numbers of ViT, and less than 90 % is an error" in message
    )
    assert "It lacks 24 (blocks.2.norm1.weight, blocks.2.norm1.bias, " in message
    assert f"backbone.init_min_matched={int(100 * share) / 100}" in message
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was taken over all the same"


def test_the_way_out_that_it_names_is_one(shallow: str) -> None:
    net = vit()
    with pytest.raises(UsageError) as caught:
        load_init(net, shallow)
    report = load_init(net, shallow, min_matched=float(str(caught.value).rpartition("=")[2]))
    assert report.fraction == pytest.approx(filled_by(vit(depth=2), net))
    assert len(report.new) == 24
    assert f"{int(1000 * report.fraction) / 10:g} % of the network's numbers" in str(report)
    assert torch.equal(net.norm.weight, torch.full((12,), 2.0))


def test_numbers_count_and_not_keys() -> None:
    """Of four tensors the smallest three are half a per cent of the numbers."""
    net = torch.nn.Sequential(torch.nn.Linear(100, 10), torch.nn.BatchNorm1d(10))
    large = {"0.weight": torch.zeros(10, 100)}
    report = load_state(net, large, "large", min_matched=0.9)
    # bias, and weight, bias and two statistics of the norm; its counter is no number of the network
    assert report.fraction == pytest.approx(1000 / 1050)
    small = {key: value for key, value in net.state_dict().items() if key != "0.weight"}
    with pytest.raises(UsageError, match=r"fills 4\.7 % of the numbers"):
        load_state(net, small, "small", min_matched=0.9)


def test_what_is_resized_counts_as_taken_over(tmp_path: Path) -> None:
    keys = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "size": 32}
    shorter, longer = TimeSformer(num_frames=2, **keys), TimeSformer(num_frames=64, **keys)
    tables = sum(p.numel() for name, p in longer.named_parameters() if "time_embed" in name)
    assert tables > 0.1 * sum(p.numel() for p in longer.parameters())
    report = load_init(longer, saved(shorter.state_dict(), tmp_path / "t.safetensors"))
    assert (report.fraction, report.reshaped, report.new) == (1.0, ("time_embed",), ())


def read(tmp_path: Path, *overrides: str) -> Recipe:
    (tmp_path / "share.yaml").write_text(RECIPE)
    return load_recipe(str(tmp_path / "share.yaml"), overrides)


def test_a_recipe_is_refused_at_its_key_and_may_say_that_less_will_do(tmp_path: Path, shallow: str) -> None:
    with pytest.raises(UsageError, match=r"backbone.init: .* fills .* backbone.init_min_matched=0\."):
        build.backbone(read(tmp_path, f"backbone.init={shallow}"))
    lines: list[str] = []
    build.backbone(
        read(tmp_path, f"backbone.init={shallow}", "backbone.init_min_matched=0.5"), say=lines.append
    )
    assert "new, with fresh values: 24" in lines[0]


def test_a_run_keeps_what_its_recipe_said(tmp_path: Path) -> None:
    said = read(tmp_path, "backbone.init=a.pth", "backbone.init_min_matched=0.5")
    (tmp_path / "again.yaml").write_text(resolved_text(said))
    assert load_recipe(str(tmp_path / "again.yaml")).start.init_min_matched == 0.5
    # where it said nothing, nothing is written: runs begun before there was the key go on
    assert "init_min_matched" not in resolved_text(read(tmp_path, "backbone.init=a.pth"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone.init_min_matched=0.5",), "describes 'init', and there is none"),
        (("backbone.init=a", "backbone.init_min_matched=90"), "must lie between 0 and 1, got 90"),
        (("backbone.init=a", "backbone.init_min_matched=some"), "expected a number"),
    ],
)
def test_a_share_that_is_none_is_refused(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, *overrides)


def test_recipes_that_leave_attention_over_time_random_say_so() -> None:
    """SVT's text (Sec. 4.1) fills 77 % of the network from DINO's image weights, its code all of it."""
    with torch.device("meta"):
        image = timm.create_model("vit_base_patch16_224.dino").state_dict()
        net = TimeSformer(temporal_init="random", num_frames=16)
        found = net.translate(image)
    assert found is not None
    own = net.state_dict()
    share = sum(own[key].numel() for key in found.state) / sum(value.numel() for value in own.values())
    paths = [path for path in (ROOT / "recipes").rglob("*.yaml") if STARTS_FROM in path.read_text()]
    recipes = [load_recipe(str(path)) for path in paths]
    recipes += [cell.recipe() for cell in load_grid("paper/svt_views").cells]
    assert len(recipes) == 11
    for recipe in recipes:
        assert recipe.start.init_min_matched < share < MIN_MATCHED


def test_what_fills_next_to_nothing_is_no_reason_to_accept_it() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(4, 1))
    with pytest.raises(UsageError, match=r"tiny: fills 0 %.*another architecture") as caught:
        load_state(net, {"1.bias": torch.zeros(1)}, "tiny", min_matched=0.9)
    assert "init_min_matched" not in str(caught.value)
