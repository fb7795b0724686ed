"""The perceptual loss: what it measures, what it trains, and whose weights it takes."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vidssl.errors import UsageError
from vidssl.interfaces import Batch, Progress
from vidssl.objectives.tokenizer import PerceptualDistance, TokenizerTraining, evenly
from vidssl.tokenizers.vqvae import VQVAE
from vidssl.weights.external import Taken

NET = "test_resnet.r160_in1k"  # timm's smallest, 0.5 million parameters


def distance(network: str = NET, layers: tuple[int, ...] | None = None) -> PerceptualDistance:
    return PerceptualDistance(network, "random", layers)


def toy() -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(vocab_size=16, code_dim=4, width=8, stride=8, num_res_blocks=1, ema_decay=0.5)
    for step in range(2):
        model.reconstruct(clips(seed=step))
        model.update_codebook(torch.Generator().manual_seed(step))
    return model


def clips(num_frames: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 3, num_frames, 32, 32, generator=torch.Generator().manual_seed(seed))


def training(**keys: object) -> TokenizerTraining:
    settings = {"perceptual": NET, "perceptual_weight": 0.5, "perceptual_init": "random", **keys}
    return TokenizerTraining(toy(), **settings)


def test_the_distance_is_that_of_unit_vectors_in_each_cell_summed_over_layers() -> None:
    measured, made, given = distance(layers=(1, 3)), clips(2, seed=1), clips(2, seed=2)
    net = measured._held[0]
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    total = 0.0
    for layer in (1, 3):
        cells = []
        for clip, other in zip(made, given, strict=True):
            for t in range(2):
                a, b = (
                    net.forward_intermediates((x[None, :, t] - mean) / std, indices=[layer])[1][0][0]
                    for x in (clip, other)
                )
                for row in range(a.shape[1]):
                    for column in range(a.shape[2]):
                        u, v = a[:, row, column], b[:, row, column]
                        cells.append(float((u / u.norm() - v / v.norm()).square().sum()))
        total += sum(cells) / len(cells)
    assert float(measured(made, given)) == pytest.approx(total, rel=1e-4)


def test_the_distance_is_nothing_to_itself_and_grows_with_the_damage() -> None:
    measured, clip = distance(), clips()
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    near, far = (float(measured(clip + amount * noise, clip)) for amount in (0.02, 0.2))
    assert float(measured(clip, clip)) == 0
    assert 0 < near < far


def test_gradients_reach_decoder_and_encoder_and_not_the_network() -> None:
    objective = training()
    tokenizer, held = objective.tokenizer, objective.distance
    assert held is not None
    pixels = tokenizer.reconstruct(clips()).pixels
    held(pixels, clips()).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in held._held[0].parameters())


def test_the_network_is_neither_trained_nor_saved_nor_ever_in_training_mode() -> None:
    objective, plain = training(), TokenizerTraining(toy())
    names = {name for name, _ in plain.named_parameters()}
    assert {name for name, _ in objective.named_parameters()} == names
    assert objective.state_dict().keys() == plain.state_dict().keys()
    objective.train()
    assert objective.distance is not None
    assert not any(module.training for module in objective.distance._held[0].modules())
    objective.double()
    assert next(objective.distance._held[0].parameters()).dtype == torch.float64


def test_the_loss_adds_the_weighted_distance_and_logs_it() -> None:
    objective, plain = training().eval(), TokenizerTraining(toy()).eval()
    batch = Batch({"image": (clips(),)})
    with_it, without = (part(batch, Progress(0, 1), torch.Generator()) for part in (objective, plain))
    seen = float(with_it.metrics["perceptual"])
    assert seen > 0
    assert with_it.loss.item() == pytest.approx(without.loss.item() + 0.5 * seen, rel=1e-5)
    assert "perceptual" not in without.metrics
    assert not with_it.metrics["perceptual"].requires_grad


def test_four_layers_evenly_spaced_are_compared_by_default() -> None:
    assert evenly(12) == (2, 5, 8, 11)  # PeCo's 3rd, 6th, 9th and 12th block
    assert evenly(5) == (0, 1, 3, 4)
    assert evenly(3) == (0, 1, 2)
    assert distance().layers == (0, 1, 3, 4)


@pytest.mark.parametrize("network", ["test_vit.r160_in1k", "mixer_s32_224"])
def test_networks_of_tokens_take_pictures_of_any_size(network: str) -> None:
    made = clips()[:1, ..., :24, :].requires_grad_()
    distance(network, (1,))(made, clips(seed=1)[:1, ..., :24, :]).backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0


def test_weights_come_from_a_file_and_must_be_whole(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = timm.create_model(NET, pretrained=False).state_dict()  # with its classifier
    save_file(state, tmp_path / "net.safetensors")
    loaded = PerceptualDistance(NET, str(tmp_path / "net.safetensors"), None)
    assert torch.equal(loaded._held[0].state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    del state["conv1.0.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensor of .* perceptual_init: random"):
        PerceptualDistance(NET, str(tmp_path / "part.safetensors"), None)


@pytest.mark.slow
def test_pixels_are_normalised_as_the_weights_were_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("deit_tiny_patch16_224", pretrained=False).state_dict()
    monkeypatch.setattr("vidssl.objectives.tokenizer.read_external", lambda init: Taken(state))
    made = PerceptualDistance("vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", None)
    assert (made.mean, made.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(UsageError, match="6 heads, and the network has 3"):
        PerceptualDistance("vit_tiny_patch16_224", "timm:deit_small_patch16_224", None)


def test_without_a_word_on_weights_those_of_timm_are_taken_and_never_random_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def no_network(init: str) -> dict[str, torch.Tensor]:
        asked.append(init)
        raise UsageError(f"{init}: timm cannot give these weights")

    monkeypatch.setattr("vidssl.objectives.tokenizer.read_external", no_network)
    with pytest.raises(UsageError, match="cannot give these weights"):
        training(perceptual_init=None)
    assert asked == [f"timm:{NET}"]
    with torch.device("meta"):  # what 'vidssl check' does needs no weights
        TokenizerTraining(VQVAE(), perceptual=NET, perceptual_weight=1.0)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"perceptual": None}, "perceptual_weight is of no use without 'perceptual'"),
        ({"perceptual": None, "perceptual_weight": None}, "perceptual_init is of no use"),
        ({"perceptual_weight": None}, "needs perceptual_weight"),
        ({"perceptual_weight": 0.0}, "needs perceptual_weight, a number above 0"),
        ({"perceptual": "resnet"}, "timm cannot make 'resnet'"),
        ({"perceptual_layers": (5,)}, "between 0 and 4"),
        ({"perceptual_layers": ()}, "between 0 and 4"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training(**keys)


def test_a_clip_is_rebuilt_where_the_view_is_a_clip() -> None:
    objective = TokenizerTraining(toy(), view="clip")
    assert objective.needs_views == {"clip": 1}
    clip = clips(num_frames=2)
    output = objective(Batch({"clip": (clip,)}), Progress(0, 1), torch.Generator())
    expected = (objective.tokenizer.reconstruct(clip).pixels - clip).square().mean().item()
    assert float(output.metrics["reconstruction"]) == pytest.approx(expected, rel=1e-5)
    assert TokenizerTraining(toy()).needs_views == {"image": 1}
    with pytest.raises(ValueError, match="view must be 'image' or 'clip'"):
        TokenizerTraining(toy(), view="frames")
