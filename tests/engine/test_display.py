"""What is seen while a run trains, and what is said of what was learned."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from vidssl.backbones.vit import ViT
from vidssl.engine.logging import TrainDisplay, say_wrapped
from vidssl.interfaces import Yardstick
from vidssl.maskers.bevt import Random3D
from vidssl.objectives.bevt import BEVTVideo
from vidssl.tokenizers.structure_tensor import StructureTensor
from vidssl.train.loop import TrainResult
from vidssl.train.run import _learned

IDS = Yardstick(
    metric="accuracy_video",
    label="hidden ids of clips",
    says="{} of the hidden ids are right",
    baselines={"the most frequent id": "most_frequent_video", "chance": 0.05},
    unit="%",
)
LOSS = Yardstick(
    metric="loss", label="loss", says="the loss is {}", baselines={"guessing": 2.0}, lower_is_better=True
)
MEANS = {
    "loss_video": 2.5,
    "accuracy_video": 0.4,
    "grad_norm": 1.0,
    "clips_per_second": 38.2,
    "data_wait_share": 0.02,
    "off_cpu_share": 0.01,
    "lr": 1e-3,
}
TESTED = {"accuracy_video": 0.39, "most_frequent_video": 0.286}


def shown(console: Console) -> TrainDisplay:
    """A display after a line of metrics and a test."""
    display = TrainDisplay(1200, console, yardsticks=(IDS,))
    with display:
        display.step(400)
        display.metrics(400, MEANS)
        display.tested(400, TESTED)
        display.probed(400, {"knn_digit": 0.5})
    return display


def test_lines_without_a_terminal_name_the_pretext_first_and_are_short() -> None:
    file = io.StringIO()
    shown(Console(file=file, width=300))
    first, test, probe = file.getvalue().splitlines()
    assert first.startswith("step 400/1200  0 s left  accuracy_video 40.0 %  38.2 clips/s  data wait 2 %")
    assert "loss_video 2.5" in first
    assert "grad_norm" not in first
    assert (
        test
        == "step 400, held-out videos: hidden ids of clips 39.0 % (the most frequent id 28.6 %, chance 5.0 %)"
    )
    assert probe == "step 400, kNN: digit 50.0 %"


def test_a_line_leaves_out_what_does_not_fit() -> None:
    file = io.StringIO()
    many = {f"loss_{number}": 1.0 for number in range(40)}
    with TrainDisplay(10, Console(file=file, width=300)) as display:
        display.metrics(5, many)
    (line,) = file.getvalue().splitlines()
    assert 100 < len(line) < 120


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_a_table_that_fits_with_baselines_beside_the_metric(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=40)
    display = shown(console)
    plain = Console(file=io.StringIO(), width=width)
    for part in display._page():
        plain.print(part)
    lines = plain.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (row,) = (line for line in lines if "hidden ids of clips" in line)
    assert row.split()[-8:] == ["40.0", "%", "39.0", "%", "28.6", "%", "5.0", "%"]
    assert any("38.2 clips/s  data wait 2 %" in line for line in lines)


def test_lines_break_between_words_and_paths_stay_whole() -> None:
    file = io.StringIO()
    path = "runs/" + "a" * 150
    say_wrapped(Console(file=file, width=300), f"{'word ' * 40}{path}")
    lines = file.getvalue().splitlines()
    assert lines[-1].strip() == path
    assert all(len(line) < 120 for line in lines[:-1])


@pytest.mark.parametrize(
    ("value", "says", "beaten"),
    [
        (0.400, ": better than the most frequent id (28.6 %) and chance (5.0 %)", [True, True]),
        (0.290, ": no better than the most frequent id (28.6 %), better than chance (5.0 %)", [False, True]),
        (0.100, ": worse than the most frequent id (28.6 %), better than chance (5.0 %)", [False, True]),
    ],
)
def test_a_yardstick_says_what_a_value_is_worth(value: float, says: str, beaten: list[bool]) -> None:
    metrics = TESTED | {"accuracy_video": value}
    sentence = IDS.sentence(metrics)
    assert sentence == f"{100 * value:.1f} % of the hidden ids are right{says}"
    assert IDS.beaten(metrics) == beaten


def test_a_lower_loss_is_the_better_one() -> None:
    assert LOSS.sentence({"loss": 1.0}) == "the loss is 1: better than guessing (2)"
    assert [LOSS.beaten({"loss": loss}) for loss in (1.0, 1.99, 3.0)] == [[True], [False], [False]]


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.05, "Not learned yet, "), (0.25, "Learned in part, "), (0.5, "Learned, ")]
)
def test_a_run_that_passes_one_of_two_baselines_has_learned_in_part(accuracy: float, verdict: str) -> None:
    metrics = {"accuracy_video": accuracy, "most_frequent_video": 0.07, "copy_nearest_video": 0.37}
    result = TrainResult(Path("run"), Path("run/c"), 9, 0, 9, metrics)
    net = ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
    assert _learned(result, BEVTVideo(net, StructureTensor(vocab_size=4), Random3D())).startswith(verdict)
