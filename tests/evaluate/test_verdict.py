"""The sentence that scores open with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from score_files import PROTOCOL, scored, write_run

from vidssl.evaluate.report import pixel_lines, score_tables, verdict
from vidssl.evaluators.differences import NetworkDifference
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import Difference


def row(label: str, top1: float, **more: object) -> Score:
    return Score(
        label=label, top1=top1, low=top1 - 0.05, high=top1 + 0.05, class_mean=top1, chance=0.5,
        num_train=10, num_test=20, **more,
    )  # fmt: skip


def differing(score: Score, by: float, p: float) -> NetworkDifference:
    return NetworkDifference(score, Difference(by, by - 0.1, by + 0.1, p), p)


TRAINED = [row("digit", 0.9), row("speed", 0.6), row("profile", 0.51), row("texture", 0.8)]
DIFFERENCES = [
    differing(score, by, p)
    for score, by, p in zip(TRAINED, (0.2, -0.3, 0.01, 0.1), (0.001, 0.002, 0.8, 0.01), strict=True)
]


def test_gains_and_losses_against_untrained_come_first_and_have_a_sign_beside_their_colour() -> None:
    scores = {"trained": TRAINED, "untrained": TRAINED}
    said = verdict(scores, DIFFERENCES)
    assert said.plain == (
        "trained, against untrained, is better on digit (+20.0 points) and texture (+10.0 points), worse on "
        "speed (-30.0 points), and not clearly different on profile"
    )
    styles = {said.plain[span.start : span.end].split()[0]: str(span.style) for span in said.spans}
    assert (styles["better"], styles["worse"]) == ("bold green", "bold red")
    (table,) = score_tables(scores, "", DIFFERENCES)
    cells = [*table.columns[1].cells]
    assert [str(cell).split()[1] for cell in cells] == ["+", "-", "(46.0", "+"]
    assert [str(cell.style) for cell in cells] == ["bold green", "bold red", "", "bold green"]


def test_a_network_alone_stands_against_chance() -> None:
    assert verdict({"pixels": TRAINED}, []).plain == (
        "pixels is above chance on digit, speed and texture, and not clearly above chance on profile"
    )


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (
            {"trained": TRAINED, "untrained": TRAINED},
            "trained and untrained beside each other; several draws",
        ),
        ({"trained": [row("x", 0.9, frames="reversed")]}, "what trained finds is below"),
    ],
)
def test_what_is_not_tested_is_not_judged(scores: dict[str, list[Score]], says: str) -> None:
    assert verdict(scores, []).plain.startswith(says)


def test_pixels_that_were_scored_on_the_same_videos_stand_beside_a_network(tmp_path: Path) -> None:
    truth = [0, 1, 2, 3] * 15
    half = [number if place % 2 else (number + 1) % 4 for place, number in enumerate(truth)]
    _, videos = write_run(tmp_path / "pixels", truth, {"no weights": half})
    subject = SimpleNamespace(title="runs/x", folder=tmp_path / "x")

    def said(guess: list[int], protocol: str = PROTOCOL) -> list[str]:
        scores = {"trained": [scored(truth, guess)], "untrained": [scored(truth, half)]}
        return pixel_lines(subject, protocol, scores, videos)

    assert said(truth) == ["class, pixels alone: 50.0 %; trained names +50.0 points beside them (p <0.0001)"]
    (line,) = said(half)
    assert line.endswith(
        "+0.0 points beside them (p 1.000): no clear difference, so that pixels may be all that is used"
    )
    assert said([0] * 60)[0].endswith("less than the pixels tell")
    assert said(truth, PROTOCOL.replace("k: 20", "k: 5")) == [], "another protocol"
