"""V-JEPA 2 against the ``transformers`` library's: encoder, predictor, masks applied; random weights."""

import pytest
import torch
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, Masker, Progress, Split
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.vjepa import VJEPA

transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")


class Fixed(Masker):
    """Gives some splits, whatever is drawn."""

    cuts_splits = True

    def __init__(self, splits: tuple[Split, ...]) -> None:
        self.made, self.num_splits = splits, len(splits)

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def splits(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> tuple[Split, ...]:
        return self.made


def theirs_of(dim: int, heads: int, size: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8, crop_size=size, frames_per_clip=6, tubelet_size=2, hidden_size=dim,
        num_attention_heads=heads, num_hidden_layers=3, mlp_ratio=4, pred_hidden_size=24,
        pred_num_attention_heads=2, pred_num_hidden_layers=2, pred_num_mask_tokens=3,
    )  # fmt: skip
    model = transformers.VJEPA2Model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def block_of(theirs: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for kind in ("weight", "bias"):
        parts = [theirs[f"{prefix}attention.{name}.{kind}"] for name in ("query", "key", "value")]
        found[f"attn.qkv.{kind}"] = torch.cat(parts)
        found[f"attn.proj.{kind}"] = theirs[f"{prefix}attention.proj.{kind}"]
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            found[f"{name}.{kind}"] = theirs[f"{prefix}{name}.{kind}"]
    return found


def ours_of(theirs: dict[str, Tensor], tokens: tuple[int, ...]) -> dict[str, Tensor]:
    found = {"predictor.mask_tokens": theirs["predictor.embeddings.mask_tokens"][list(tokens), 0, 0]}
    names = {
        "encoder.embeddings.patch_embeddings.proj": "student.embed_clip.proj",
        "encoder.layernorm": "student.norm",
        "predictor.embeddings.predictor_embeddings": "predictor.enter",
        "predictor.layernorm": "predictor.norm",
        "predictor.proj": "predictor.head",
    }
    for name, own in names.items():
        found |= {f"{own}.{kind}": theirs[f"{name}.{kind}"] for kind in ("weight", "bias")}
    for part, own, depth in (("encoder", "student", 3), ("predictor", "predictor", 2)):
        for i in range(depth):
            block = block_of(theirs, f"{part}.layer.{i}.")
            found |= {f"{own}.blocks.{i}.{key}": x for key, x in block.items()}
    return found


@pytest.mark.parametrize(("dim", "heads", "size"), [(24, 2, 32), (40, 2, 48)])
def test_encoder_predictor_loss_and_gradients_are_those_of_transformers(
    dim: int, heads: int, size: int
) -> None:
    theirs = theirs_of(dim, heads, size)
    net = ViT(embed_dim=dim, depth=3, num_heads=heads, patch_size=(2, 8, 8), positions="rotary_tiled")
    clips = torch.rand(2, 3, 6, size, size, dtype=torch.float64)
    grid = net.grid(6, size, size)
    splits = MultiBlock(areas=(0.15, 0.4)).splits(2, grid, torch.Generator().manual_seed(1))
    objective = VJEPA(
        net, Fixed(splits), predictor_dim=24, predictor_depth=2, predictor_heads=2,
        predictor_positions="rotary_tiled",
    ).double()  # fmt: skip
    missing = objective.load_state_dict(ours_of(theirs.state_dict(), (1, 1)), strict=False)
    assert missing.unexpected_keys == []
    objective.teacher.load_state_dict(objective.student.state_dict())
    pixels = net.normalise(clips).transpose(1, 2)

    whole = theirs.encoder(pixels).last_hidden_state
    assert torch.allclose(objective.teacher(clips).patches.flatten(1, 3), whole, atol=1e-5)
    target = torch.nn.functional.layer_norm(whole, whole.shape[-1:]).detach()
    losses = []
    for group, split in enumerate(splits):
        # theirs encodes the whole and picks; here the seen cells alone are encoded, so they are handed to it
        seen, found, _ = objective._predict(clips, split, group)
        places = split.seen[..., None].expand(-1, -1, dim)
        whole_seen = torch.zeros_like(whole).scatter(1, places, seen.patches.detach())
        expected = theirs.predictor(whole_seen, [split.seen], [split.predicted]).last_hidden_state
        assert torch.allclose(found, expected, atol=1e-5)
        wanted = target.gather(1, split.predicted[..., None].expand(-1, -1, dim))
        losses.append((expected - wanted).abs().mean())
    loss = torch.stack(losses).mean()
    output = objective(Batch({"clip": (clips,)}), Progress(0, 1), torch.Generator())
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)

    loss.backward()
    output.loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    for key, gradient in block_of(gradients, "predictor.layer.1.").items():
        own = objective.get_parameter(f"predictor.blocks.1.{key}").grad
        assert own is not None, key
        assert (own - gradient).norm() <= 1e-5 * gradient.norm(), key


def whole_clips():
    """Their network and ours with its weights, which predict all 48 cells of two clips from all of them."""
    theirs = theirs_of(24, 2, 32)
    net = ViT(embed_dim=24, depth=3, num_heads=2, patch_size=(2, 8, 8), positions="rotary_tiled")
    every = torch.arange(48).expand(2, -1)
    objective = VJEPA(
        net, Fixed((Split(every, every),)), predictor_dim=24, predictor_depth=2, predictor_heads=2,
        predictor_positions="rotary_tiled",
    ).double()  # fmt: skip
    objective.load_state_dict(ours_of(theirs.state_dict(), (1,)), strict=False)
    return theirs, objective, Split(every, every)


def test_the_whole_clip_predicted_from_itself_is_what_transformers_gives() -> None:
    """Its own call: all cells are context and target at once."""
    theirs, objective, whole = whole_clips()
    clips = torch.rand(2, 3, 6, 32, 32, dtype=torch.float64)
    expected = theirs(objective.student.normalise(clips).transpose(1, 2))
    seen, found, _ = objective._predict(clips, whole, 0)
    assert torch.allclose(seen.patches, expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(found, expected.predictor_output.last_hidden_state, atol=1e-5)


@pytest.mark.parametrize("num_slots", [1, 2])
def test_cells_behind_the_clip_are_predicted_as_transformers_predicts_them(num_slots: int) -> None:
    """A second behind a clip of three steps in time, at 8 frames a second: steps 7 and on."""
    theirs, objective, split = whole_clips()
    objective.teacher.load_state_dict(objective.student.state_dict())
    clips = torch.rand(2, 3, 6, 32, 32, dtype=torch.float64)
    whole = theirs.encoder(objective.student.normalise(clips).transpose(1, 2)).last_hidden_state
    wanted = torch.arange(7 * 16, (7 + num_slots) * 16).expand(2, -1)
    expected = theirs.predictor(whole, [split.seen], [wanted]).last_hidden_state
    found = objective.foresight(seconds=1.0, fps=8.0, num_slots=num_slots)(clips)
    assert found.patches.shape == (2, 3 + num_slots, 4, 4, 24)
    assert torch.allclose(found.patches[:, :3].flatten(1, 3), whole, atol=1e-5)
    assert torch.allclose(found.patches[:, 3:].flatten(1, 3), expected, atol=1e-5)
