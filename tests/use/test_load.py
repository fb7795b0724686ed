"""From a run, a checkpoint or a folder to a network, and what users of timm and the hub expect of it."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from vidssl import api as v
from vidssl.backbones import BACKBONES
from vidssl.build.registry import BACKBONE, named_part
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.interfaces import Backbone, HasBlocks

CLIPS = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
TOYS = {
    name: made for name, made in BACKBONES.items() if name != "pytorchvideo"
}  # x3d does not know its blocks


def toy(name: str) -> tuple[Backbone, torch.Tensor]:
    """A small network and what it reads."""
    torch.manual_seed(0)
    network = TOYS[name](**TOYS[name].toy).eval()
    return network, torch.rand(2, 3, 4, 32, 32) if network.input_kind == "pixels" else torch.randint(
        8, (2, 4, 4, 4)
    )


def test_a_run_its_checkpoint_and_its_saved_network_are_the_same_network(tiny: Path, tmp_path: Path) -> None:
    network = v.load(tiny)
    checkpoint = next((tiny / "checkpoints").iterdir())
    stored = read_checkpoint(checkpoint).encoder
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
    assert not network.training
    network.save_pretrained(str(tmp_path / "saved"))
    others = (
        v.load(checkpoint),
        v.load(str(tmp_path / "saved")),
        v.ViT.from_pretrained(str(tmp_path / "saved")),
    )
    for other in others:
        assert torch.equal(other(CLIPS).pooled(), network(CLIPS).pooled())
    assert network.num_features == network(CLIPS).pooled().shape[1]


def test_a_training_that_goes_on_names_what_its_network_was_loaded_from(tiny: Path) -> None:
    assert named_part(v.load(tiny), BACKBONE)["init"] == str(read_checkpoint(find_checkpoint(str(tiny))).path)


def test_a_folder_of_another_class_or_size_is_refused(tiny: Path, tmp_path: Path) -> None:
    v.load(tiny).save_pretrained(str(tmp_path))
    with pytest.raises(v.UsageError, match="of class 'ViT'"):
        v.TimeSformer.from_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "keys": {**config["keys"], "embed_dim": 24}}))
    with pytest.raises(v.UsageError, match="size mismatch"):
        v.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(v.UsageError, match="no valid JSON"):
        v.load(tmp_path)
    with pytest.raises(v.UsageError, match="hf:OWNER/NAME"):
        v.load("hf:nobody")


def test_an_objective_comes_back_with_its_decoder(tiny: Path) -> None:
    objective = v.load_objective(tiny)
    stored = read_checkpoint(next((tiny / "checkpoints").iterdir())).objective
    assert isinstance(objective, v.VideoMAE)
    assert stored
    assert all(torch.equal(objective.state_dict()[key], value) for key, value in stored.items())


@pytest.mark.parametrize("name", TOYS)
def test_the_last_intermediate_behind_its_norm_is_what_forward_gives(name: str) -> None:
    network, x = toy(name)
    last, maps = network.forward_intermediates(x, 1, norm=True, output_fmt="NTHWC")
    torch.testing.assert_close(maps[0], network(x).patches)
    assert torch.equal(last, network.forward_features(x))
    blocks = network.blocks_in_order() if isinstance(network, HasBlocks) else ()
    first, same = network.forward_intermediates(x, [0, -len(blocks)], intermediates_only=True)
    assert torch.equal(first, same)
    assert first.ndim == 5
    assert not any(block._forward_hooks for block in blocks)
    with pytest.raises(v.UsageError, match="there is no block"):
        network.forward_intermediates(x, [len(blocks)])


def test_class_tokens_come_beside_the_maps() -> None:
    network, x = toy("timesformer")
    (cells, prefix), *_ = network.forward_intermediates(
        x, [-1], norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    assert cells.shape == (2, 16, 4, 4, 4)
    torch.testing.assert_close(prefix[:, 0], network(x).cls)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "torchvision")) for name in TOYS]
)
def test_a_network_knows_its_keys_after_a_copy(name: str, tmp_path: Path) -> None:
    network, x = toy(name)
    copied = copy.deepcopy(network)
    assert copied.made_with() == network.made_with()
    copied.save_pretrained(str(tmp_path))
    torch.testing.assert_close(v.load(tmp_path)(x).patches, network(x).patches)


def test_networks_are_exported_and_work_on_afterwards() -> None:
    torch.manual_seed(0)
    network = v.VideoSwin(**v.VideoSwin.toy).eval()
    clips = torch.rand(2, 3, 4, 24, 40)  # of a size whose plan nobody has made
    whole = nn.Sequential(network, Pooled())
    features = torch.export.export(network, (clips,), strict=False).module()(clips)
    assert isinstance(features, v.Features)
    torch.testing.assert_close(features.pooled(), network(clips).pooled())
    torch.testing.assert_close(whole(clips), features.pooled())


@pytest.mark.slow
def test_a_network_is_compiled_in_one_graph() -> None:
    for name in ("vit", "timesformer", "video_swin"):
        network, clips = toy(name)
        whole = nn.Sequential(network, Pooled())
        compiled = torch.compile(whole, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(clips), whole(clips))


class Pooled(nn.Module):
    def forward(self, features: v.Features) -> torch.Tensor:
        return features.pooled()


def test_a_loop_that_forgets_after_step_is_told_once(tiny: Path) -> None:
    def steps(call_hook: bool) -> list[str]:
        torch.manual_seed(0)
        tokenizer = v.VQVAE(vocab_size=8, code_dim=4, width=4, stride=8)
        objective = v.TokenizerTraining(tokenizer)
        batch = v.Batch({"image": (CLIPS[:, :, :1],)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(25):
                progress = v.Progress(step, 25)
                objective(batch, progress, torch.Generator())
                if call_hook:
                    objective.after_step(progress, torch.Generator())
        return [str(warning.message) for warning in caught]

    (line,) = steps(call_hook=False)
    assert "TokenizerTraining.after_step was never called" in line
    assert steps(call_hook=True) == []
