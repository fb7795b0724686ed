"""What limits a run is said from what was measured, and measuring leaves no trace."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toy_runs import make_world

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.loader import Stream
from vidssl.data.views.random import SingleClip
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, SampleInfo, UnreadableSample
from vidssl.tools.bench import (
    _BY_ELEMENT,
    _KINDS,
    Measured,
    StreamTimes,
    _Calls,
    measure_floor,
    measure_parts,
    verdict,
)
from vidssl.tools.dry_run import count_flops
from vidssl.train.trial import Trial, random_batch

# what newer Pythons and small machines say of any DataLoader with workers
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)

VIDEO = StreamTimes(batch_size=8, clips=2, look=0.0, decode=2.0, views=0.5, stack=0.0)
IMAGE = StreamTimes(batch_size=8, clips=1, look=0.0, decode=0.3, views=0.2, stack=0.0)
FOUND = Measured(
    {"video": VIDEO, "image": IMAGE},
    transfer=0.1,
    augment=0.1,
    descend=0.8,
    loader=2.5,
    workers=1,
    cores=2,
    step_cores=1,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "80")


def test_slow_data_are_said_with_the_workers_and_cores_that_they_want() -> None:
    assert (FOUND.workers_wanted, FOUND.cores_wanted) == (3, 4)  # 2.5 and 0.5 beside a step of 1
    assert verdict(FOUND) == (
        "Data limit: with run.workers=1 a batch takes 2.5 times as long as its step, mostly decoding; the "
        "recipe wants run.workers=3 and 4 cores, and this machine has 2 cores."
    )


def test_workers_that_have_no_cores_are_not_told_to_be_more() -> None:
    assert verdict(replace(FOUND, workers=3, cores=1, loader=1.2)) == (
        "Data limit: with run.workers=3 a batch takes 1.2 times as long as its step, mostly decoding, though "
        "by what one worker takes run.workers=3 is enough: the recipe wants 4 cores for itself, and this "
        "machine has 1 core."
    )


def test_a_slow_step_is_said_with_the_workers_that_are_enough() -> None:
    found = replace(FOUND, descend=9.8, loader=0.5, workers=8)
    assert verdict(found) == (
        "The step limits: with run.workers=8 a batch takes 0.05 of its step's time, for which run.workers=1 "
        "and 2 cores are enough, and this machine has 2 cores."
    )


@pytest.mark.parametrize("loader", [0.95, 1.0, 1.05])
def test_what_is_balanced_wants_one_more(loader: float) -> None:
    assert verdict(replace(FOUND, loader=loader, workers=3)) == (
        "Balanced: with run.workers=3 a batch takes as long as its step; the recipe wants run.workers=4 and "
        "4 cores so as not to wait for slow files, and this machine has 2 cores."
    )


def test_without_workers_the_share_of_waiting_is_said() -> None:
    assert verdict(replace(FOUND, loader=3.0, workers=0)) == (
        "One after the other: with run.workers=0 every step waits for its batch, which is 75% of the time, "
        "mostly decoding; run.workers=3 and 4 cores would hide it, and this machine has 2 cores."
    )


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("look", "mostly looking files through (a manifest saves that);"),
        ("decode", "mostly decoding;"),
        ("views", "mostly resizing and cropping;"),
        ("stack", "mostly putting samples together;"),
    ],
)
def test_the_dearest_part_of_the_slowest_stream_is_named(part: str, said: str) -> None:
    slow = replace(VIDEO, **{part: 3.0})
    assert said in verdict(replace(FOUND, streams={"image": IMAGE, "video": slow}))


def test_on_a_cpu_the_step_takes_its_threads_of_the_cores() -> None:
    assert replace(FOUND, step_cores=6).cores_wanted == 9


class Slow(DataSource):
    """Takes 5 s to look at a sample and 20 s to read it, by a clock of its own."""

    label_classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.bad = bad
        self.reads = 0
        self.now = 0.0

    def __len__(self) -> int:
        return 16

    def info(self, index: int) -> SampleInfo:
        self.now += 5
        return SampleInfo(str(index), 4, 1.0, {})

    def labels(self, index: int) -> Mapping[str, int]:
        return {}

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        self.reads += 1
        self.info(index)  # part of reading, and not to be counted twice
        self.now += 15
        if index in self.bad:
            raise UnreadableSample(str(index), "spoilt")
        return torch.randint(0, 256, (len(frames), 3, 16, 16), dtype=torch.uint8)


def measured(source: Slow, seconds: float, batch_size: int) -> Measured:
    recipe = load_recipe("bevt_video.yaml", ["run.workers=0"])
    objective = build.objective(recipe, say=lambda text: None)
    stream = Stream(source, SingleClip(num_frames=4, frame_stride=1, size=16), batch_size=batch_size)
    trial = Trial(recipe, objective, build.schedule(recipe).plan({"video": 10.0}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidssl.tools.bench.time", SimpleNamespace(perf_counter=lambda: source.now))
        return measure_parts(recipe, {"video": stream}, trial, seconds)


def test_looking_and_reading_are_told_apart() -> None:
    found = measured(Slow(), 100, batch_size=4)
    video = found.streams["video"]
    assert video.clips == 1
    assert (video.look, video.decode, video.seconds) == (4 * 5, 4 * 20, 4 * 25)
    assert found.loader == 4 * 25


def test_what_a_large_batch_takes_is_reckoned_from_a_few_samples() -> None:
    source = Slow()
    found = measured(source, 10, batch_size=16)
    assert found.streams["video"].decode == 16 * 20
    assert source.reads == 4 * 4 + 2 * 16  # rounds of four samples, then two batches of the loader


def test_a_source_that_gives_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"none of the 16 samples can be read, such as .*: spoilt"):
        measured(Slow(bad=range(16)), 10, batch_size=2)


def test_the_floor_is_of_all_flops_of_a_step_and_of_nothing_else() -> None:
    recipe = load_recipe("svt.yaml")  # no mask, whose number of cells differs from step to step
    trial = Trial(recipe, build.untrained(recipe), build.schedule(recipe).plan({"video": 10.0}))
    batch = random_batch(recipe)
    calls = _Calls(trial)
    trial.take(0, batch)
    with calls:
        trial.take(1, batch)
    assert count_flops(lambda: [call() for call in calls.order]) == count_flops(partial(trial.take, 2, batch))
    trial.timed = lambda do, *, cpu=False: (do(), 0.0)  # as by a coarse clock
    assert measure_floor(trial, batch, 1e-9).ratio == 1
    assert set(calls.seconds) == {*_KINDS, _BY_ELEMENT}
    assert not [kind for kind, seconds in calls.seconds.items() if seconds < 0]


def test_the_step_is_shown_beside_its_floor(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without data: the source of this recipe lists videos that are not there."""
    before, random = files(world), torch.get_rng_state()
    words = ["data.video.source={type: video_list, root: none, list: none.csv}", "--seconds", "0.1"]
    assert main(["bench", "svt.yaml", "--floor", *words]) == 0
    said = capsys.readouterr().out
    (ratio,) = re.findall(r"The step takes (\d+\.\d\d) of its floor", said)
    assert float(ratio) > 1
    rows = ["matrix products, convolutions, attention", *_KINDS, _BY_ELEMENT, "the step"]
    assert [row for row in rows if row not in said] == []
    assert files(world) == before
    assert torch.equal(torch.get_rng_state(), random)


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", [pytest.param("bevt", marks=pytest.mark.slow), "svt"])
def test_it_says_all_in_80_columns_and_changes_nothing(
    name: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.streams(load_recipe(f"{name}.yaml"))  # made videos are the data set's own
    before, random, threads = files(world), torch.get_rng_state(), torch.get_num_threads()
    assert main(["bench", f"{name}.yaml", "run.workers=1", "--seconds", "0.2"]) == 0
    assert files(world) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    said = capsys.readouterr().out
    rows = ["video: decode", "video: one worker", "to the device", "augment", "update", "run.workers=1"]
    assert [row for row in rows if row not in said] == []
    assert max(len(line) for line in said.splitlines() if line[:1] in "┃│┏┡├└") <= 80
    assert "…" not in said
    sentence = " ".join(said.split())
    assert re.search(
        r"(Data limit|The step limits|Balanced): with run.workers=1 .* this machine has", sentence
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "bench takes one recipe, got none"),
        (["bevt.yaml", "svt.yaml"], "bench takes one recipe, got bevt.yaml svt.yaml"),
        (["bevt.yaml", "--seconds", "0"], "--seconds: expected a finite number above 0, got 0"),
        (["bevt.yaml", "--seconds", "nan"], "--seconds: expected a finite number above 0, got nan"),
        (["bevt.yaml", "run.wrkers=1"], "run.wrkers: unknown key"),
        (["bevt.yaml", "run.device=cuda"], "run.device is cuda"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "run.device=cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["bench", "bevt.yaml"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
