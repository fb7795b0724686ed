"""Weights of V-JEPA 2 and 2.1 in every layout that they are published in, and what refuses to guess."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from released_layouts import vjepa_encoder
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.engine.checkpoint import save_checkpoint
from vidssl.errors import UsageError
from vidssl.interfaces import Translated
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.vjepa import VJEPA
from vidssl.weights.external import check_stated, stated_by_layout
from vidssl.weights.load import load_init, load_rest
from vidssl.weights.published_keys import to_predictor

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "vjepa" / "keys.json").read_text())
HEADS = {768: 12, 1024: 16, 1408: 22}
OLD: Mapping[str, object] = {"positions": "rotary_tiled"}
NEW: Mapping[str, object] = {"positions": "rotary", "position_span": 16, "modality": True}
ENCODERS = [name for name in KEYS if not name.endswith("predictor")]


def state_of(name: str) -> dict[str, Tensor]:
    """All tensors of a file, without memory."""
    found = {}
    for key, shape in KEYS[name]["tensors"].items():
        owner = next((one for one in KEYS[name]["depths"] if f"{one}.N." in key), None)
        for number in range(1 if owner is None else KEYS[name]["depths"][owner]):
            found[key.replace(".N.", f".{number}.")] = torch.empty(shape, device="meta")
    return found


def big(name: str) -> ViT:
    patches = next(
        shape
        for key, shape in KEYS[name]["tensors"].items()
        if key.endswith("proj.weight") and len(shape) == 5
    )
    dim, depth = patches[0], max(n for key, n in KEYS[name]["depths"].items() if "predictor" not in key)
    levels = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39)}[depth]
    newer = "2_1" in name
    with torch.device("meta"):
        return ViT(
            embed_dim=dim, depth=depth, num_heads=HEADS[dim], mlp_ratio=48 / 11 if dim == 1408 else 4.0,
            levels=levels if newer else (), **(NEW if newer else OLD),
        )  # fmt: skip


def translated(net: ViT, state: Mapping[str, Tensor]) -> Translated:
    found = net.translate(state)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_every_published_key_of_the_encoder_fills_one_of_ours(name: str) -> None:
    net, state = big(name), state_of(name)
    found, own = translated(net, state), net.state_dict()
    assert found.layout == f"V-JEPA 2{'.1' if '2_1' in name else ''}, published"
    assert {key: x.shape for key, x in found.state.items()} == {key: own[key].shape for key in found.state}
    assert set(own) - set(found.state) == {"mask_token"}
    assert {key.split(".")[0] for key in found.dropped} <= {"predictor"}
    made_for_images = {"embed_image.proj.weight"} if "2_1" not in name else set()
    assert set(found.reshaped) == made_for_images


@pytest.mark.parametrize(
    "name", ["vjepa2_vitl_predictor", "vjepa2_1_vitg_predictor", "vjepa2_1_vitb_predictor"]
)
def test_every_published_key_of_the_predictor_fills_one_of_ours(name: str) -> None:
    found = to_predictor(state_of(name), 2)
    assert found is not None
    depth = KEYS[name]["depths"]["blocks"]
    joined = "vitg" in name
    wide = {"vjepa2_vitl_predictor": 1024, "vjepa2_1_vitg_predictor": 1408, "vjepa2_1_vitb_predictor": 768}[
        name
    ]
    with torch.device("meta"):
        net = ViT(
            embed_dim=wide,
            depth=4,
            num_heads=HEADS[wide],
            levels=(0, 1, 2, 3) if joined else (),
            positions="rotary",
        )
        newer = "2_1" in name
        objective = VJEPA(
            net, MultiBlock(), predictor_depth=depth, predictor_modality=newer, context_weight=0.5 * newer
        )
    own = objective.predictor.state_dict()
    assert set(own) == set(found.state)
    out = (
        {"head.weight", "head.bias", "context_head.weight", "context_head.bias"} if "vitb" in name else set()
    )
    differ = {key for key, x in found.state.items() if own[key].shape != x.shape}
    assert differ == out  # B and L are distilled from a wider teacher
    assert all(".mask_tokens." in key for key in found.dropped)


def toy(newer: bool) -> ViT:
    torch.manual_seed(0)
    keys = {**NEW, "levels": (0, 1)} if newer else OLD
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8), **keys).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("part", ["target_encoder", "ema_encoder", "encoder"])
def test_a_release_gives_the_same_network_and_the_teacher_goes_first(
    newer: bool, part: str, tmp_path: Path
) -> None:
    source, other = toy(newer), {key: x + 1 for key, x in vjepa_encoder(toy(newer)).items()}
    content = {"encoder": other, part: vjepa_encoder(source), "predictor": {}, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    net = toy(newer)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    report = load_init(net, str(tmp_path / "weights.pt"), given={"positions"})
    assert report.new == ("mask_token",)
    assert f"part taken: '{part}'" in str(report)
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(net(clip).patches, source(clip).patches, atol=1e-6)
        if newer:
            assert torch.allclose(net(clip[:, :, :1]).levels[0], source(clip[:, :, :1]).levels[0], atol=1e-6)


def test_a_model_of_transformers_gives_the_same_network_and_predictor(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8, crop_size=16, frames_per_clip=4, hidden_size=48, num_attention_heads=3,
        num_hidden_layers=2, pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        pred_num_mask_tokens=3,
    )  # fmt: skip
    theirs = transformers.VJEPA2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    net, file = toy(False), str(tmp_path / "model.safetensors")
    assert load_init(net, file).new == ("mask_token",)
    objective = VJEPA(
        net,
        MultiBlock(),
        predictor_dim=12,
        predictor_depth=1,
        predictor_heads=2,
        predictor_positions="rotary_tiled",
    )
    report = load_rest(objective, f"{file}#predictor")
    assert all(key.startswith(("student.", "teacher.")) for key in report.new)
    clip, every = torch.rand(2, 3, 4, 16, 16), torch.arange(8).expand(2, -1)
    with torch.no_grad():
        theirs.predictor.embeddings.mask_tokens[1] = theirs.predictor.embeddings.mask_tokens[0]
        expected = theirs(net.normalise(clip).transpose(1, 2))
        seen = net.forward_visible(clip, every)
        assert torch.allclose(seen.patches, expected.last_hidden_state, atol=1e-5)
        found, _ = objective.predictor(seen.patches, seen, every, 1)
        assert torch.allclose(found, expected.predictor_output.last_hidden_state, atol=1e-5)


def test_positions_are_told_by_the_layout_and_never_guessed() -> None:
    old, new = vjepa_encoder(toy(False)), vjepa_encoder(toy(True))
    with pytest.raises(
        UsageError,
        match=r"set backbone\.positions=rotary_tiled backbone.position_span=null backbone.modality=false",
    ):
        toy(True).translate(old)
    with pytest.raises(
        UsageError, match=r"set backbone\.positions=rotary backbone.position_span=16 backbone.modality=true"
    ):
        toy(False).translate(new)
    with pytest.raises(UsageError, match=r"set backbone\.positions=rotary_tiled"):
        ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8)).translate(old)
    older = translated(toy(False), {**old, "module.backbone.pos_embed": torch.zeros(1, 8, 48)})
    assert "V-JEPA 1, whose keys are the same, would need it" in older.layout
    assert older.dropped == ("module.backbone.pos_embed",)


def test_other_heads_than_the_releases_are_refused() -> None:
    known = stated_by_layout("V-JEPA 2, published", 1280)
    assert known is not None
    assert known.num_heads == (16,)
    net = ViT(embed_dim=48, depth=1, num_heads=2, positions="rotary_tiled")
    with pytest.raises(UsageError, match=r"16 heads, and the network has 2: set backbone\.num_heads=16"):
        check_stated(net, known, "w.pt", None)
    assert stated_by_layout("VideoMAE, published", 1280) is None


def test_the_rest_of_a_run_starts_another(tmp_path: Path) -> None:
    def made(seed: int) -> VJEPA:
        torch.manual_seed(seed)
        return VJEPA(toy(False), MultiBlock(), predictor_dim=12, predictor_depth=1, predictor_heads=2)

    source, other = made(0), made(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1)
    save_checkpoint(tmp_path / "step.safetensors", source, step=3, recipe="")
    report = load_rest(other, str(tmp_path / "step.safetensors"))
    assert all(key.startswith("teacher.") for key in report.new)  # that is the encoder, backbone.init's
    for part in ("student", "predictor"):
        for key, x in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(other, part).state_dict()[key], x), key
