"""Action anticipation on EPIC-KITCHENS-100's layout, and tokens of several blocks: V-JEPA 2's probes."""

import json
from pathlib import Path

import pytest
import torch
from recordings import ACTIONS, moving, write_frames
from released_layouts import write_vjepa

from vidssl.backbones.vit import ViT
from vidssl.cli.main import main
from vidssl.engine.checkpoint import read_tensors
from vidssl.errors import UsageError
from vidssl.evaluators.features import SeveralBlocks
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.vjepa import VJEPA

RECIPE = """
name: tiny
objective: {type: vjepa, %spredictor_dim: 24, predictor_depth: 1, predictor_heads: 2,
            predictor_positions: rotary_tiled}
backbone: {type: vit, init: vitl.pt, embed_dim: 48, depth: 2, num_heads: 3, patch_size: [2, 8, 8],
           positions: rotary_tiled}
masker: {type: multi_block}
data:
  video:
    source: {type: video_folder, root: kitchen}
    views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 16}
    batch_size: 2
optim: {type: adamw, lr: 1e-5}
schedule: {type: cosine, steps: 1}
run: {workers: 0, device: cpu}
"""
LISTS = "narration_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
SOURCE = "{type: epic_kitchens_100, root: kitchen, annotations: kitchen, part: %s}"
SMALL = (
    *("evaluator.lr=3e-3", "evaluator.weight_decay=0.1", "evaluator.depth=2", "evaluator.num_heads=3"),
    *("evaluator.epochs=2", "evaluator.batch_size=8", "views.num_frames=4", "views.fps=4", "views.size=16"),
    "future={seconds: 1.0, fps: 4.0}",
)


def write_kitchen(root: Path) -> None:
    """Three recordings of nine actions, 1.6 seconds each: two to learn from, one to test on."""
    for part, videos in (("train", ("P01_01", "P01_02")), ("validation", ("P02_01",))):
        rows = []
        for camera, video in enumerate(videos, 2 * (part == "validation")):
            takes = [ACTIONS[(take + camera) % 3] for take in range(9)]
            frames = [
                frame for take, action in enumerate(takes) for frame in moving(action, camera, take, side=32)
            ]
            write_frames(root / video[:3] / "videos" / f"{video}.MP4", frames)
            for take, action in enumerate(takes):
                times = ",".join(f"00:00:{1.6 * (take + end):05.2f}" for end in (0, 1))
                rows.append(f"{video}_{take},{video},{times},{ACTIONS.index(action)},{take // 3}\n")
        (root / f"EPIC_100_{part}.csv").write_text(LISTS + "".join(rows))


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_kitchen(tmp_path / "kitchen")
    torch.manual_seed(0)
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8), positions="rotary_tiled")
    made = VJEPA(
        net, MultiBlock(), predictor_dim=24, predictor_depth=1, predictor_heads=2,
        predictor_positions="rotary_tiled",
    )  # fmt: skip
    write_vjepa(tmp_path / "vitl.pt", net, net, made.predictor)
    (tmp_path / "tiny.yaml").write_text(RECIPE % "init: vitl.pt#predictor, ")
    (tmp_path / "headless.yaml").write_text(RECIPE % "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shape_of_tokens() -> tuple[int, ...]:
    """Views, tokens and width of all patch tokens that were kept."""
    files = Path("runs").glob("*/features/*patches*")
    (shape,) = {tuple(read_tensors(file)[1]["patches"].shape[1:]) for file in files}
    return shape


def evaluate(recipe: str, protocol: str, *words: str) -> int:
    data = [f"data.{name}={SOURCE % part}" for name, part in (("train", "train"), ("test", "validation"))]
    data += [f"data.{name}.{key}=1.0" for name in ("train", "test") for key in ("anticipate", "observe")]
    data += ["data.test.known_actions=true"]
    return main(["eval", f"recipe:{recipe}", "weights=vitl.pt", "--protocol", protocol, *data, *words])


def test_what_begins_in_a_second_is_probed_from_encoder_and_predictor(
    kitchen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("tiny.yaml", "vjepa2_anticipation_ek100", *SMALL) == 0
    said = capsys.readouterr().out
    assert "top-5, mean over classes" in said or "unbalanced" not in said
    (path,) = Path("runs").glob("*/scores/vjepa2_anticipation_ek100-*.json")
    rows = json.loads(path.read_text())["scores"]["trained"]
    assert [row["label"] for row in rows] == ["verb", "noun", "action"]
    action = rows[-1]
    assert (action["num_train"], action["num_test"]) == (18, 9)
    assert 0 <= action["class_top5"] <= 1
    assert rows[0]["class_top5"] is None  # of three verbs
    tokens = shape_of_tokens()
    assert tokens == (1, (2 + 1) * 4, 48)  # two steps in time of the clip and one that is predicted
    assert evaluate("headless.yaml", "vjepa2_anticipation_ek100", *SMALL) == 2
    assert "has no predictor of what comes after a clip" in capsys.readouterr().err


def test_tokens_of_several_blocks_stand_side_by_side_each_under_the_last_norm(
    kitchen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=3, num_heads=2, patch_size=(2, 8, 8), positions="rotary").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        clip, kept = torch.rand(2, 3, 4, 16, 16), []
        hook = net.blocks[0].register_forward_hook(lambda block, given, made: kept.append(net.norm(made)))
        whole = net(clip).patches
        hook.remove()
        found = SeveralBlocks(net, (0, 2))(clip).patches
    assert found.shape == (2, 4, 2, 2, 12)
    assert torch.equal(found[:, :2].flatten(1, 3), kept[0])
    assert torch.allclose(found[:, 2:], whole, atol=1e-6)
    with pytest.raises(UsageError, match="3"):
        SeveralBlocks(net, (0, 3))(clip)
    views = "views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 16}"
    words = ("evaluator.lr=3e-3", "evaluator.num_heads=3", "evaluator.epochs=1", "few_labels=null")
    assert evaluate("tiny.yaml", "attentive", views, "blocks=[0, 1]", *words) == 0
    tokens = shape_of_tokens()
    assert tokens == (1, 2 * 8, 48)
    capsys.readouterr()
    assert evaluate("tiny.yaml", "linear", views, "blocks=[0, 1]") == 2
    assert "evaluator 'linear' reads no patch tokens" in capsys.readouterr().err
