"""``vidssl convert``: what it reads, what it writes and what it refuses."""

import hashlib
import os
import pickle
import random
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bevt_reference import load
from dall_e_release import save_release
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidssl.build import build
from vidssl.cli import main as cli
from vidssl.errors import UsageError
from vidssl.weights.published_keys import networks_in
from vidssl.weights.torch_files import read_torch_file

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def golden() -> State:
    return load("dvae")


def part(golden: State, name: str) -> State:
    """The release's own names, ``blocks.*``."""
    return {key.removeprefix(f"{name}."): x for key, x in golden.items() if key.startswith(f"{name}.")}


def convert(*words: str) -> None:
    assert cli.main(["convert", *words]) == 0


def expected(golden: State) -> State:
    return {f"{name}.{key}": x for name, net in networks_in(golden).items() for key, x in net.items()}


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_modules_are_read_without_their_classes(golden: State, legacy: bool) -> None:
    for name in ("encoder", "decoder"):
        save_release(Path(f"{name}.pkl"), name, part(golden, name), legacy=legacy)
    assert "dall_e" not in sys.modules
    convert("encoder.pkl", "decoder.pkl", "out.safetensors")
    assert "dall_e" not in sys.modules
    assert same(load_file("out.safetensors"), expected(golden))


@pytest.fixture(scope="module")
def released(golden: State, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the release's two files are converted to."""
    folder = tmp_path_factory.mktemp("release")
    files = [folder / f"{name}.pkl" for name in ("encoder", "decoder")]
    for file in files:
        save_release(file, file.stem, part(golden, file.stem))
    convert(*map(str, files), str(folder / "release.safetensors"))
    return (folder / "release.safetensors").read_bytes()


def save_plain(golden: State) -> list[str]:
    torch.save(part(golden, "encoder"), "encoder.pt")
    torch.save(part(golden, "decoder"), "decoder.pt")
    return ["encoder.pt", "decoder.pt"]


def save_old_plain(golden: State) -> list[str]:
    torch.save(golden, "both.pth", _use_new_zipfile_serialization=False)
    return ["both.pth"]


def save_checkpoint(golden: State) -> list[str]:
    """The frozen networks inside a training checkpoint, as in BEVT's."""
    inside = {f"cls_head.vae_{key}": torch.nn.Parameter(x) for key, x in golden.items() if "." in key}
    torch.save(
        {"meta": {"epoch": 3, "names": ["a"]}, "state_dict": {"norm.weight": torch.ones(3), **inside}},
        "c.pth",
    )
    return ["c.pth"]


def save_safe(golden: State) -> list[str]:
    save_file(golden, "both.safetensors")
    return ["both.safetensors"]


def save_ours(golden: State) -> list[str]:
    save_file(expected(golden), "again.safetensors")
    return ["again.safetensors"]


@pytest.mark.parametrize("save", [save_plain, save_old_plain, save_checkpoint, save_safe, save_ours])
def test_every_kind_of_file_gives_the_same_bytes(
    golden: State, released: bytes, save: Callable[[State], list[str]]
) -> None:
    convert(*save(golden), "other.safetensors")
    assert Path("other.safetensors").read_bytes() == released


def test_report_names_what_was_found_and_its_yaml_loads(
    golden: State, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tokenizers/weights").mkdir(parents=True)
    for name in ("encoder", "decoder"):
        save_release(Path(f"{name}.pkl"), name, part(golden, name))
    convert("encoder.pkl", "decoder.pkl", "tokenizers/weights/toy.safetensors")
    said = capsys.readouterr().out
    digest = hashlib.sha256(Path("encoder.pkl").read_bytes()).hexdigest()
    assert f"encoder.pkl, sha256 {digest}; nothing in it was executed" in said
    assert "encoder        74 tensors, 39,356 numbers, from (8, 3, 7, 7) to (24, 64, 1, 1)" in said
    assert "vocabulary     24 codes" in said
    assert "sizes          NOT THE PUBLISHED ONES: {'vocab_size': 24, 'width': 8}" in said
    assert "finite logits" in said
    assert "not verified" in said
    lines = said[said.index("type: dalle") :]
    assert lines.endswith(
        f"sha256: {hashlib.sha256(Path('tokenizers/weights/toy.safetensors').read_bytes()).hexdigest()}\n"
    )
    Path("tokenizers/toy.yaml").write_text(lines + "source: a test\nlicence: MIT\n")
    tokenizer = build.tokenizer("toy")
    ids = tokenizer.encode(golden["pixels_u8"][:, :, None].float() / 255)
    assert torch.equal(ids[:, 0], golden["tokens"])


def test_encoder_alone_is_enough_for_ids(golden: State, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(part(golden, "encoder"), "encoder.pt")
    convert("encoder.pt", "out.safetensors")
    assert "with_decoder: false" in capsys.readouterr().out
    assert all(key.startswith("encoder.") for key in load_file("out.safetensors"))


class Hostile:
    """Pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


HOSTILE: dict[str, tuple[object, str]] = {
    "system": (Hostile(os.system, "touch owned"), rf"{os.system.__module__}\.system"),
    "eval": (Hostile(eval, "open('owned', 'w')"), r"builtins\.eval"),
    "getattr": (Hostile(getattr, Hostile(__import__, "os"), "system"), r"builtins\.getattr"),
    "open": (Hostile(open, "owned", "w"), r"(io|_io|builtins)\.open"),
    "torch_load": (Hostile(torch.load, "owned.pt"), r"torch\.serialization\.load"),
    "load_from_bytes": (Hostile(torch.storage._load_from_bytes, b"x"), r"torch\.storage\._load_from_bytes"),
    "pickle_loads": (Hostile(pickle.loads, b"x"), r"_?pickle\.loads"),
    "in_a_state_dict": ({"blocks.input.w": Hostile(os.remove, "kept")}, rf"{os.remove.__module__}\.remove"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])  # the others name what they call by the instructions of these
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_the_name_of_what_they_call(
    capsys: pytest.CaptureFixture[str], name: str, protocol: int
) -> None:
    payload, called = HOSTILE[name]
    Path("kept").touch()
    before = sorted(os.listdir())
    content = pickle.dumps(payload, protocol)
    Path("plain.pkl").write_bytes(content)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    Path("legacy.pkl").write_bytes(magic + pickle.dumps({"little_endian": True}, 2) + content)
    with zipfile.ZipFile("zip.pkl", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    for file in ("plain.pkl", "legacy.pkl", "zip.pkl"):
        assert cli.main(["convert", file, "out.safetensors"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"vidssl: {file}: wants to call ")
        assert re.search(f"wants to call {called},", said), said
        assert len(said.splitlines()) == 1
    assert sorted(os.listdir()) == sorted([*before, "legacy.pkl", "plain.pkl", "zip.pkl"])


# Programs that no pickler writes, in the format's own instructions.
RAW: dict[str, tuple[bytes, str]] = {
    "inst": (b"(S'touch owned'\nios\nsystem\n.", "wants to call os.system"),
    "dotted": (b"\x80\x04\x8c\x08builtins\x8c\x0dgetattr.x.yz.\x93.", "wants to call builtins.getattr.x.yz."),
    "inside_ours": (
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        "collections.OrderedDict.",
    ),
    "set_attribute": (
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        "attributes of collections",
    ),
    "call_a_number": (b"\x80\x02K\x01)R.", "wants to call a int"),
    "object_of_a_function": (
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "an object of collections.OrderedDict",
    ),
    "items_of_a_name": (
        b"\x80\x02ctorch\nSize\nK\x01K\x02s.",
        "no pickle of weights, or cut short (Type",
    ),
    "append_to_a_name": (
        b"\x80\x02ctorch\nSize\nK\x01a.",
        "no pickle of weights, or cut short (Attr",
    ),
    "extension": (b"\x80\x02\x82\x01.", "uses the instruction EXT1"),
    "text_persid": (b"Pos.system\n.", "uses the instruction PERSID"),
    "cut_short": (pickle.dumps({"a": 1}, 2)[:-3], "no pickle of weights"),
    "empty_stack": (b"\x80\x02R.", "no pickle of weights"),
    "stop_in_a_mark": (b"\x80\x02K\x01(K\x02K\x03.", "not a file that torch.save wrote"),
    "huge_text": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "no pickle of weights"),
    "wrong_storage": (b"\x80\x02X\x01\x00\x00\x00aQ.", "no pickle of weights"),
    "not_a_pickle": (b"<html>404 not found</html>", "no pickle of weights"),
    "a_number": (b"\x80\x02K\x01.", "not a file that torch.save wrote"),
}


@pytest.mark.parametrize("name", RAW)
def test_programs_that_no_pickler_writes_are_refused_in_words(name: str) -> None:
    content, message = RAW[name]
    Path("x.pkl").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_torch_file(Path("x.pkl"))
    assert str(caught.value).startswith("x.pkl: ")
    assert message in str(caught.value)
    assert os.listdir() == ["x.pkl"]


class Window:
    """Pickles as a tensor of any shape and strides over twelve numbers."""

    def __init__(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.place = (offset, shape, strides)

    def __reduce__(self) -> tuple[object, ...]:
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.arange(12.0).untyped_storage(), dtype=torch.float32, _internal=True
        )
        return torch._utils._rebuild_tensor_v2, (storage, *self.place, False, OrderedDict())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_is_the_window_on_its_storage_that_it_says(legacy: bool) -> None:
    torch.save({"x": Window(1, (2, 3), (1, 2))}, "x.pt", _use_new_zipfile_serialization=not legacy)
    assert read_torch_file(Path("x.pt"))["x"].tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    "window", [(0, (3, 4), (4, 2)), (9, (4,), (1,)), (0, (10**9,), (0,)), (0, (-1,), (1,))]
)
def test_a_window_beyond_its_storage_is_refused(window: tuple[int, tuple[int, ...], tuple[int, ...]]) -> None:
    torch.save({"x": Window(*window)}, "x.pt")
    with pytest.raises(UsageError, match=r"beyond its storage|expected a count, got -1"):
        read_torch_file(Path("x.pt"))


def test_a_loop_has_an_end() -> None:
    loop: dict[str, object] = {"x": torch.ones(2)}
    loop["again"] = loop
    torch.save(loop, "x.pt")
    assert list(read_torch_file(Path("x.pt"))) == ["x"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_every_kind_of_number_is_read(kind: torch.dtype, legacy: bool) -> None:
    tensors = {"x": torch.arange(6).view(2, 3).to(kind), "none": torch.zeros(0, 3, dtype=kind)}
    torch.save(tensors, "x.pt", _use_new_zipfile_serialization=not legacy)
    assert same(read_torch_file(Path("x.pt")), tensors)


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # of texts that are noise
@pytest.mark.parametrize("legacy", [False, True])
def test_files_with_any_byte_changed_are_read_or_refused_in_words(legacy: bool) -> None:
    generator = random.Random(0)
    tensors = OrderedDict(
        a=torch.nn.Parameter(torch.ones(2, 3)), b={"c": torch.zeros(3), "d": [1, "x", {1, 2}]}
    )
    torch.save(tensors, "whole.pt", _use_new_zipfile_serialization=not legacy)
    whole, said = Path("whole.pt").read_bytes(), []
    for _ in range(200):
        content, at = bytearray(whole), generator.randrange(len(whole))
        content[at : at + generator.randrange(3)] = generator.randbytes(generator.randrange(3))
        Path("changed.pt").write_bytes(content)
        try:
            read_torch_file(Path("changed.pt"))
        except UsageError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all(message.startswith("changed.pt: ") for message in said)


def test_damaged_files_are_named(golden: State) -> None:
    for legacy in (False, True):
        save_release(Path("whole.pkl"), "encoder", part(golden, "encoder"), legacy=legacy)
        content = Path("whole.pkl").read_bytes()
        for length in (0, 100, len(content) // 2, len(content) - 30):
            Path("cut.pkl").write_bytes(content[:length])
            with pytest.raises(UsageError, match=r"^cut\.pkl: "):
                read_torch_file(Path("cut.pkl"))
    with pytest.raises(UsageError, match=r"^none\.pkl: No such file"):
        read_torch_file(Path("none.pkl"))
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UsageError, match=r"no data\.pkl"):
        read_torch_file(Path("other.zip"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.output.conv.w"), "its first or last layer is missing"),
        (
            lambda s: s.pop("blocks.group_3.block_2.res_path.conv_2.b"),
            "missing 1 (encoder.groups.2.1.path.1.bias)",
        ),
        (lambda s: s.update({"blocks.group_9.block_1.id_path.w": torch.ones(2)}), "left over 1"),
        (lambda s: s.update({"blocks.group_1.block_1.res_path.conv_1.b": torch.ones(3)}), "is (3,)"),
        (lambda s: s["blocks.group_1.block_1.res_path.conv_1.b"].fill_(float("nan")), "not finite"),
        (lambda s: s.clear() or s.update(x=torch.ones(1)), "neither encoder nor decoder of the DALL-E dVAE"),
    ],
)
def test_tensors_of_something_else_are_refused_and_nothing_is_written(
    golden: State, capsys: pytest.CaptureFixture[str], change: Callable[[State], object], message: str
) -> None:
    state = {key: x.clone() for key, x in part(golden, "encoder").items()}
    change(state)
    torch.save(state, "x.pt")
    assert cli.main(["convert", "x.pt", "out.safetensors"]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir() == ["x.pt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "convert takes files and what to write"),
        (["e.pt"], "convert takes files and what to write"),
        (["e.pt", "out.pt"], "out.pt: the last file is the one to write"),
        (["e.pt", "taken.safetensors"], "taken.safetensors: exists already"),
        (["e.pt", "e.pt", "out.safetensors"], "e.pt: holds the encoder, and so does a file before it"),
        (["d.pt", "out.safetensors"], "no encoder in d.pt"),
        (["e.pt", "nowhere/out.safetensors"], "cannot write nowhere"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    golden: State, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    torch.save(part(golden, "encoder"), "e.pt")
    torch.save(part(golden, "decoder"), "d.pt")
    Path("taken.safetensors").write_text("mine")
    assert cli.main(["convert", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vidssl: {message}")
    assert len(said.splitlines()) == 1
    assert Path("taken.safetensors").read_text() == "mine"
