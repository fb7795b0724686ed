"""Networks in formats that others read: each gives what the network gives, or is refused by name."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from vidssl import api as v
from vidssl.cli.main import main
from vidssl.engine.checkpoint import save_checkpoint
from vidssl.use import export as module
from vidssl.use.export import timm_arguments, timm_state, videomae_config, videomae_state

LAYOUTS = [
    {},
    {"class_token": True, "patch_size": (1, 8, 8)},
    {"key_bias": False, "norm": "mean", "positions": "line"},
    {"modality": True},
]


def vit(**keys: Any) -> v.ViT:
    torch.manual_seed(0)
    made = v.ViT(
        **{"embed_dim": 12, "depth": 2, "num_heads": 2, "patch_size": (2, 8, 8), "init_std": 0.2, **keys}
    )
    for parameter in made.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.mark.parametrize("keys", LAYOUTS, ids=lambda keys: ",".join(keys) or "plain")
@pytest.mark.parametrize("of_images", [True, False], ids=["images", "clips"])
def test_timm_makes_the_same_network_of_still_clips_and_images(keys: dict[str, Any], of_images: bool) -> None:
    from timm.models.vision_transformer import VisionTransformer

    network = vit(**keys)
    of_images = of_images or network.strides[0] == 1
    theirs = VisionTransformer(**timm_arguments(network, (16, 24)), num_classes=0).eval()
    theirs.load_state_dict(timm_state(network, (16, 24), of_images=of_images))
    image = torch.rand(2, 3, 1, 16, 24)
    still = image.expand(-1, -1, 1 if of_images else 2, -1, -1)
    torch.testing.assert_close(theirs(network.normalise(image)[:, :, 0]), network(still).pooled())


@pytest.mark.parametrize("key_bias", [True, False])
def test_transformers_makes_the_same_videomae(key_bias: bool) -> None:
    library: Any = pytest.importorskip("transformers")
    network = vit(positions="line", key_bias=key_bias)
    theirs = library.VideoMAEModel(library.VideoMAEConfig(**videomae_config(network, (4, 16, 16)))).eval()
    theirs.load_state_dict(videomae_state(network))
    clips = torch.rand(2, 3, 4, 16, 16)
    found = theirs(network.normalise(clips).transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(found, network.forward_features(clips))


@pytest.mark.parametrize("to", ["safetensors", "timm", "torchscript"])
def test_a_run_is_exported_and_compared(tiny: Path, to: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(tiny), "--to", to]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Features of random clips: largest difference" in said
    assert "Features of real clips: largest difference" in said
    assert "To load it: " in said
    assert (tiny / "export" / f"{to}{'.pt' if to == 'torchscript' else ''}").exists()


@pytest.mark.parametrize("to", ["safetensors", "timm", "torchscript"])
def test_an_export_for_which_there_is_no_room_ends_with_a_line(
    tiny: Path, to: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # as a full disk
    try:
        assert main(["export", str(tiny), "--to", to, "-o", str(tmp_path / "out")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write {tmp_path / 'out'}" in line
    assert "File too large" in line


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch says that TorchScript is old
def test_what_was_exported_is_loaded_by_others(tiny: Path, tmp_path: Path) -> None:
    assert main(["export", str(tiny), "--to", "torchscript", "-o", str(tmp_path / "a.pt")]) == 0
    clips = torch.rand(5, 3, 4, 16, 16)
    network = v.load(tiny)
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "a.pt"))(clips), network(clips).pooled())
    assert main(["export", str(tiny), "--to", "timm", "-o", str(tmp_path / "t")]) == 0
    import timm

    if not timm.models._factory.__dict__.get("_MODEL_SOURCES"):
        pytest.skip("this timm reads no local folder by name")
    theirs = timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True).eval()
    image = clips[:, :, :1]
    still = network(image.expand(-1, -1, 2, -1, -1)).pooled()
    torch.testing.assert_close(theirs(network.normalise(image)[:, :, 0]), still)
    assert json.loads((tmp_path / "t" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [
        3,
        16,
        16,
    ]


@pytest.mark.slow
def test_onnx_runs_any_number_of_clips(tiny: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", str(tiny), "--to", "onnx", "-o", str(tmp_path / "a.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    clips = torch.rand(5, 3, 4, 16, 16)
    (found,) = session.run(None, {"clips": clips.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), v.load(tiny)(clips).pooled(), atol=1e-4, rtol=1e-4)


def test_what_cannot_is_refused_by_name(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(v.UsageError, match="has no ViT of positions: axes, only line"):
        videomae_config(vit(), (4, 16, 16))
    with pytest.raises(v.UsageError, match="has no ViT of attention: block_causal, only full"):
        timm_arguments(vit(attention="block_causal"), (16, 16))
    with pytest.raises(v.UsageError, match="this is a TimeSformer: take safetensors, torchscript or onnx"):
        module._plain_vit(v.TimeSformer(**v.TimeSformer.toy), "timm")
    assert main(["export", str(tiny), "--to", "huggingface"]) == 2
    assert "has no ViT of positions: axes" in capsys.readouterr().err
    assert main(["export", str(tiny), "--to", "torchscript", "--clip", "3,17,19"]) == 2
    assert "whole multiples of (2, 8, 8), got (3, 17, 19): --clip" in capsys.readouterr().err
    (tmp_path / "notes.txt").touch()
    for to in ("timm", "safetensors"):
        assert main(["export", str(tiny), "--to", to, "-o", str(tmp_path)]) == 2
        assert "holds other files (notes.txt): name a new folder" in capsys.readouterr().err
    assert main(["export", str(tiny), "--to", "torchscript", "-o", str(tmp_path / "notes.txt")]) == 2
    assert "notes.txt: is there already, and no .pt" in capsys.readouterr().err
    (tmp_path / "old.pt").touch()
    words = ["--clip", "3,17,19", "-o", str(tmp_path / "old.pt")]
    assert main(["export", str(tiny), "--to", "torchscript", *words]) == 2
    assert "old.pt: is there already, and is replaced" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "ended").mkdir()
    for left in ("config.json", ".model.safetensors.tmp"):
        (tmp_path / "ended" / left).touch()
    assert main(["export", str(tiny), "--to", "timm", "-o", str(tmp_path / "ended")]) == 0
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(bare, v.load_objective(tiny), step=1, recipe="")
    assert main(["export", str(bare), "--to", "timm"]) == 2
    assert "write it with Backbone.save_pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_file_that_gives_something_else_is_an_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, factor: float
) -> None:
    right = module.timm_state
    monkeypatch.setattr(
        module, "timm_state", lambda *args, **keys: {k: x * factor for k, x in right(*args, **keys).items()}
    )
    assert main(["export", str(tiny), "--to", "timm", "-o", str(tmp_path / "t")]) == 2
    assert "gives other features than ViT" in capsys.readouterr().err
