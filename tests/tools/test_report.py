"""The page on runs: whole in itself, safe, and true to the scores."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from score_files import write_run

from vidssl.compare.grid_tables import StepPrice, read_results
from vidssl.compare.tables import run_groups
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import find_scores
from vidssl.pictures.charts import COLOURS, Curve, Dot, curves_chart, scores_chart
from vidssl.tools.report import (
    grid_section,
    grid_verdict,
    run_folder,
    short_names,
    verdict_of,
    write_report,
)
from vidssl.tools.show_charts import show_chart

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
TRUTH = [0, 1, 2, 3] * 10
VOID = {"meta", "img", "link", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags that are open, addresses that are asked for, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data if self.open[-1:] != ["style"] else ""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wrong(count: int) -> list[int]:
    return [(number + 1) % 4 for number in TRUTH[:count]] + TRUTH[count:]


def two_runs() -> list[str]:
    for name, count in (("<b>bad", 30), ("good", 4)):
        run = Path("runs") / name
        write_run(run, TRUTH, {"trained": wrong(count), "untrained": wrong(28)})
        lines = [{"step": step, "loss": 3.0 / step, "test_loss": 4.0 / step} for step in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["runs/<b>bad", "runs/good"]


def test_the_page_is_whole_safe_and_says_who_leads() -> None:
    assert write_report(two_runs(), "page.html", pictures=True) == 0
    text = Path("page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "b" not in page.tags  # names of runs are text
    assert [a for a in page.addresses if not a.startswith(("#", "data:image/"))] == []
    assert not re.search(r"@import|url\((?!#)", text)
    said = " ".join(page.said.split())
    assert "toy: good leads <b>bad by 65.0 points for class; the other leads may be chance." in said
    assert "toy: good is better for class (+60.0 points) than the same network untrained, of 1 label." in said
    assert "toy: <b>bad is no different beyond chance than the same network untrained" in said
    assert "prefers-color-scheme: dark" in text
    assert "#010203" not in text  # the ink of charts is the page's
    # a run without its network still has its scores, and the page says what is missing
    assert "good: runs/good: a folder, but not that of a run" in said


def test_a_run_alone_and_a_run_against_several_are_told_apart() -> None:
    two_runs()
    write_run(Path("runs/good-1"), TRUTH, {"trained": wrong(5), "untrained": wrong(28)}, seed=1)
    files = [file for run in ("good", "good-1", "<b>bad") for file in find_scores(Path("runs") / run)]
    said = verdict_of([run_groups(files, each=False)], short_names([run_folder(file) for file in files]))
    assert said[0] == "toy: No best run is ahead of the next beyond chance, for any label."
    assert said[1].startswith("toy: good (2 seeds) is better for class")


def make_grid() -> None:
    levels = {f"{one}-{other}": {"one": one, "other": other} for one in "ab" for other in "xy"}
    for number, name in enumerate(levels):
        for seed in (0, 1):
            run = Path(f"runs/g/{name}-seed-{seed}")
            write_run(run, TRUTH, wrong(30 - 9 * number - seed), seed=seed, objective=f"{{type: {name}}}")
            (run / "metrics.jsonl").write_text('{"step": 5, "seconds": 1.0}\n')
    price = asdict(StepPrice("", 10, 0.5, 7, 4, 100))
    described = {
        "format": "vidssl grid 1", "name": "g", "question": "Which is best?", "equal": None, "labels": [],
        "axes": ["one", "other"], "seeds": [0, 1], "cells": levels, "prices": dict.fromkeys(levels, price),
    }  # fmt: skip
    Path("runs/g/grid.json").write_text(json.dumps(described))


def test_a_grid_has_a_page_with_its_effects() -> None:
    make_grid()
    results = read_results(Path("runs/g"))
    assert grid_verdict(results) == [
        "toy: of 4 tested pairs of cells, 4 differ beyond chance.",
        "toy, highest mean: class: b-y (93.8 %).",  # 3 and 2 of 40 wrong
    ]
    section = grid_section(results)
    assert [figure.title for figure in section.figures] == ["one x other"]
    assert any("main effects" in table.title for table in section.tables)


def test_lines_differ_in_mark_or_colour_and_the_legend_has_both() -> None:
    curves = [Curve(f"run{n}", range(20), [float(n)] * 20) for n in range(8)]
    held_out = Curve("run0", [10], [0.5], dashed=True)
    figure = curves_chart({"loss": [*curves, held_out]})
    *lines, tested = figure.axes[0].lines
    looks = [(line.get_color(), line.get_marker()) for line in lines]
    assert len(set(looks)) == 8
    assert [(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()] == looks
    assert (tested.get_markerfacecolor(), lines[0].get_markerfacecolor()) == ("none", looks[0][0])


def test_colours_differ_for_the_colour_blind() -> None:
    """By Machado et al. (2009), for whoever lacks one kind of cone; a difference of 2.3 is just seen."""
    seen = {
        "red": (
            (0.152286, 1.052583, -0.204868),
            (0.114503, 0.786281, 0.099216),
            (-0.003882, -0.048116, 1.051998),
        ),
        "green": (
            (0.367322, 0.860646, -0.227968),
            (0.280085, 0.672501, 0.047413),
            (-0.011820, 0.042940, 0.968881),
        ),
        "blue": (
            (1.255528, -0.076749, -0.178779),
            (-0.078411, 0.930809, 0.147602),
            (0.004733, 0.691367, 0.303900),
        ),
    }
    to_xyz = np.array(((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)))
    rgb = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for lacking, matrix in seen.items():
        xyz = np.clip(linear @ np.array(matrix).T, 0, 1) @ to_xyz.T / (0.9505, 1.0, 1.089)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)  # CIE L*a*b*
        apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(len(lab), 1)]
        assert apart.min() > 9, lacking


def test_steps_are_whole_numbers_below_a_single_one() -> None:
    (axes,) = curves_chart({"loss": [Curve("run", [10], [0.5])]}).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_numbers_beside_an_axis_are_the_values_without_an_offset() -> None:
    figure = curves_chart({"loss": [Curve("run", [1, 2], [-2.24901, -2.24899])]})
    figure.canvas.draw()
    assert not figure.axes[0].yaxis.get_offset_text().get_text()
    assert all(label.get_text().startswith("−2.24") for label in figure.axes[0].get_yticklabels())


def test_what_cannot_be_reported_is_named() -> None:
    with pytest.raises(UsageError, match="takes runs"):
        write_report([])
    with pytest.raises(UsageError, match=r"base\.yaml: a report is an HTML file: -o base\.html"):
        write_report(["runs/g"], "base.yaml")
    make_grid()
    with pytest.raises(UsageError, match="reported by itself"):
        write_report(["runs/g", "runs/g/a-x-seed-0"])


def test_charts_of_runs_are_pictures_of_legible_size() -> None:
    targets = two_runs()
    for run in targets:
        (Path(run) / "recipe.yaml").write_text("name: x\n")
    assert show_chart(targets, "curves", out="drawn") == 0
    assert show_chart(targets, "scores", out="drawn") == 0
    sizes = {}
    for path in sorted(Path("drawn").iterdir()):
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    assert list(sizes) == ["curves.png", "scores-toy.png"]
    assert min(min(size) for size in sizes.values()) > 200
    with pytest.raises(UsageError, match="no scores of 'knn'"):
        show_chart(targets, "scores", protocol="knn")


def test_an_untrained_twin_has_the_colour_and_the_mark_of_its_network() -> None:
    names = ("a", "a, untrained", "b", "b, untrained")
    panels = {"class": [Dot(name, 0.5, 0.4, 0.6) for name in names]}
    (axes,) = scores_chart(panels, {"class": 0.1}, hollow=names[1::2]).axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    looks = [(line.get_color(), line.get_marker()) for line in marks]
    assert looks[0] == looks[1] != looks[2] == looks[3]
    assert [line.get_markerfacecolor() == "none" for line in marks] == [False, True, False, True]
    assert not any(line.get_clip_on() for line in marks)  # 100 % is whole too


@pytest.mark.slow
def test_nothing_runs_out_of_the_page_in_a_browser() -> None:
    """Of runs in light colours and of a grid in dark ones, on a phone, a tablet and a screen."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    write_report(two_runs(), "light.html", pictures=False)
    make_grid()
    write_report(["runs/g"], "dark.html", pictures=False)
    for scheme, number in (("light", 1), ("dark", 0)):
        for width in (390, 820, 1280):  # in a frame: a headless window is 500 pixels wide at least
            Path("frame.html").write_text(
                '<meta name="color-scheme" content="light dark"><body style="margin: 0">'
                f'<iframe src="{scheme}.html" width="{width}" height="1500" style="border: 0">'
            )
            command = [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={max(500, width)},1500", f"--user-data-dir={Path.cwd()}/browser",
                f"--blink-settings=preferredColorScheme={number}", "--screenshot=shot.png",
                (Path.cwd() / "frame.html").as_uri(),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            shot = np.asarray(Image.open("shot.png").convert("L"))[:, :width].astype(int)
            assert shot.shape == (1500, width)
            ink = shot if scheme == "light" else 255 - shot  # dark letters on light paper in both
            assert ink[:, width - 8 :].min() > 220  # the margin is empty
            assert np.median(ink) > 220
            assert ink.min() < 60
