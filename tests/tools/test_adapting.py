"""Released weights adapted to videos of one's own: docs/adapting.md, with small networks in their layouts."""

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from recordings import write_takes
from released_layouts import write_videomae, write_vjepa
from rich.console import Console

from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.config.strict_yaml import plain
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.maskers.videomae import RandomTube
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.videomae import VideoMAE
from vidssl.objectives.vjepa import VJEPA
from vidssl.tools.collection.make_list import make_list
from vidssl.tools.collection.split import Rule, split_list
from vidssl.tools.init.init import write_recipe
from vidssl.train.start import watch_of

ROOT = Path(__file__).parents[2]
SMALL = {
    r"embed_dim: \d+": "embed_dim: 48",
    r"(?<!_)depth: \d+": "depth: 2",
    r"num_heads: \d+": "num_heads: 3",
    r"patch_size: \[.*?\]": "patch_size: [2, 8, 8]",
    r"(predictor|decoder)_dim: \d+": r"\1_dim: 24",
    r"(predictor|decoder)_depth: \d+": r"\1_depth: 1",
    r"(predictor|decoder)_heads: \d+": r"\1_heads: 2",
    r"num_frames: 16, frame_stride: \d": "num_frames: 4, frame_stride: 1",
    r"size: (256|224)": "size: 32",
    r"batch_size: 64": "batch_size: 4",
    r"(?<!_)steps: 2000": "steps: 4",
    r"warmup_steps: 200": "warmup_steps: 1",
    r"accumulate: \d": "accumulate: 2",
    r"workers: 8": "workers: 0",
    r"log_every_steps: 20": "log_every_steps: 1",
    r"every_steps: 250": "every_steps: 2",
}
TYPED = {
    "step-000500": "step-000002",
    "schedule.steps=500": "schedule.steps=2",
    "warmup_steps=50": "warmup_steps=1",
}


def toy(**keys: object) -> ViT:
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8), init_std=0.1, **keys)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture
def adapting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both recipes made small, and weights for them in the published layouts."""
    for path in sorted((ROOT / "recipes" / "adapt").glob("*.yaml")):
        text = path.read_text()
        for pattern, small in SMALL.items():
            text, count = re.subn(pattern, small, text)
            assert count or "_(" in pattern or "|" in pattern, f"{path.name}: {pattern}"
        copy = tmp_path / "recipes" / "adapt" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    torch.manual_seed(0)
    keys = {"predictor_dim": 24, "predictor_depth": 1, "predictor_heads": 2}
    vjepa = VJEPA(
        toy(positions="rotary_tiled"),
        MultiBlock(),
        predictor_positions="rotary_tiled",
        **keys,
    )
    student = toy(positions="rotary_tiled")
    with torch.no_grad():
        vjepa.predictor.mask_tokens[0] = torch.randn(24)
    assert isinstance(vjepa.teacher, ViT)
    write_vjepa(tmp_path / "weights" / "vitl.pt", vjepa.teacher, student, vjepa.predictor)
    net = toy(positions="line", key_bias=False)
    mae = VideoMAE(net, RandomTube(ratio=0.9), decoder_dim=24, decoder_depth=1, decoder_heads=2)
    write_videomae(tmp_path / "weights" / "checkpoint.pth", net, mae.decoder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(recipe: Recipe) -> tuple[dict[str, torch.Tensor], str]:
    """The weights that a run of a recipe would begin with, and the reports of what was loaded."""
    said: list[str] = []
    torch.manual_seed(7)
    return build.objective(recipe, said.append).state_dict(), "\n".join(said)


def test_both_recipes_start_whole_from_a_release(adapting: Path) -> None:
    for name, file, parts in (
        ("vjepa", "weights/vitl.pt", ("target_encoder", "predictor")),
        ("videomae", "weights/checkpoint.pth", ("model", "model")),
    ):
        state, report = started(load_recipe(f"recipes/adapt/{name}.yaml"))
        fresh = [line for line in report.splitlines() if "fresh values" in line]
        assert fresh == ["  new, with fresh values: 1 (mask_token)"], report
        released = torch.load(adapting / file, weights_only=True)
        assert f"part taken: '{parts[0]}'" in report
        if name == "vjepa":
            encoder, predictor = released["target_encoder"], released["predictor"]
            for part in ("student", "teacher"):
                own = state[f"{part}.blocks.1.mlp.fc2.weight"]
                assert torch.equal(own, encoder["module.backbone.blocks.1.mlp.fc2.weight"])
            assert torch.equal(
                state["predictor.mask_tokens"],
                predictor["module.backbone.mask_tokens.0"].flatten(0, 1).expand(2, -1),
            )
        else:
            assert torch.equal(state["decoder.enter.weight"], released["model"]["encoder_to_decoder.weight"])


@pytest.mark.parametrize(
    ("name", "paper"),
    [("vjepa", "vjepa2_large"), ("videomae", "videomae_base_k400")],
)
def test_what_keeps_an_adaptation_from_collapsing_is_in_the_recipes(name: str, paper: str) -> None:
    recipe = load_recipe(str(ROOT / "recipes" / "adapt" / f"{name}.yaml"))
    published = load_recipe(str(ROOT / "recipes" / "paper" / f"{paper}.yaml"))
    clips, theirs = (each.data.streams["video"].batch_size for each in (recipe, published))
    optim = build.optim(recipe)
    assert optim.lr <= build.optim(published).lr * clips / theirs
    assert optim.final_weight_decay is None
    assert optim.layer_decay is None
    plan = build.schedule(recipe).plan({"video": 100.0})
    assert plan.factor(0) <= 0.1
    assert plan.factor(100) < plan.factor(200)
    assert plan.factor(plan.total_steps - 1) > 0.09
    assert (recipe.run.on_collapse, recipe.run.keep_every_steps) == ("stop", 250)


def test_signs_of_collapse_count_from_the_first_step_where_features_start_out_good() -> None:
    objective = VJEPA(
        toy(positions="rotary"), MultiBlock(), predictor_dim=24, predictor_depth=1, predictor_heads=2
    )
    log = {"target_std": 0.9}, *({"target_std": 0.1} for _ in range(11))
    for known, sentences in ((True, 1), (False, 0)):
        watch = watch_of(objective, from_weights=known)
        said = [line for look, metrics in enumerate(log) for line in watch.look(20 * look, 2000, metrics)]
        assert len(said) == sentences


def commands() -> list[str]:
    page = (ROOT / "docs" / "adapting.md").read_text()
    return "".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.mark.slow
def test_every_command_of_the_page_runs(adapting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_takes(Path("videos"), {"left": 4, "right": 4}, cameras=3)
    lines = commands()
    assert len(lines) == 16
    for line in lines:
        for typed, small in TYPED.items():
            line = line.replace(typed, small)
        assert main(shlex.split(line)[1:]) == 0, line
    said = capsys.readouterr().out
    assert "recipe:adapt/vjepa vitl.pt" in said
    assert "what weights/vitl.pt was trained on is not known" in said
    assert len(list(Path("runs").glob("*/scores/linear-*.json"))) == 5


def listed_takes() -> Path:
    """The training part of a few takes."""
    write_takes(Path("videos"), {"left": 3, "right": 3}, cameras=3)
    console = Console(file=io.StringIO())
    make_list(Path("videos"), pattern="{camera}_{action}_{_take}", group="camera", console=console)
    split_list(Path("videos.csv"), Rule(duplicates=False), console=console)
    return Path("videos.train.csv")


@pytest.mark.parametrize(("name", "file"), [("vjepa", "vitl.pt"), ("videomae", "checkpoint.pth")])
def test_init_from_a_release_has_the_settings_of_its_recipe(adapting: Path, name: str, file: str) -> None:
    shutil.move(adapting / "weights" / file, f"mine-{file}")
    console = Console(file=io.StringIO(), width=200)
    write_recipe(Path("new/mine.yaml"), listed_takes(), start=f"mine-{file}", console=console)
    mine, theirs = load_recipe("new/mine.yaml"), load_recipe(f"adapt/{name}")
    assert mine.start.init == f"mine-{file}"
    assert mine.rest_init == f"mine-{file}" + "#predictor" * (name == "vjepa")
    for section in ("objective", "backbone", "masker", "optim", "schedule"):
        own, shipped = (
            {
                key: plain(node)
                for key, node in recipe.node.mapping()[section].mapping().items()
                if key != "init"
            }
            for recipe in (mine, theirs)
        )
        assert own == shipped, section
    assert mine.run == theirs.run
    video = mine.data.streams["video"]
    assert plain(video.views.node)["frame_stride"] == (2 if name == "vjepa" else 1), "10 frames a second"
    assert plain(mine.augment.node)["flip"] == 0.0, "a class is called left"
    assert len(build.source(video.source)) == 6
    text = " ".join(line.removeprefix("# ") for line in Path("new/mine.yaml").read_text().splitlines())
    assert "is seen in four of five such tests" in text
    with pytest.raises(UsageError, match="weights decide the objective"):
        write_recipe(Path("a.yaml"), Path("videos.train.csv"), start="x", objective="svt", console=console)


def test_init_names_weights_that_it_has_no_settings_for(adapting: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, "other.pt")
    with pytest.raises(UsageError, match="no network of a known layout"):
        write_recipe(Path("mine.yaml"), Path("x"), start="other.pt", console=Console(file=io.StringIO()))


@pytest.mark.slow
def test_init_from_a_run_goes_on_with_all_its_weights_at_a_quarter_of_its_rate(adapting: Path) -> None:
    listed = listed_takes()
    assert main(["data", "check", "videos.csv"]) == 0
    assert main(["train", "recipes/adapt/videomae.yaml", "run.out=runs"]) == 0
    console = Console(file=io.StringIO(), width=200)
    write_recipe(Path("on.yaml"), listed, start="runs/adapt_videomae", minutes=0.05, console=console)
    mine, before = load_recipe("on.yaml"), load_recipe("adapt/videomae")
    assert (mine.start.init, mine.rest_init) == ("runs/adapt_videomae", "runs/adapt_videomae")
    assert build.optim(mine).lr == pytest.approx(build.optim(before).lr / 4, rel=1e-2)
    state, report = started(mine)
    checkpoint = read_checkpoint(RunFolder(Path("runs/adapt_videomae")).newest_checkpoint())
    assert "fresh values" not in report
    for key, tensor in checkpoint.objective.items():
        assert torch.equal(state[key], tensor), key
