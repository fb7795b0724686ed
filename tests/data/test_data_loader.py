"""The order of samples, what bad ones do to it, and the one pass for measuring."""

import logging
import multiprocessing
import os
import pickle
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from itertools import chain
from pathlib import Path

import pytest
import torch
from data_clips import damage_middle, write_clip
from torch import Tensor

from vidssl.data.loader import Loader, Stream, iterate_once
from vidssl.data.samples import Endless, InOrder, parcels, workers_that_fit
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.random import SingleClip, SingleImage
from vidssl.data.views.uniform import UniformClips
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, DataSource, SampleInfo, UnreadableSample

# what newer Pythons and small machines say of any DataLoader with workers
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)

CLIPS = os.environ.get("VIDSSL_CLIPS")


class Numbers(DataSource):
    """Samples of eight frames whose pixels are the sample's number and the frame's; some cannot be read."""

    label_classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, length: int, bad: Sequence[int] = ()) -> None:
        self.length = length
        self.bad = bad

    def __len__(self) -> int:
        return self.length

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), 8, 1.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if index in self.bad:
            raise UnreadableSample(str(index), "spoilt")
        pixels = torch.tensor([[index, index, frame] for frame in frames], dtype=torch.uint8)
        return pixels[:, :, None, None].expand(-1, -1, 4, 4).clone()


class Stuck(Numbers):
    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        time.sleep(60)
        return super().read(index, frames)


class Dies(Numbers):
    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, frames)


CLIP = SingleClip(num_frames=2, frame_stride=1, size=4)


def take(count: int, stream: Stream, start_step: int = 0, said: list[str] | None = None) -> list[Batch]:
    with Loader(
        {"video": stream}, start_step=start_step, say=(said if said is not None else []).append
    ) as loader:
        return [next(loader) for _ in range(count)]


def order_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.indices["video"] for batch in batches]).tolist()


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert order_of(one) == order_of(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.views["clip"][0], right.views["clip"][0])


def test_each_sample_comes_once_an_epoch_and_in_another_order_the_next() -> None:
    order = order_of(take(9, Stream(Numbers(12), CLIP, batch_size=4)))
    epochs = [order[start : start + 12] for start in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_epoch_that_is_no_whole_number_of_batches_loses_nothing() -> None:
    order = order_of(take(7, Stream(Numbers(7), CLIP, batch_size=5)))
    assert all(sorted(order[start : start + 7]) == list(range(7)) for start in range(0, 35, 7))


def test_a_batch_holds_the_views_of_the_samples_that_it_names() -> None:
    batch = take(1, Stream(Numbers(12), CLIP, batch_size=4))[0]
    (clip,) = batch.views["clip"]
    assert tuple(clip.shape) == (4, 3, 2, 4, 4)
    assert clip.dtype == torch.uint8
    assert clip[:, 0, 0, 0, 0].tolist() == batch.indices["video"].tolist()
    assert (clip[:, 2, 1] - clip[:, 2, 0] == 1).all()


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    batches = [
        take(6, Stream(Numbers(12, bad=[3]), CLIP, batch_size=4, workers=n, max_unreadable_share=0.5))
        for n in (0, 1, 2)
    ]
    assert_same(batches[0], batches[1])
    assert_same(batches[0], batches[2])


def test_a_run_goes_on_from_a_step_with_the_batches_it_would_have_had() -> None:
    stream = Stream(Numbers(10), CLIP, batch_size=4)
    assert_same(take(8, stream)[5:], take(3, stream, start_step=5))


def test_seeds_change_order_and_views() -> None:
    one, other = (take(8, Stream(Numbers(16), CLIP, batch_size=4, seed=seed)) for seed in (0, 1))
    assert order_of(one) != order_of(other)
    frames = [
        [int(f) for batch in run for f in batch.views["clip"][0][:, 2, 0, 0, 0]] for run in (one, other)
    ]
    assert frames[0] != frames[1]
    assert len(set(frames[0])) > 4


def test_views_are_drawn_anew_in_every_epoch() -> None:
    batches = take(12, Stream(Numbers(1), CLIP, batch_size=1))
    assert len({int(batch.views["clip"][0][0, 2, 0, 0, 0]) for batch in batches}) > 3


def test_the_global_generator_is_left_alone() -> None:
    for workers in (0, 1):
        torch.manual_seed(5)
        take(2, Stream(Numbers(4), CLIP, batch_size=2, workers=workers))
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))


def test_processes_that_share_a_stream_see_slices_of_each_batch() -> None:
    stream = Stream(Numbers(10), CLIP, batch_size=4)
    whole = take(5, stream)
    slices = [take(5, stream.share(rank, 2)) for rank in range(2)]
    for step in range(5):
        joined = torch.cat([slices[rank][step].views["clip"][0] for rank in range(2)])
        assert torch.equal(joined, whole[step].views["clip"][0])
    with pytest.raises(ValueError, match="4 does not divide among 3"):
        stream.share(0, 3)


class Labelled(Numbers):
    """Even samples lack the label "odd"; all have "tens"."""

    label_classes: Mapping[str, tuple[str, ...]] = {"odd": ("yes", "no"), "tens": ("0", "1")}

    def labels(self, index: int) -> Mapping[str, int]:
        return {"tens": index // 10} | ({"odd": 1} if index % 2 else {})


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_come_with_their_samples(workers: int) -> None:
    for batch in take(6, Stream(Labelled(12), CLIP, batch_size=4, workers=workers)):
        numbers, labels = batch.indices["video"], batch.labels["video"]
        assert labels["tens"].tolist() == (numbers // 10).tolist()
        assert labels["odd"].tolist() == [1 if number % 2 else -1 for number in numbers.tolist()]
        assert all(given.dtype == torch.int64 for given in labels.values())


def test_a_replaced_sample_brings_its_own_label() -> None:
    stream = Stream(Labelled(12, bad=[1, 2, 3]), CLIP, batch_size=12, max_unreadable_share=0.5)
    (batch,) = take(1, stream)
    assert batch.labels["video"]["tens"].tolist() == (batch.indices["video"] // 10).tolist()


def test_streams_merge_into_one_batch() -> None:
    image = SingleImage(size=4)
    streams = {
        "video": Stream(Numbers(6), CLIP, batch_size=2),
        "image": Stream(Numbers(9), image, batch_size=3),
    }
    with Loader(streams) as loader:
        batch = next(loader)
    assert {name: len(numbers) for name, numbers in batch.indices.items()} == {"video": 2, "image": 3}
    assert tuple(batch.views["image"][0].shape) == (3, 3, 1, 4, 4)
    assert batch.labels == {"video": {}, "image": {}}
    with pytest.raises(ValueError, match="two streams give a view of the same name: clip, clip"):
        Loader({"video": streams["video"], "image": Stream(Numbers(3), CLIP, batch_size=1)})


def test_waiting_for_data_is_measured() -> None:
    class Slow(Numbers):
        def read(self, index: int, frames: Sequence[int]) -> Tensor:
            time.sleep(0.05)
            return super().read(index, frames)

    with Loader({"video": Stream(Slow(4), CLIP, batch_size=2)}) as loader:
        next(loader)
        assert 0.1 <= loader.waited_seconds < 2.0


def test_an_unreadable_sample_is_replaced_by_the_next_and_named_once() -> None:
    said: list[str] = []
    whole = order_of(take(9, Stream(Numbers(12), CLIP, batch_size=4)))
    order = order_of(
        take(9, Stream(Numbers(12, bad=[5]), CLIP, batch_size=4, max_unreadable_share=0.1), said=said)
    )
    for start in (0, 12, 24):
        epoch = whole[start : start + 12]
        expected = [epoch[(place + 1) % 12] if index == 5 else index for place, index in enumerate(epoch)]
        assert order[start : start + 12] == expected
    assert said == ["video: an unreadable sample was replaced by the next: 5: spoilt"]


@pytest.mark.parametrize(("num", "batch"), [(10, 4), (7, 5), (7, 7), (9, 8), (30, 4), (13, 6)])
def test_distinct_batches_hold_no_sample_twice_and_an_epoch_each_once(num: int, batch: int) -> None:
    stream = Stream(Numbers(num), CLIP, batch_size=batch, distinct=True)
    steps = 4 * num
    order = order_of(take(steps, stream))
    assert all(len(set(order[at : at + batch])) == batch for at in range(0, len(order), batch))
    assert all(sorted(order[at : at + num]) == list(range(num)) for at in range(0, len(order) - num + 1, num))
    assert order_of(take(3, stream, start_step=steps - 3)) == order[-3 * batch :]
    # elsewhere than in and just behind batches that span two epochs it is the order as it was drawn
    drawn = order_of(take(steps, replace(stream, distinct=False)))
    repeats = [at for at in range(0, len(drawn), batch) if len(set(drawn[at : at + batch])) < batch]
    assert bool(repeats) == bool(num % batch)
    if num % batch == 0:
        assert drawn == order
    assert drawn[:num] == order[:num]


def test_distinct_batches_hold_no_sample_twice_where_some_cannot_be_read() -> None:
    """The next of the order may stand in the batch already."""
    source = Numbers(20, bad=[3, 4, 5])
    stream = Stream(source, CLIP, batch_size=6, max_unreadable_share=0.5, distinct=True)
    batches = [batch.indices["video"].tolist() for batch in take(40, stream)]
    assert [len(set(batch)) for batch in batches] == [6] * 40
    assert set().union(*batches) == set(range(20)) - {3, 4, 5}
    repeated = [b.indices["video"].tolist() for b in take(40, replace(stream, distinct=False))]
    assert min(len(set(batch)) for batch in repeated) < 6
    with pytest.raises(UsageError, match="none is left to take its place in a batch of 5"):
        take(2, Stream(Numbers(5, bad=[3]), CLIP, batch_size=5, max_unreadable_share=0.5, distinct=True))


def test_one_pass_ends_with_a_smaller_batch_and_begins_anew() -> None:
    stream = Stream(Numbers(10), CLIP, batch_size=4, once=True)
    batches = [batch.indices["video"].tolist() for batch in take(6, stream)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    assert all(sorted(chain(*three)) == list(range(10)) for three in (batches[:3], batches[3:]))
    assert [*chain(*batches[:2])] == order_of(take(2, replace(stream, once=False)))
    halves = [take(3, stream.share(rank, 2)) for rank in range(2)]
    assert [order_of([halves[0][n], halves[1][n]]) for n in range(3)] == batches[:3]
    assert stream.batches_of_pass() == 3
    assert Stream(Numbers(9), CLIP, batch_size=4, once=True).batches_of_pass() == 3
    assert Stream(Numbers(9), CLIP, batch_size=4, once=True, distinct=True).batches_of_pass() == 2
    with pytest.raises(UsageError, match="1 sample to measure on is too few: 2 or more"):
        Stream(Numbers(1), CLIP, batch_size=4, once=True, distinct=True).batches_of_pass()


def test_two_unreadable_samples_in_a_row_are_stepped_over() -> None:
    first, second = order_of(take(1, Stream(Numbers(12), CLIP, batch_size=2)))
    third = order_of(take(2, Stream(Numbers(12), CLIP, batch_size=2)))[2]
    stream = Stream(Numbers(12, bad=[first, second]), CLIP, batch_size=1, max_unreadable_share=0.2)
    assert order_of(take(3, stream)) == [third] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_past_the_allowed_share_the_run_stops_with_the_list(workers: int) -> None:
    stream = Stream(
        Numbers(30, bad=[2, 7, 9]), CLIP, batch_size=5, workers=workers, max_unreadable_share=0.07
    )
    with pytest.raises(UsageError, match=r"video: 3 of 30 samples .*\(0.07\) allows 2") as caught:
        take(6, stream)
    lines = str(caught.value).splitlines()[1:]
    assert sorted(lines) == ["  2: spoilt", "  7: spoilt", "  9: spoilt"]
    take(6, Stream(stream.source, CLIP, batch_size=5, workers=workers, max_unreadable_share=0.1))


def test_one_bad_sample_of_a_small_source_is_past_one_per_cent() -> None:
    with pytest.raises(UsageError, match="1 of 30 samples"):
        take(6, Stream(Numbers(30, bad=[2]), CLIP, batch_size=5))


def test_nothing_readable_is_an_error_whatever_is_allowed() -> None:
    with pytest.raises(UsageError, match="30 of 30 samples cannot be read") as caught:
        take(1, Stream(Numbers(30, bad=range(30)), CLIP, batch_size=2, max_unreadable_share=1.0))
    assert str(caught.value).endswith("and 10 more")


@pytest.mark.slow
def test_a_worker_that_gives_nothing_is_not_waited_for_for_ever() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(UsageError, match=r"did not answer for 1 seconds.*run\.workers=0"):
        take(1, Stream(Stuck(4), CLIP, batch_size=2, workers=1, timeout_seconds=1.0))
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.slow
def test_a_killed_worker_is_told_to_the_user() -> None:
    with pytest.raises(UsageError, match=r"a data worker died.*exited unexpectedly|killed by signal"):
        take(1, Stream(Dies(4), CLIP, batch_size=2, workers=1))


def test_defects_are_not_taken_for_bad_files() -> None:
    class Broken(Numbers):
        def read(self, index: int, frames: Sequence[int]) -> Tensor:
            raise RuntimeError("a defect")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a defect") as caught:
            take(1, Stream(Broken(4), CLIP, batch_size=2, workers=workers))
        assert not isinstance(caught.value, UsageError)


class Signalled(Numbers):
    """Its first reads in a process come with signals, as if someone had sent them to the whole group."""

    def __init__(self, *numbers: int) -> None:
        super().__init__(4)
        self.numbers = list(numbers)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if self.numbers:
            os.kill(os.getpid(), self.numbers.pop())
        return super().read(index, frames)


def test_workers_leave_interrupts_to_their_parent() -> None:
    source = Signalled(signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    assert len(take(4, Stream(source, CLIP, batch_size=2, workers=1))) == 4


@pytest.mark.slow
def test_a_second_request_to_end_is_obeyed() -> None:
    with pytest.raises(UsageError, match=r"a data worker died"):
        take(4, Stream(Signalled(signal.SIGTERM, signal.SIGTERM), CLIP, batch_size=2, workers=1))


def test_samples_can_be_sent_to_workers_that_are_not_forked(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 10)
    source = VideoFolder(root=str(tmp_path))
    source.info(0)
    samples = Endless(
        source, SingleClip(num_frames=2, frame_stride=1, size=32), batch_size=1, seed=0, tries=1
    )
    sent = pickle.loads(pickle.dumps(samples))
    assert torch.equal(sent[3].views["clip"][0], samples[3].views["clip"][0])


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Stream(Numbers(3), CLIP, batch_size=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_pass_gives_every_readable_sample_once_in_order(workers: int) -> None:
    left_out: list[str] = []
    views = UniformClips(num_clips=2, num_frames=2, frame_stride=1, size=4)
    passed = iterate_once(
        Numbers(11, bad=[1, 4, 5, 6, 7]),
        views,
        batch_size=4,
        workers=workers,
        unreadable=lambda error: left_out.append(str(error)),
    )
    indices, given = zip(*passed, strict=True)
    assert all(list(views) == ["clip"] for views in given)
    slots = [views["clip"] for views in given]
    assert [numbers.tolist() for numbers in indices] == [[0, 2, 3], [8, 9, 10]]
    assert [len(clips) for clips in slots] == [2, 2]
    assert tuple(slots[0][1].shape) == (3, 3, 2, 4, 4)
    assert slots[1][1][:, 0, 0, 0, 0].tolist() == [8, 9, 10]
    assert left_out == [f"{index}: spoilt" for index in (1, 4, 5, 6, 7)]


def test_one_pass_over_nothing_readable_is_an_error() -> None:
    views = UniformClips(num_frames=2, frame_stride=1, size=4)
    with pytest.raises(UsageError, match=r"none of the 3 samples can be read.\n  0: spoilt\n  1: spoilt"):
        list(iterate_once(Numbers(3, bad=[0, 1, 2]), views, batch_size=2, unreadable=lambda error: None))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_vanish_shrink_or_turn_to_noise_while_training_are_replaced(
    tmp_path: Path, workers: int
) -> None:
    for number in range(12):
        write_clip(tmp_path / "run" / f"{number:02d}.mp4", 10, noise=40)
    source = VideoFolder(root=str(tmp_path))
    said: list[str] = []
    views = SingleClip(num_frames=2, frame_stride=4, size=32)
    stream = Stream(source, views, batch_size=4, workers=workers, max_unreadable_share=0.5)
    with Loader({"video": stream}, say=said.append) as loader:
        batches = [next(loader) for _ in range(3)]
        (tmp_path / "run" / "03.mp4").unlink()
        (tmp_path / "run" / "04.mp4").write_bytes(os.urandom(3000))
        (tmp_path / "run" / "05.mp4").write_bytes(b"")
        damage_middle(tmp_path / "run" / "06.mp4", share=0.9)
        # whole at once: a worker that looks in the middle of the writing would leave it out
        write_clip(tmp_path / "shorter.mp4", 3).replace(tmp_path / "run" / "07.mp4")
        batches += [next(loader) for _ in range(9)]
    assert sorted(order_of(batches[:3])) == list(range(12))
    settled = batches[6:]  # what workers had decoded ahead is used up
    assert set(order_of(settled)) == {0, 1, 2, 7, 8, 9, 10, 11}
    assert all(tuple(batch.views["clip"][0].shape) == (4, 3, 2, 32, 32) for batch in batches)
    assert sorted(line.split(": ")[2] for line in said) == [f"run/0{number}.mp4" for number in (3, 4, 5, 6)]


@pytest.mark.skipif(not CLIPS, reason="VIDSSL_CLIPS does not name the folder of real clips")
@pytest.mark.parametrize("workers", [0, 2])
def test_no_real_broken_file_ends_a_worker(workers: int) -> None:
    left_out: list[str] = []
    source = VideoFolder(root=str(Path(CLIPS or "") / "bad"))
    views = UniformClips(num_clips=2, num_crops=3, num_frames=4, frame_stride=5, size=32)
    numbers = [
        index
        for indices, _ in iterate_once(
            source, views, batch_size=3, workers=workers, unreadable=lambda error: left_out.append(error.key)
        )
        for index in indices.tolist()
    ]
    assert len(source) == 20
    assert len(numbers) == 12
    assert sorted(left_out) == [
        "audio_only.mp4",
        "corrupt_middle.mp4",
        "header_damaged.mp4",
        "lfs_pointer.mp4",
        "random_bytes.mp4",
        "text.mp4",
        "truncated_no_moov.mp4",
        "zero_bytes.mp4",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm and its limits are Linux's")
@pytest.mark.parametrize(
    ("shared", "descriptors", "expected", "said"),
    [
        (64 << 20, 4096, 4, ""),
        (64 << 20, 64, 0, r"may have 64 files open, workers take 256 \(ulimit -n\)"),
        (26 << 20, 4096, 2, r"/dev/shm has 26 MB free and a batch takes 5 MB \(containers: --shm"),
        (64 << 10, 4096, 0, r"/dev/shm has 0\.0625 MB free"),
    ],
)
def test_there_are_as_many_workers_as_shared_memory_and_descriptors_suffice_for(
    shared: int, descriptors: int, expected: int, said: str
) -> None:
    """With more, training hung: a worker without room waits for ever."""
    found, reason = workers_that_fit(4, 5 << 20, shared=shared, descriptors=descriptors)
    assert found == expected
    assert re.search(said, reason) if said else not reason


def test_there_are_as_many_workers_as_processes_may_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user who may start fewer, a worker or a thread of its queues could not start, with a traceback."""
    for tasks, expected in ((13, 4), (12, 3), (3, 0), (0, 0)):
        found, reason = workers_that_fit(4, 1, shared=1 << 30, descriptors=4096, tasks=tasks)
        assert found == expected
        assert ("ulimit -u" in reason) == (expected < 4)
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (7, 7))
    assert workers_that_fit(4, 1, shared=1 << 30, descriptors=4096)[0] == 2


def test_queues_of_workers_take_shared_memory_too_and_streams_share_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 64 KB one worker's queues and three batches of 6 KB, in whole pages, take more: training hung."""
    assert workers_that_fit(2, 6 << 10, shared=64 << 10, descriptors=4096)[0] == 0
    monkeypatch.setattr("vidssl.data.samples.workers_that_fit", lambda workers, size: (0, f"{size} bytes"))
    streams = {name: Stream(Numbers(8), Named(name), batch_size=4, workers=1) for name in ("a", "b")}
    with Loader(streams) as loader:
        next(loader)
    assert caplog.messages == [
        f"{name}: 0 data workers instead of 1: {2 * 4 * 3 * 8 * 8} bytes" for name in ("a", "b")
    ]


class Named(SingleImage):
    """One whose view has another name."""

    def __init__(self, name: str) -> None:
        super().__init__(size=8)
        self.name = name

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, int, int], ...]]:
        return {self.name: super().shapes["image"]}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> dict:
        return {self.name: super().sample(source, index, generator)["image"]}


def test_a_lack_of_room_for_workers_is_logged_and_the_batches_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vidssl.data.samples.workers_that_fit", lambda workers, size: (0, f"{size} bytes"))
    stream = Stream(Numbers(8), SingleImage(size=8), batch_size=4, workers=2)
    with Loader({"image": stream}) as loader:
        assert len(next(loader).indices["image"]) == 4
    assert caplog.messages == [f"image: 0 data workers instead of 2: {4 * 3 * 8 * 8} bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted on Linux")
def test_no_reader_of_videos_starts_workers_that_would_hang(tmp_path: Path) -> None:
    """Ids, features of files and of several processes went around the check, and 20 descriptors hung them."""
    write_clip(tmp_path / "a" / "a.mp4", 4)
    child = multiprocessing.get_context("fork").Process(target=read_with_few_files, args=(tmp_path,))
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
    said = (tmp_path / "said").read_text()
    assert "3 parcels, 0 data workers instead of 2: this process may have 24 files open" in said


def read_with_few_files(folder: Path) -> None:
    os.closerange(3, 1024)  # those of the tests
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    logger, said = logging.getLogger("vidssl"), StringIO()
    logger.addHandler(logging.StreamHandler(said))
    views = SingleClip(num_frames=2, frame_stride=1, size=8)
    samples = InOrder(VideoFolder(root=str(folder)), views)
    read = list(parcels(samples, [[0]] * 3, workers=2, batch_bytes=1, timeout_seconds=60))
    (folder / "said").write_text(f"{len(read)} parcels, {said.getvalue()}")
