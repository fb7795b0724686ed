"""What goes wrong with data during a run: the run goes on with the right samples or stops with one line."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from data_clips import cut_off, write_clip
from rich.console import Console
from torch import Tensor
from toy_runs import records

from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.loader import Loader, Stream, iterate_once
from vidssl.data.views.random import SingleClip
from vidssl.data.views.uniform import UniformClips
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, DataSource, SampleInfo
from vidssl.train.run import train_recipe

# what newer Pythons and small machines say of any DataLoader with workers
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
    ),
    # A worker may die while torch, told of a broken connection, opens files to see whether too many are:
    # they are then closed by the collector of garbage, which is no fault of the run's.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
    pytest.mark.slow,
]

CLIP = SingleClip(num_frames=2, frame_stride=1, size=4)
SECONDS = 60  # after which something hangs
RECIPE = """\
name: failing
objective: {{type: svt, out_dim: 12, head_hidden: 8, bottleneck: 4}}
backbone: {{type: vit, embed_dim: 12, depth: 1, num_heads: 2, patch_size: [2, 8, 8]}}
data:
  video:
    source: {source}
    views: {{type: global_local, num_frames: [4, 2], size: 16, local_frames: [2], local_size: 8}}
    batch_size: 4
  max_unreadable_share: {share}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 18}}
run: {{workers: 1, device: cpu, log_every_steps: 1, checkpoint_every_steps: 18}}
"""
SLOW = """\
import os, signal, time
from pathlib import Path
from vidssl.api import MovingDigits


class Slow(MovingDigits):
    def __init__(self, *, seconds: float = 0.0, kills: str = ""):
        super().__init__(split="train", size=16, digit_size=12, num_frames=4, num_videos=12)
        self.seconds, self.kills = seconds, kills

    def read(self, index, frames):
        time.sleep(self.seconds)
        if self.kills and index == 7 and any(Path(self.kills).iterdir()):
            next(Path(self.kills).iterdir()).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, frames)
"""


class Numbers(DataSource):
    """Twelve samples of eight frames whose pixels are the sample's number and the frame's."""

    label_classes: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return 12

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), 8, 1.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        pixels = torch.tensor([[index, index, frame] for frame in frames], dtype=torch.uint8)
        return pixels[:, :, None, None].expand(-1, -1, 4, 4).clone()


class Deadly(Numbers):
    """Kills the process that reads it, as often as there are files in a folder; each kill takes one away."""

    def __init__(self, folder: Path, kills: int, number: int = signal.SIGKILL) -> None:
        self.folder = folder
        self.number = number
        for kill in range(kills):
            (folder / str(kill)).touch()

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        left = sorted(self.folder.iterdir())
        if left and index % 3 == 2:
            left[0].unlink()
            os.kill(os.getpid(), self.number)
        return super().read(index, frames)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Ends a test that hangs, and sees that no worker is left."""
    before = set(multiprocessing.active_children())

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for {SECONDS} seconds")

    old = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    assert set(multiprocessing.active_children()) <= before


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.indices["video"], right.indices["video"])
        assert torch.equal(left.views["clip"][0], right.views["clip"][0])


def take(source: DataSource, workers: int, said: list[tuple[int, str]] | None = None) -> list[Batch]:
    def note(step: int, line: str) -> None:
        if said is not None:
            said.append((step, line))

    stream = Stream(source, CLIP, batch_size=4, workers=workers)
    with Loader({"video": stream}, start_step=2, restarted=note) as loader:
        return [next(loader) for _ in range(9)]


@pytest.mark.parametrize(("workers", "kills"), [(1, 1), (2, 2)])
def test_after_a_killed_worker_the_batches_are_those_that_were_to_come(
    tmp_path: Path, workers: int, kills: int
) -> None:
    said: list[tuple[int, str]] = []
    assert_same(take(Deadly(tmp_path, kills), workers, said), take(Numbers(), 0))
    assert 1 <= len(said) <= kills  # two workers may be killed at once
    for step, line in said:
        assert step >= 2
        assert line.startswith("video: a data worker died: process ")
        assert "was killed by signal 9 (SIGKILL, as the system does when memory runs out)" in line
        assert line.endswith("New workers go on, with the same batches")


def test_a_worker_that_dies_again_and_again_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^video: a data worker died: .*SIGSEGV.*run\.workers=0.*3 died"
    ) as caught:
        take(Deadly(tmp_path, 99, signal.SIGSEGV), 1)
    assert "\n" not in str(caught.value)


def kill_workers() -> int:
    """Kills this process's children; how many there were."""
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid or 0, signal.SIGKILL)
    return len(children)


@pytest.mark.parametrize("steps_apart", [1, 3])
def test_deaths_that_lie_far_apart_are_forgiven(steps_apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidssl.data.loader._FORGIVEN", 5)
    said: list[str] = []
    with Loader({"video": Stream(Numbers(), CLIP, batch_size=4, workers=1)}, say=said.append) as loader:
        for kill in range(5):
            if kill == 3 and steps_apart == 1:
                with pytest.raises(UsageError, match="3 died within 5 steps"):
                    next(loader)
                break
            for _ in range(steps_apart):
                next(loader)
            kill_workers()
        assert len(said) == (2 if steps_apart == 1 else 4)


def test_a_death_between_batches_is_not_heard_of_before_the_next() -> None:
    """torch's own handler would raise in the middle of what the process does then."""
    said: list[tuple[int, str]] = []
    stream = Stream(Numbers(), CLIP, batch_size=4, workers=2)
    batches = []

    def note(step: int, line: str) -> None:
        said.append((step, line))

    with Loader({"video": stream}, start_step=2, restarted=note) as loader:
        for step in range(9):
            batches.append(next(loader))
            if step == 4:
                assert kill_workers() == 2
                until = time.monotonic() + 0.3
                while time.monotonic() < until:  # a step
                    torch.ones(3).sum()
                assert said == []
    assert [step for step, _ in said] == [7]
    assert_same(batches, take(Numbers(), 0))


def test_of_two_streams_each_hears_of_its_own_dead(tmp_path: Path) -> None:
    from vidssl.data.views.random import SingleImage

    said: list[str] = []
    streams = {
        "video": Stream(Numbers(), CLIP, batch_size=4, workers=1),
        "image": Stream(Deadly(tmp_path, 1), SingleImage(size=4), batch_size=4, workers=1),
    }
    with Loader(streams, say=said.append) as loader:
        for _ in range(9):
            next(loader)
    (line,) = said
    assert line.startswith("image: a data worker died")


def test_a_worker_that_dies_while_features_are_read_is_one_line(tmp_path: Path) -> None:
    views = UniformClips(num_frames=2, frame_stride=1, size=4)
    passed = iterate_once(Deadly(tmp_path, 1), views, batch_size=2, workers=1, unreadable=lambda error: None)
    with pytest.raises(UsageError, match=r"^a data worker died: .*SIGKILL"):
        list(passed)


def test_the_death_of_a_process_of_someone_elses_is_none_of_ours() -> None:
    with Loader({"video": Stream(Numbers(), CLIP, batch_size=4, workers=1)}) as loader:
        next(loader)
        assert subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False).returncode < 0
        next(loader)


# runs


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Type of a source of a user's own."""
    path = tmp_path_factory.mktemp("own") / "slow.py"
    path.write_text(SLOW)
    return f"{path}:Slow"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, source: str, share: float = 0.0) -> RunFolder:
    Path(f"{name}.yaml").write_text(RECIPE.format(source=source, share=share).replace("failing", name))
    _, result = train_recipe(load_recipe(f"{name}.yaml"), Console(quiet=True))
    assert result.steps == 18
    return RunFolder(result.folder)


def events(folder: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def test_a_run_whose_workers_are_killed_ends_as_any_other_and_notes_it(here: Path, slow: str) -> None:
    (here / "kills").mkdir()
    for kill in range(2):
        (here / "kills" / str(kill)).touch()
    killed = run("killed", f'{{type: "{slow}", kills: kills}}')
    assert list((here / "kills").iterdir()) == []
    noted = events(killed)
    assert [event["kind"] for event in noted] == ["restarted"] * 2
    assert all("a data worker died" in str(event["text"]) for event in noted)
    sound = run("sound", f'{{type: "{slow}"}}')
    assert records(killed) == records(sound)


def test_a_run_whose_workers_die_at_one_video_stops_with_one_line(
    here: Path, slow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "kills").mkdir()
    for kill in range(5):
        (here / "kills" / str(kill)).touch()
    Path("deadly.yaml").write_text(RECIPE.format(source=f'{{type: "{slow}", kills: kills}}', share=0.0))
    assert main(["train", "deadly.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vidssl: video: a data worker died: process")
    assert "run.workers=0" in line
    assert "3 died within" in line


def test_a_slow_disk_shows_in_the_share_of_waiting(here: Path, slow: str) -> None:
    waits = []
    for seconds in (0.0, 0.03):
        folder = run(f"slow{len(waits)}", f'{{type: "{slow}", seconds: {seconds}}}')
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        waits.append([line["data_wait_share"] for line in lines][3:])
    assert sorted(waits[1])[len(waits[1]) // 2] > max(0.4, sorted(waits[0])[len(waits[0]) // 2])


def vanish(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number:02d}.mp4").unlink()


def shrink(folder: Path) -> None:
    for number in range(3):
        cut_off(folder / f"{number:02d}.mp4", 0.3)


def become_noise(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number:02d}.mp4").write_bytes(os.urandom(3000))


@pytest.mark.parametrize("spoil", [vanish, shrink, become_noise])
@pytest.mark.parametrize("allowed", [True, False])
def test_a_run_whose_files_are_spoilt_ends_or_stops_as_the_share_allows(
    here: Path, spoil: Callable[[Path], None], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the files is spoilt after four steps of eighteen, six epochs of twelve videos."""
    for number in range(12):
        write_clip(here / "videos" / "a" / f"{number:02d}.mp4", 8, noise=40)
    seen: list[int] = []
    take_batch = Loader.__next__

    def spoiling(loader: Loader) -> Batch:
        batch = take_batch(loader)
        seen.append(len(batch.indices["video"]))
        if len(seen) == 4:
            spoil(here / "videos" / "a")
        return batch

    monkeypatch.setattr(Loader, "__next__", spoiling)
    if allowed:
        run("spoilt", "{type: video_folder, root: videos}", share=0.3)
        assert seen == [4] * 18  # others took the places of those that are gone
    else:
        with pytest.raises(UsageError, match=r"[123] of 12 samples cannot be read"):
            run("spoilt", "{type: video_folder, root: videos}", share=0.05)
        assert 4 <= len(seen) < 18
