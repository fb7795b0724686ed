"""What ``vidssl list backbones`` says of single networks."""

from collections.abc import Callable
from typing import get_args

import pytest

from vidssl.backbones import BACKBONES
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.torchvision_nets import Name, TorchvisionNet
from vidssl.backbones.vit import ViT
from vidssl.build.part_checks import taken_sizes
from vidssl.cli import main as cli
from vidssl.interfaces import Backbone
from vidssl.interfaces.grids import GridSize


class Picky(Backbone):
    """Takes what a function says, in time alone."""

    def __init__(self, takes: Callable[[int], bool]) -> None:
        super().__init__()
        self.takes = takes

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        if not self.takes(num_frames):
            raise ValueError("no")
        return num_frames, height, width

    def forward(self, x: object, mask: object = None) -> None:
        raise NotImplementedError


class Deep(Picky):
    """Needs a key that nobody can guess, so that there is no network of it to show."""

    def __init__(self, *, depth: int) -> None:
        super().__init__(lambda count: count == depth)


@pytest.mark.parametrize(
    ("takes", "words"),
    [
        (lambda count: True, "any"),
        (lambda count: count % 4 == 0, "multiples of 4"),
        (lambda count: count == 1 or count % 4 == 0, "1 or multiples of 4"),
        (lambda count: count >= 8 and count % 4 == 0, "multiples of 4 from 8"),
        (lambda count: count >= 5, "5 or more"),
        (lambda count: count == 1 or count >= 5, "1 or 5 or more"),
        (lambda count: count == 16, "16 only"),
        (lambda count: count in (1, 8, 16), "1, 8, 16"),
        (lambda count: False, "?"),
    ],
)
def test_frames_that_are_taken_are_found_by_asking(takes: Callable[[int], bool], words: str) -> None:
    assert taken_sizes(Picky(takes))[0] == words


def test_sides_are_found_as_well() -> None:
    toy = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    assert taken_sizes(ViT(**toy, patch_size=(2, 8, 8))) == ("1 or multiples of 2", "multiples of 8")
    assert taken_sizes(TimeSformer(**toy, patch_size=16)) == ("any", "multiples of 16")


@pytest.mark.slow
def test_every_network_has_a_row_with_its_parameters_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in set(BACKBONES) - {"torchvision", "video_swin", "factorized"}:
        monkeypatch.delitem(BACKBONES, name)
    monkeypatch.setitem(BACKBONES, "deep", Deep)
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["list", "backbones"]) == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    found = {row[1]: row[2:-1] for row in rows if len(row) == 8}
    net = TorchvisionNet(name="s3d")
    count = sum(parameter.numel() for parameter in net.parameters())
    assert found["s3d"] == [f"{count / 1e6:.1f}", "1024", "-", "5 or more", "17 or more"]
    assert found["mvit_v2_s"][2:] == ["class token", "16 only", "224 only"]
    assert found["tiny"][2:] == ["mask, 4 stages", "any", "any"]
    assert found["large_half"][2:] == ["reads ids, mask, class token", "any", "any"]
    assert set(get_args(Name)) < set(found)


def test_a_list_of_everything_builds_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidssl.build.part_checks.network_table", lambda: pytest.fail("built networks"))
    assert cli.main(["list"]) == 0
    assert cli.main(["list", "maskers"]) == 0


@pytest.mark.slow
def test_nothing_of_a_network_is_cut_off_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in set(BACKBONES) - {"pytorchvideo", "timm", "factorized", "vit"}:
        monkeypatch.delitem(BACKBONES, name)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["list", "backbones"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert all(line[-1] in "┓┩│┤┘" for line in said.splitlines() if line[0] in "┏┡│├└")
