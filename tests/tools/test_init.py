"""A recipe for videos of one's own: its values, its reasons, and that it can be trained."""

import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from recordings import ACTIONS, moving, write_collection, write_takes
from rich.console import Console

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.grid import check_grid
from vidssl.config.recipe import load_recipe, recipe_from_text
from vidssl.data.sources.video_files import VideoList
from vidssl.errors import UsageError
from vidssl.evaluators.statistics import Difference
from vidssl.pictures.clips import caption, chosen_samples, show_clips
from vidssl.tools.collection.glimpses import Glimpse
from vidssl.tools.collection.make_list import make_list
from vidssl.tools.collection.split import Rule, split_list
from vidssl.tools.collection.survey import Seen
from vidssl.tools.data.check import check_data
from vidssl.tools.init.choices import (
    NEEDS_TOKENIZER,
    Choice,
    Machine,
    ObjectiveName,
    OrderProbe,
    choose,
    probe_order,
    steps_for,
)
from vidssl.tools.init.init import write_recipe
from vidssl.tools.init.text import Sources, recipe_text, tokenizer_text, what_can_show

LAPTOP = Machine(gpu=False, cores=2, minutes=10.0)
SOURCES = Sources({"type": "moving_digits"}, {"split": "train"}, {"split": "test"}, None, probed=True)


def seen(count: int, frames: int = 90, side: int = 240, name: str = "walk") -> list[Seen]:
    return [Seen({"action": name}, frames, 30.0, side, side * 4 // 3)] * count


def said() -> Console:
    return Console(file=io.StringIO(), width=200)


def glimpses_of(actions: tuple[str, ...], takes: int) -> tuple[list[Glimpse], list[str]]:
    clips, names = [], []
    for action in actions:
        for take in range(takes):
            frames = np.stack(moving(action, take % 3, take, side=32))[:, :, :32]
            clips.append(Glimpse(frames.transpose(0, 3, 1, 2), 16, 10.0, 32, 32))
            names.append(action)
    return clips, names


def test_values_follow_from_videos_and_machine() -> None:
    found = choose(seen(100), LAPTOP, None)
    assert (found.size.value, found.num_frames.value, found.frame_stride.value) == (64, 8, 8)
    assert found.batch_size.value == 32
    assert found.flip.value == 0.5
    small = choose(seen(10, frames=12, side=50, name="turn_left"), LAPTOP, None)
    assert (small.size.value, small.frame_stride.value, small.batch_size.value) == (48, 1, 4)
    assert "'left'" in small.flip.why
    gpu = choose(seen(500), Machine(gpu=True, cores=16, minutes=None), None)
    assert (gpu.size.value, gpu.num_frames.value, gpu.batch_size.value, gpu.workers.value) == (112, 16, 64, 8)
    with pytest.raises(UsageError, match="fewer than four"):
        choose(seen(3), LAPTOP, None)


def test_what_a_test_can_show_follows_from_its_size() -> None:
    assert (
        "40 test videos: of two networks that part on 30% of them a difference of 24 points"
        in what_can_show(40)
    )
    assert "difference of 5 points" in what_can_show(1000)


def test_steps_fill_the_time_but_pass_over_few_videos_only_so_often() -> None:
    assert steps_for(0.5, LAPTOP, 1000, 32).value == 1020
    few = steps_for(0.01, LAPTOP, 64, 32)
    assert few.value == 1600
    assert "800 passes" in few.why
    assert steps_for(9.0, Machine(gpu=False, cores=2, minutes=1), 1000, 32).why.startswith(
        "the fewest, about 3 min 00 s here: more than there is time for"
    )


@pytest.mark.parametrize("objective", ["svt", "bevt", "vimpac", "videomae"])
@pytest.mark.parametrize("machine", [LAPTOP, Machine(gpu=True, cores=8, minutes=None)])
def test_every_objective_gets_a_recipe_that_builds(objective: ObjectiveName, machine: Machine) -> None:
    choices = choose(seen(100), machine, None)
    ids = None
    if objective in NEEDS_TOKENIZER:
        ids = Choice("moving_digits" if choices.patch == 8 else "dalle_stride16", "at hand")
    text = recipe_text(
        "my", objective, choices, SOURCES, Choice(100, "so many"), tokenizer=ids, heading=["Made for a test."]
    )
    recipe = recipe_from_text(text, "my.yaml")
    build.check(recipe)
    assert recipe.data.probe is not None
    assert text.startswith("# Made for a test.\nname: my\n")
    assert "steps: 100                  # so many\n" in text
    build.check(recipe_from_text(tokenizer_text("t", choices, SOURCES, 5), "t.yaml"))


def test_a_quick_probe_tells_motion_from_looks() -> None:
    moves = probe_order(*glimpses_of(ACTIONS[:2], 16))
    assert moves is not None
    assert moves.order_matters
    assert moves.in_order > 0.85 > moves.one_frame
    clips, _ = glimpses_of(ACTIONS[:1], 16)
    looks = [Glimpse(one.frames // (1 + n % 2), 16) for n, one in enumerate(clips)]
    still = probe_order(looks, [str(n % 2) for n in range(16)])
    assert still is not None
    assert still.one_frame > 0.85
    assert not still.order_matters
    assert "can be told from one frame" in still.words
    assert probe_order(clips, ["one"] * 16) is None
    few = OrderProbe(20, 0.5, 0.7, 0.9, Difference(0.2, -0.1, 0.5, 0.25))
    assert "seems to add" in few.words
    assert choose(seen(100), LAPTOP, few).flip.value == 0.0


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings with its list and the parts of that."""
    folder = tmp_path_factory.mktemp("own")
    write_takes(folder / "takes", {"left": 4, "right": 4})
    path = folder / "takes.csv"
    make_list(folder / "takes", pattern="{_}_{action}_{_take}", out=path, console=said())
    check_data(path, console=said())
    split_list(path, Rule(duplicates=False), console=said())
    return folder


def test_a_recipe_names_its_source_once_and_watches_the_validation_part(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    console = said()
    write_recipe(Path("my.yaml"), Path("takes.train.csv"), gpu=True, console=console)
    text = Path("my.yaml").read_text()
    assert text.count("video_list") == 1
    assert "takes.manifest.jsonl" in text, "what 'data check' found keeps bad files out"
    assert "# clips are not mirrored: a class is called 'left'" in text
    video = load_recipe("my.yaml").data.streams["video"]
    assert video.test_source is not None
    watched = build.source(video.test_source)
    assert len(watched) == 2
    assert len(build.source(video.source)) == 12
    show_clips("my.yaml", videos=3, out="seen", console=console)
    assert sorted(path.name for path in Path("seen").iterdir()) == [
        "clips-my-probe-test.png",
        "clips-my-probe-train.png",
        "clips-my-video.png",
    ]
    with pytest.raises(UsageError, match="is there already"):
        write_recipe(Path("my.yaml"), Path("takes.train.csv"), console=console)
    with pytest.raises(UsageError, match="svt has no use for one"):
        write_recipe(Path("b.yaml"), Path("takes.train.csv"), tokenizer="x", console=console)


def test_a_picture_shows_every_class_with_its_label(parts: Path) -> None:
    source = VideoList(root=str(parts / "takes"), list=str(parts / "takes.csv"))
    chosen = chosen_samples(source, 4)
    assert sorted(source.labels(number)["action"] for number in chosen) == [0, 0, 1, 1]
    assert len(chosen_samples(source, 100)) == len(source)
    assert caption("a.mp4#t=1,2", {"action": "jump"}) == "a.mp4#t=1,2: action jump"


def test_several_objectives_get_recipes_and_the_grid_that_compares_them(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    three = {"objective": "svt, videomae", "gpu": True, "console": said()}
    write_recipe(Path("three.yaml"), Path("takes.train.csv"), **three)
    cells = dict(check_grid("three.yaml"))
    assert {name: recipe.objective.type for name, recipe in cells.items()} == {
        "svt": "svt",
        "videomae": "videomae",
    }
    one, other = cells.values()
    assert one.backbone == other.backbone
    assert one.data.streams["video"].batch_size == other.data.streams["video"].batch_size
    Path("three.yaml").unlink()
    with pytest.raises(UsageError, match="three_svt"):
        write_recipe(Path("three.yaml"), Path("takes.train.csv"), **three)


@pytest.mark.slow
def test_five_commands_lead_from_files_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/own_videos.md, but for seeds and the time that training may take."""
    page = (Path(__file__).parents[2] / "docs" / "own_videos.md").read_text()
    commands = page.split("```bash\n")[1].split("```")[0].splitlines()
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    write_collection(Path("recordings"), Path("segments.csv"))
    for command in commands:
        command = command.replace("--minutes 10", "--minutes 0.05 --tokenizer-steps 5")
        words = shlex.split(command.replace("grid mine.yaml", "grid mine.yaml seeds=[0]"), comments=True)[1:]
        assert main(words) == ("check" in words), command  # 1: it found the broken file
    page = Path("runs/mine/results.md").read_text()
    assert all(f"| {objective}" in page for objective in ("svt", "bevt", "videomae"))
    lists = [Path(f"recordings.{part}.csv").read_text() for part in ("train", "test")]
    assert not any("torn" in text for text in lists)
    assert all(("copy.mp4" in text) == ("day0_cam0." in text) for text in lists)


@pytest.mark.slow
def test_an_objective_of_ids_gets_a_tokenizer_of_the_same_videos(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts)
    console = said()
    path = Path("ids.yaml")
    write_recipe(
        path, Path("takes.train.csv"), objective="bevt", minutes=0.1, tokenizer_steps=2, console=console
    )
    recipe = load_recipe("ids.yaml")
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.weights is not None
    assert "as measured here" in path.read_text()
