"""How files are dealt out to shards: each once, neighbours parted, by a seed."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from vidssl.tools.data.shard import Plan, PlannedFile, make_plan

CLASSES = {"class": ("run", "walk")}


def files(count: int = 40, size: int = 10_000) -> list[PlannedFile]:
    return [
        PlannedFile(f"{name}/{n:03d}.mp4", {"class": name}, size, n)
        for name in CLASSES["class"]
        for n in range(count)
    ]


def plan(given: list[PlannedFile], classes: Mapping = CLASSES, **how: object) -> Plan:
    return make_plan(given, classes, **{"seed": 0, "shard_bytes": 100_000, **how})


def test_a_plan_holds_every_file_once_and_numbers_samples_on() -> None:
    made = plan(files())
    assert sorted(f.key for s in made.shards for f in s.files) == sorted(f.key for f in files())
    assert [s.name for s in made.shards[:2]] == ["00000.tar", "00001.tar"]
    ends = [s.first + len(s.files) for s in made.shards]
    assert [s.first for s in made.shards] == [0, *ends[:-1]]
    assert (made.num_files, made.bytes) == (80, 800_000)
    assert {len(s.files) for s in made.shards[:-1]} == {8}  # headers count too


def test_a_plan_parts_neighbours_and_the_seed_decides_how() -> None:
    order = [[f.key for f in s.files] for s in plan(files()).shards]
    assert all({key[:3] for key in keys} == {"run", "wal"} for keys in order[:-1])
    assert order == [[f.key for f in s.files] for s in plan(files()[::-1]).shards]
    assert order != [[f.key for f in s.files] for s in plan(files(), seed=1).shards]


def test_a_large_file_has_a_shard_of_its_own_and_a_missing_one_takes_no_room() -> None:
    sizes = [10, 10**6, -1, 10, 10**6]
    made = plan([PlannedFile(f"{n}.mp4", {}, size, 0) for n, size in enumerate(sizes)], {})
    for one in made.shards:
        assert len(one.files) == 1 or sum(f.bytes for f in one.files) < 100_000
    assert len(made.shards) >= 3
    assert plan([], {}).shards == ()
    with pytest.raises(ValueError, match="shard_bytes must be at least 1"):
        plan(files(), shard_bytes=0)


def test_the_digest_of_a_plan_follows_from_all_that_shards_hold() -> None:
    given = files()
    assert plan(given).digest == plan(given[::-1]).digest
    first = given[0]
    others = [
        plan(given, seed=1),
        plan(given, shard_bytes=100_001),
        plan(given, images=True),
        plan(given, {"class": ("walk", "run")}),
        plan(given[1:]),
        *(
            plan([replace(first, **change), *given[1:]])
            for change in ({"bytes": 1}, {"mtime_ns": 9}, {"key": "x.mp4"}, {"labels": {"class": "walk"}})
        ),
    ]
    assert len({plan(given).digest, *(other.digest for other in others)}) == len(others) + 1
