"""Files below a folder and below addresses of fsspec, the same from both; what goes wrong is told."""

import errno
import multiprocessing
import os
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import fsspec
import pytest

from vidssl.data.sources.tar import storage as places
from vidssl.data.sources.tar.storage import Address, file_address
from vidssl.errors import UsageError


class BrokenService(Exception):
    """As errors of storage services are: of no common class."""


class Flaky(fsspec.get_filesystem_class("memory")):
    """Fails a number of times, then works."""

    protocol = "flaky"
    failures: ClassVar[list[Exception]] = []

    def __init__(self, **given) -> None:
        super().__init__(**given)
        self.made_in = os.getpid()

    def cat_file(self, path, start=None, end=None, **more):
        assert os.getpid() == self.made_in, "connections do not outlive a fork"
        if Flaky.failures:
            raise Flaky.failures.pop()
        return super().cat_file(path, start, end, **more)

    def open(self, path, mode="rb", **more):
        file = super().open(path, mode, **more)
        if Flaky.failures:

            def fail(size: int) -> bytes:
                raise Flaky.failures.pop()

            file.read = fail
        return file


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(places, "PAUSES_SECONDS", (0.0, 0.0, 0.0))
    Flaky.failures = []


@pytest.fixture(params=["folder", "file", "memory"])
def root(request, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory://{uuid4().hex}"
    else:
        yield f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def write(place: Address, name: str, content: bytes) -> None:
    with place.write(name) as file:
        file.write(content)


def test_what_is_written_is_read(root: str) -> None:
    place = Address(root + "/")
    assert str(place) == root
    write(place, "a/b 1.tar", b"0123456789")
    write(place, "c.tar", b"c")
    write(place, "c.json", b"{}")
    write(place, "a/.d.tar", b"hidden")
    assert place.names(".tar") == ["a/b 1.tar", "c.tar"]
    assert place.read("a/b 1.tar") == b"0123456789"
    assert place.read_range("a/b 1.tar", 3, 4) == b"3456"
    assert place.read_range("a/b 1.tar", 8, 4) == b"89"
    assert place.read_range("a/b 1.tar", 20, 4) == b""
    assert (place.size("a/b 1.tar"), place.exists("c.tar"), place.exists("d.tar")) == (10, True, False)
    with place.open("a/b 1.tar") as file:
        assert (file.read(4), file.read()) == (b"0123", b"456789")
    place.remove("c.tar")
    place.remove("c.tar")
    assert place.names(".tar") == ["a/b 1.tar"]
    assert pickle.loads(pickle.dumps(place)).read("c.json") == b"{}"


def test_a_file_that_is_not_finished_is_not_there(root: str, tmp_path: Path) -> None:
    place = Address(root)
    write(place, "a", b"before")
    for name in ("a", "b"):
        with pytest.raises(KeyError), place.write(name) as file:
            file.write({}["half"])
    assert place.names("") == ["a"]
    assert place.read("a") == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a"] * (place.local is not None)


def test_missing_files_are_told(root: str, tmp_path: Path) -> None:
    place = Address(root)
    for call in (
        lambda: place.read("x"),
        lambda: place.read_range("x", 0, 1),
        lambda: place.size("x"),
        lambda: place.open("x"),
        lambda: place.fetch("x", tmp_path / "there"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.strerror


def test_a_file_is_fetched(root: str, tmp_path: Path) -> None:
    write(Address(root), "a", b"content")
    Address(root).fetch("a", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"content"


def test_a_disk_that_gives_a_little_at_a_time_is_asked_again(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    whole = os.pread
    monkeypatch.setattr(places.os, "pread", lambda file, length, start: whole(file, min(length, 3), start))
    assert Address(str(tmp_path)).read_range("a", 1, 8) == b"12345678"
    assert Address(str(tmp_path)).read_range("a", 5, 8) == b"56789"


def test_few_files_stay_open(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(places, "_OPEN_FILES", 16)
    place = Address(str(tmp_path))
    for number in range(40):
        write(place, str(number), str(number).encode())
    for number in [*range(40), 0]:
        assert place.read_range(str(number), 0, 9) == str(number).encode()
    mine = [
        os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()
    ]
    assert sum(str(tmp_path) in path for path in mine) == 16
    del place
    mine = [
        os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.exists()
    ]
    assert sum(str(tmp_path) in path for path in mine) == 0


def test_a_connection_that_breaks_is_tried_again() -> None:
    place = Address("flaky://data")
    write(place, "a", b"abc")
    Flaky.failures = [BrokenService("503"), ConnectionResetError("reset"), TimeoutError()]
    assert place.read_range("a", 1, 1) == b"b"
    assert Flaky.failures == []


def test_what_stays_broken_is_told_in_words() -> None:
    place = Address("flaky://data")
    write(place, "a", b"abc")
    Flaky.failures = [BrokenService("slow down\nmore")] * 5
    with pytest.raises(OSError, match=r"cannot be reached \(BrokenService: slow down\)") as caught:
        place.read("a")
    assert len(Flaky.failures) == 1
    assert caught.value.filename == "flaky://data/a"


def test_what_trying_again_does_not_mend_is_not_tried_again() -> None:
    place = Address("flaky://data")
    Flaky.failures = [PermissionError("Forbidden")] * 2
    with pytest.raises(PermissionError, match="no permission; check the credentials"):
        place.read("a")
    assert len(Flaky.failures) == 1


def test_a_stream_that_breaks_is_told() -> None:
    place = Address("flaky://data")
    write(place, "a", b"abc")
    Flaky.failures = [BrokenService("reset")]
    with place.open("a") as file, pytest.raises(OSError, match=r"cannot be reached \(BrokenService: reset\)"):
        file.read()


class PastTheEnd(BrokenService):
    status = 416


@pytest.mark.parametrize(
    "error", [PastTheEnd("Range Not Satisfiable"), OSError("(InvalidRange) no such part")]
)
def test_a_part_past_the_end_is_empty(error: Exception) -> None:
    place = Address("flaky://data")
    Flaky.failures = [error]
    assert place.read_range("a", 9, 1) == b""


def test_a_server_without_byte_ranges_is_told(monkeypatch) -> None:
    place = Address("flaky://data")
    write(place, "a", b"abc")
    monkeypatch.setattr(Flaky, "cat_file", lambda self, path, start, end: b"abc")
    with pytest.raises(OSError, match="no byte ranges"):
        place.read_range("a", 1, 1)


def test_what_failed_at_last_fails_at_once_for_a_while(monkeypatch) -> None:
    place = Address("memory://x", timeout_seconds=5.0, tries=3)
    silent, now, asked = TimeoutError("silence"), [0.0], []
    monkeypatch.setattr(places.time, "monotonic", lambda: now[0])

    def ask(system: object, path: str) -> int:
        asked.append(path)
        now[0] += 10.0
        raise silent

    for name in ("a", "b"):  # a server that is silent for one file is not asked for the next
        with pytest.raises(OSError, match=r"cannot be reached .*silence"):
            place._call(name, ask)
    assert (len(asked), now[0]) == (2, 20.0)
    now[0] += 10.0
    with pytest.raises(OSError, match="silence"):
        place._call("b", ask)
    assert len(asked) == 4


def test_a_server_with_an_error_of_its_own_has_not_lost_the_file() -> None:
    broken = FileNotFoundError("http://here/x")
    broken.__cause__ = type("Answer", (Exception,), {"status": 500})("Internal Server Error")
    assert places._told(broken)[0] == errno.EIO
    assert places._told(FileNotFoundError("http://here/x")) == (errno.ENOENT, "there is no such file")


@pytest.mark.parametrize(
    "address",
    ["https://me:hush@host/k400", "s3://key:hush@bucket", "https://host/i.jsonl?X-Amz-Signature=hush&a=1"],
)
def test_credentials_in_an_address_are_refused_and_not_shown(address: str) -> None:
    with pytest.raises(UsageError, match="credentials in an address") as caught:
        places.file_address(f"{address}/index.jsonl")
    assert "hush" not in str(caught.value)


def test_addresses_that_nothing_reads_are_refused(monkeypatch) -> None:
    with pytest.raises(UsageError, match="no kind of address begins with nosuch://; folders, https://"):
        Address("nosuch://a/b")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"s3:// need a package that is not installed \(s3fs\)"):
        Address("s3://bucket/k400")


def test_the_address_of_a_file_is_parted() -> None:
    place, name = file_address("memory://data/more/index.jsonl")
    assert (str(place), name) == ("memory://data/more", "index.jsonl")
    place, name = file_address("index.jsonl")
    assert (place.local, name) == (Path.cwd(), "index.jsonl")
    assert file_address("/index.jsonl")[0].local == Path("/")


def _read(place: Address, connection) -> None:
    connection.send(place.read("a"))


def test_a_fork_makes_connections_of_its_own() -> None:
    place = Address("flaky://forked")
    write(place, "a", b"abc")
    assert place.read("a") == b"abc"
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()
    process = context.Process(target=_read, args=(place, other))
    process.start()
    assert mine.poll(10)
    assert mine.recv() == b"abc"
    process.join(10)


def test_a_service_that_cannot_be_reached_is_no_empty_folder() -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        address = Address(f"http://127.0.0.1:{unused.getsockname()[1]}/shards", tries=1, timeout_seconds=5)
        with pytest.raises(OSError, match="cannot be reached"):
            address.names(".tar")
