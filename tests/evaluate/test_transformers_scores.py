"""``vidssl eval transformers:NAME``: video models of the hub, here small ones saved to a folder."""

import json
from pathlib import Path

import pytest
import torch
from toy_probe import recipe_text

from vidssl.backbones.transformers_nets import TransformersNet, pixel_statistics, published_state
from vidssl.cli.main import main
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import read_scores

transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "videomae": lambda: transformers.VideoMAEConfig(image_size=32, patch_size=8, num_frames=4, **SMALL),
    "timesformer": lambda: transformers.TimesformerConfig(image_size=32, patch_size=8, num_frames=4, **SMALL),
    "vivit": lambda: transformers.VivitConfig(image_size=32, num_frames=4, tubelet_size=[2, 8, 8], **SMALL),
    "vjepa2": lambda: transformers.VJEPA2Config(
        crop_size=32, patch_size=8, frames_per_clip=4, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    ),
}  # fmt: skip
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}


def saved(kind: str, folder: Path, **pixels: object) -> str:
    """A folder as the hub has it: configuration, weights and preprocessor."""
    torch.manual_seed(5)  # other than that of the random weights beside it
    config = CONFIGS[kind]()
    model = (
        transformers.VideoMAEForPreTraining(config)
        if kind == "videomae"
        else transformers.AutoModel.from_config(config)
    )
    model.save_pretrained(folder)
    name = "video_preprocessor_config.json" if kind == "vjepa2" else "preprocessor_config.json"
    (folder / name).write_text(json.dumps({**PIXELS, **pixels}))
    return str(folder)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_features_are_those_of_the_library_with_every_cell_in_its_place(kind: str, tmp_path: Path) -> None:
    net = TransformersNet(name=saved(kind, tmp_path)).eval()
    net.net.load_state_dict(published_state(str(tmp_path)))
    clip = torch.rand(1, 3, 4, 32, 32)
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1, 1) for key in ("image_mean", "image_std"))
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        features = net(clip)
        tokens = theirs(((clip - mean) / std).transpose(1, 2)).last_hidden_state
        assert features.patches.shape[1:4] == net.grid(4, 32, 32)
        pooled = tokens[:, 0] if net.gives_cls else tokens.mean(1)
        torch.testing.assert_close(
            features.cls if net.gives_cls else features.patches.mean((1, 2, 3)), pooled
        )
        # a small change of one cell's pixels moves that cell's features most
        t, h, w = net.strides
        changed = clip.clone()
        changed[:, :, t : 2 * t, 2 * h : 3 * h, w : 2 * w] += 0.5
        moved = (net(changed).patches - features.patches).norm(dim=-1)[0]
    assert moved.argmax().item() == moved[0].numel() + 2 * moved.shape[2] + 1


def test_pixel_statistics_amount_to_the_preprocessors(tmp_path: Path) -> None:
    name = saved("vivit", tmp_path, rescale_factor=1 / 127.5, offset=True)
    mean, std = pixel_statistics(name)
    frame = torch.randint(0, 256, (3,)).float()
    expected = (frame / 127.5 - 1 - torch.tensor(PIXELS["image_mean"])) / torch.tensor(PIXELS["image_std"])
    torch.testing.assert_close((frame / 255 - torch.tensor(mean)) / torch.tensor(std), expected)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UsageError, match="does not say how pixels are normalised"):
        pixel_statistics(name)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"has no video_preprocessor_config\.json"):
        TransformersNet(name=name)


def test_what_the_library_would_lose_or_make_up_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = saved("videomae", tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    lost = next(
        key for key in state if key.startswith("videomae.encoder.layer.1.") and key.endswith("dense.weight")
    )
    save_file({key: value for key, value in state.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=r"1 of its tensors would stay random"):
        published_state(name)
    with pytest.raises(UsageError, match="cannot be had"):
        TransformersNet(name=str(tmp_path / "none"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="is a 'bert'; video models that are read here: timesformer"):
        TransformersNet(name=str(tmp_path / "bert"))


def test_eval_scores_it_beside_random_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(recipe_text(steps=2, seed=3))
    saved("videomae", Path("mae"))
    words = ("--protocol", "knn", "evaluator.k=[3]", "data=toy.yaml")
    assert main(["eval", "transformers:mae", *words]) == 0
    scores = read_scores(Path("runs/transformers-mae/scores/knn-step-000000.json")).scores
    assert list(scores) == ["trained", "untrained"]
    assert scores["trained"] != scores["untrained"]
    assert main(["eval", "untrained:transformers:mae", *words]) == 0
    alone = read_scores(Path("runs/untrained-transformers-mae/scores/knn-step-000000.json")).scores
    assert alone["untrained"] == scores["untrained"]
    capsys.readouterr()
    assert main(["eval", "transformers:mae", "--protocol", "finetune", "data=toy.yaml"]) == 2
    assert "transformers:mae" in capsys.readouterr().err
