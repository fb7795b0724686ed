"""Curves of a run in the terminal."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread

import pytest
from rich.console import Console

from vidssl.engine.process import sole_process, trains_in
from vidssl.errors import UsageError
from vidssl.tools.watch import Line, plot, read_curves, watch_run


def a_run(folder: Path, records: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("name: x\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def shown(*runs: Path, patterns: Sequence[str] = (), width: int = 80) -> str:
    out = io.StringIO()
    assert watch_run([*map(str, runs)], patterns, once=True, console=Console(file=out, width=width)) == 0
    return out.getvalue()


def drawn(*lines: Line, width: int, height: int) -> list[str]:
    return plot(lines, width=width, height=height).plain.split("\n")


def test_a_rising_line_runs_from_the_bottom_left_to_the_top_right() -> None:
    assert drawn(Line([0, 1], [1.0, 2.0]), width=4, height=2) == ["⠀⠀⡠⠊", "⡠⠊⠀⠀"]


def test_a_level_line_lies_in_the_middle_and_fills_the_width() -> None:
    assert drawn(Line([5, 6, 9], [3.0, 3.0, 3.0]), width=3, height=1) == ["⠤⠤⠤"]


def test_values_that_are_no_numbers_leave_a_gap() -> None:
    (line,) = drawn(Line([0, 1, 2, 3, 4, 5, 6], [1, 1, 1, float("nan"), 1, 1, 1]), width=7, height=1)
    assert line[0] != "⠀"
    assert line[-1] != "⠀"
    assert line[3] == "⠀"


def test_one_point_is_one_dot() -> None:
    for dashed in (False, True):
        (line,) = drawn(Line([7], [1.0], dashed=dashed), width=3, height=1)
        assert line.replace("⠀", "") in ("⠄", "⠠")


def test_lines_have_common_axes_a_style_each_and_gaps_where_they_are_dashed() -> None:
    low, high = Line([0, 4], [0.0, 0.0], "red"), Line([4, 8], [1.0, 1.0], "blue", dashed=True)
    picture = plot([low, high], width=8, height=1)
    assert picture.plain == "⣀⣀⣀⣀⡉⠀⠉⠀"
    assert [str(piece.style) for piece in picture.spans if piece.style] == ["red"] * 4 + ["blue"] * 2


def test_runs_are_drawn_over_one_another_and_held_out_curves_over_those_in_training(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", [{"step": n, "loss": 1.0 + n, "test_loss": 9.0} for n in (1, 2)])
    two = a_run(tmp_path / "two", [{"step": n, "loss": 5.0 - n} for n in (1, 4)])
    said = shown(one, two, shown_later := a_run(tmp_path / "three", []), width=120)
    assert f"nothing logged yet in {shown_later}" in said
    assert said.count("╭") == 1
    assert " loss a 3 a test 9 b 1 " in said
    assert "│ 9 " in said
    assert "│ 1 " in said
    assert "│   1" in said.splitlines()[-2]
    assert said.splitlines()[-2].endswith("4 │")
    heads, body = said.splitlines()[:3], "".join(said.splitlines()[4:-2])
    assert [head[:2] for head in heads] == ["a ", "b ", "c "]
    assert body.count("a") == 2  # of the curve in training and of that on held-out videos
    assert body.count("b") == 1
    coloured = Console(file=(out := io.StringIO()), width=120, force_terminal=True, color_system="256")
    assert watch_run([str(one), str(two)], (), once=True, console=coloured) == 0
    assert "━━" in out.getvalue()
    assert not set("ab") & set(out.getvalue().split("╭")[1].replace("\x1b[", ""))


def test_letters_of_lines_that_end_together_stand_side_by_side() -> None:
    lines = [Line([0, 1], [1.0, 1.0], mark="a"), Line([0, 1], [1.0, 1.0], mark="b")]
    assert drawn(*lines, width=3, height=1) == ["⠤ba"]


def test_the_usual_metrics_come_first_and_the_others_are_named(tmp_path: Path) -> None:
    records = [
        {
            "step": step,
            "seconds": 1.0 * step,
            "zebra": 1.0,
            "loss": 3.0 - step / 10,
            **{f"m{i}": 0.0 for i in range(9)},
        }
        for step in (1, 2, 3)
    ]
    said = shown(a_run(tmp_path / "run", records))
    assert "step 3, not training now" in said
    assert said.index("loss 2.7") < said.index("zebra 1")
    assert "│ 2.9 " in said
    assert "│ 2.7 " in said
    assert "also logged (--metric NAME): m6, m7, m8" in said
    assert "seconds" not in said


def test_no_number_below_a_curve_is_cut_off(tmp_path: Path) -> None:
    records = [{"step": step, "test_loss": loss} for step, loss in ((100, 0.009433), (200_000, 3.67e-05))]
    said = shown(a_run(tmp_path / "run", records))
    assert all(f" {number} " in said for number in ("0.009433", "3.67e-05", "100", "200000"))


def test_a_value_of_any_size_leaves_room_for_its_curve(tmp_path: Path) -> None:
    said = shown(a_run(tmp_path / "run", [{"step": n, "loss": 10.0 ** (16 * n)} for n in (1, 2)]))
    assert "│ 1.00e+32 " in said
    assert "│ 1.00e+16 " in said


def test_patterns_choose_metrics(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [{"step": 1, "loss": 3.0, "lr": 0.1, "loss_image": 2.0}])
    said = shown(run, patterns=["loss*"])
    assert "loss_image" in said.split("also logged")[0]
    assert "also logged (--metric NAME): lr" in said
    with pytest.raises(UsageError, match=r"--metric los: the run logged none. Did you mean 'loss'\?"):
        shown(run, patterns=["los"])


def test_every_metric_that_was_asked_for_is_drawn(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [{"step": 1, **{f"m{i}": 0.0 for i in range(20)}}])
    said = shown(run, patterns=["m*"])
    assert all(f"m{i} 0" in said for i in range(20))
    assert "also logged" not in said


def test_the_step_is_that_of_the_metric_that_was_logged_last(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [{"step": 5, "loss": 1.0, "knn": 0.5}, {"step": 10, "loss": 1.0}])
    assert shown(run).startswith("step 10,")


def test_a_run_is_followed_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidssl.tools.watch.SECONDS", 0.01)
    run = a_run(tmp_path / "run", [{"step": 1, "loss": 3.0}])
    trains, ends = Event(), Event()

    def train() -> None:
        with sole_process(run, say=print):
            trains.set()
            ends.wait(20)
            with (run / "metrics.jsonl").open("a") as metrics:
                metrics.write('{"step": 2, "loss": 2.0}\n')

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if "step 1, training" in text:
                ends.set()
            return super().write(text)

    training, out = Thread(target=train), Screen()
    training.start()
    trains.wait(20)
    assert watch_run([str(run)], (), console=Console(file=out, width=120, force_terminal=True)) == 0
    training.join()
    assert "step 1, training: " in out.getvalue()
    assert "step 2, not training now" in out.getvalue()


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [(each.name, each.steps, each.values) for each in read_curves(metrics)] == [("loss", (1,), (2.0,))]
    metrics.write_text('{"step": 1, "loss": 2.0}\nnonsense\n')
    with pytest.raises(UsageError, match=r"metrics.jsonl:2: no line of metrics"):
        read_curves(metrics)


def test_a_run_that_logged_nothing_and_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "nothing logged yet" in shown(a_run(tmp_path / "run", []))
    with pytest.raises(UsageError, match=r"a folder, but not that of a run: there is no recipe.yaml in it"):
        shown(tmp_path)


def test_events_are_counted_by_kind(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [{"step": 1, "loss": 3.0}])
    events = [{"step": 1, "kind": "skipped", "text": ""}] * 2 + [{"step": 1, "kind": "collapse", "text": ""}]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert "2 skipped, 1 collapse" in shown(run, width=120)
    with (run / "events.jsonl").open("a") as file:
        file.write('{"step": 2, "ki')
    assert "2 skipped, 1 collapse" in shown(run, width=120)


def test_who_trains_is_seen_and_not_disturbed(tmp_path: Path) -> None:
    assert not trains_in(tmp_path)
    with sole_process(tmp_path, say=print):
        assert trains_in(tmp_path)
    assert not trains_in(tmp_path)
    with sole_process(tmp_path, say=print):
        pass


def test_without_a_name_the_run_that_was_begun_last_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no run below .*runs: name a run's folder"):
        watch_run((), (), once=True)
    (tmp_path / "runs").mkdir()
    for name, started in (("a", 2), ("b", 1)):
        run = a_run(tmp_path / "runs" / name, [{"step": 1, "loss": 3.0}])
        (run / "environment.json").write_text(json.dumps({"started_unix": started}))
    out = io.StringIO()
    watch_run((), (), once=True, console=Console(file=out, width=80))
    assert "runs/a" in out.getvalue()
