"""Pictures of confusion matrices, from files of scores."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from score_files import NAMES, PROTOCOL, write_run

from vidssl.cli.main import main
from vidssl.errors import UsageError
from vidssl.pictures.charts import (
    MOST_COUNTED,
    MOST_NAMED,
    matrix_picture,
    most_frequent_mistakes,
    show_confusion,
)
from vidssl.pictures.pages import PAPER, heat_colours

TRUTH = [0, 0, 0, 1, 1, 2, 2, 2]
GUESS = [0, 0, 2, 1, 0, 2, 0, 0]
MATRIX = torch.tensor([[2, 0, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]])


def colour(value: float) -> tuple[int, ...]:
    return tuple(heat_colours(torch.tensor(value)).tolist())


def cells_of(picture: Image.Image, count: int) -> list[list[tuple[int, ...]]]:
    """The colour at the corner of every cell; the matrix lies at the right and lower edges."""
    # what is below and right of the names is as wide as it is high: no paper in its last row
    last = [picture.getpixel((x, picture.height - 1)) for x in range(picture.width)]
    width = next(n for n in range(picture.width) if last[picture.width - 1 - n] == PAPER)
    side = width // count
    left, top = picture.width - width, picture.height - width
    return [
        [picture.getpixel((left + x * side + 1, top + y * side + 1)) for x in range(count)]
        for y in range(count)
    ]


def test_a_cell_has_the_colour_of_its_share_of_the_row():
    picture = matrix_picture(MATRIX, NAMES)
    found = cells_of(picture, 4)
    shares = MATRIX / MATRIX.sum(1, keepdim=True).clamp(min=1)
    assert found == [[colour(share) for share in row] for row in shares.tolist()]


def test_mistakes_are_told_in_order_and_what_is_right_is_none():
    assert most_frequent_mistakes(MATRIX, NAMES) == [
        "most frequent mistakes:",
        "swim as run: 2 of 3",
        "run as swim: 1 of 3",
        "jump as run: 1 of 2",
    ]
    assert most_frequent_mistakes(torch.eye(4).long(), NAMES) == ["no mistakes"]


@pytest.mark.parametrize("count", [2, MOST_COUNTED, MOST_COUNTED + 1, MOST_NAMED, MOST_NAMED + 1, 400])
def test_pictures_of_any_number_of_classes_stay_on_a_screen(count):
    picture = matrix_picture(
        torch.eye(count).long() * 50, [f"a long name of class {i}" for i in range(count)]
    )
    assert picture.width <= 1700
    assert picture.getpixel((picture.width - 2, picture.height - 2)) == colour(1.0)
    if count > MOST_NAMED:
        assert picture.getpixel((0, 0)) == colour(1.0)  # no names


def show(target: str = "a", **keys: str) -> list[Path]:
    console = Console(record=True, width=300, file=io.StringIO())
    assert show_confusion(target, **keys, console=console) == 0
    return [Path(line.removeprefix("Picture: ")) for line in console.export_text().splitlines()]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), TRUTH, {"trained": GUESS, "untrained": [0] * 8})


def test_a_picture_is_written_into_the_run(tmp_path):
    assert show() == [Path("a/pictures/confusion-toy-step-000005-class-trained.png")]
    with Image.open("a/pictures/confusion-toy-step-000005-class-trained.png") as picture:
        assert picture.width > 200
    assert show(network="untrained", out="there") == [
        Path("there/confusion-toy-step-000005-class-untrained.png")
    ]
    assert show("a/scores/toy-step-000005.json") == [
        Path("a/scores/confusion-toy-step-000005-class-trained.png")
    ]


def test_one_of_several_protocols_is_chosen_by_name():
    path, _ = write_run(Path("b"), TRUTH, GUESS)
    other, _ = write_run(Path("a"), TRUTH, GUESS, protocol=PROTOCOL.replace("name: toy", "name: more"))
    other.rename(other.with_name("more-step-000005.json"))
    path.rename(other)
    with pytest.raises(UsageError, match="a: has scores of more, toy: choose with --protocol"):
        show()
    assert show(protocol="more") == [Path("a/pictures/confusion-more-step-000005-class-trained.png")]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"protocol": "toi"}, "no scores of 'toi'. Did you mean 'toy'?"),
        ({"label": "clas"}, "no label 'clas'. Did you mean 'class'?"),
        ({"network": "train"}, "no network 'train'. Did you mean 'trained'?"),
        ({"setting": "k=5"}, "no setting 'k=5'"),
        ({"out": "a/scores/toy-step-000005.json/x"}, "cannot make the folder"),
    ],
)
def test_mistakes_are_one_line(keys, says):
    with pytest.raises(UsageError) as error:
        show(**keys)
    assert says in str(error.value)


def test_retrieval_names_no_classes():
    write_run(Path("a"), TRUTH, GUESS, kind="found")
    with pytest.raises(UsageError, match="no row names one class a video: retrieval, mAP and R2 name none"):
        show()


def test_the_command_line_draws_and_refuses_what_it_has_no_use_for(capsys):
    words = ["show", "a", "--what", "confusion"]
    assert main([*words, "--label", "class", "--protocol", "toy", "--network", "untrained"]) == 0
    assert "confusion-toy-step-000005-class-untrained.png" in capsys.readouterr().out
    for more, says in (
        ((*words, "--videos", "3"), "leave out videos"),
        ((*words, "data={type: x}"), "leave out videos"),
        (("show", "--what", "confusion"), "takes a run or a file of scores, got none"),
        (("show", "a", "--what", "attention", "--label", "class"), "--label is for --what confusion"),
    ):
        assert main(list(more)) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
