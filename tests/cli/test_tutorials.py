"""docs/tutorials: each page from top to bottom, its files written, its commands typed, with tiny recipes."""

import re
import shutil
from pathlib import Path

import pytest
from data_clips import write_clip
from pages import ROOT, blocks, commands, copy_small, lines_of, made_small, words_of

from vidssl.cli.main import main, parsers
from vidssl.errors import UsageError

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/tutorials/*.md")}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(name: str, changes: dict[str, str] | None = None) -> int:
    """Do what a page says, in the working folder; how many commands that were."""
    ran = 0
    for kind, text in blocks(PAGES[name]):
        for pattern, other in (changes or {}).items():
            text = re.sub(pattern, other, text)
        head = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if head:
            path = Path(head[1])
            path.parent.mkdir(exist_ok=True)
            path.write_text(made_small(text))
        for line in lines_of(text) if kind == "bash" else ():
            if line.startswith("vidssl "):
                assert main(words_of(line)[1:]) == 0, line
                ran += 1
    return ran


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_command_of_a_page_can_be_said(name: str) -> None:
    parser, _ = parsers()
    given = [words_of(line) for line in commands(PAGES[name])]
    assert len(given) > 4
    for words in given:
        assert words[0] == "vidssl", words
        _, others = parser.parse_known_args(words[1:])
        assert [word for word in others if word.startswith("-")] == [], words
        for word in words[1:]:
            if re.match(r"(recipes|docs)/", word):
                assert (ROOT / word).is_file(), word


def test_every_command_of_every_page_can_be_said() -> None:
    """Options are those that the command takes, and recipes are there; of headers of recipes, too."""
    parser, _ = parsers()
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    specs = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("evaluation/*.yaml")]
    said = 0
    for page in {*pages, *specs} - {ROOT / "CHANGELOG.md"}:
        text = page.read_text(encoding="utf-8")
        if page.suffix == ".md":
            lines = [
                line for kind, block in blocks(text) if kind in ("bash", "sh") for line in lines_of(block)
            ]
        else:  # "#   vidssl train ...", which goes on behind a backslash
            lines = re.sub(r"\\\n#\s*", "", text).splitlines()
            lines = [line.lstrip("# ") for line in lines if re.match(r"# +vidssl \w", line)]
        for line in lines:
            if not line.startswith("vidssl "):
                continue
            words = words_of(re.split(r" [>|&]|<\(", line)[0])[1:]
            try:
                _, others = parser.parse_known_args(words)
            except (SystemExit, UsageError) as error:
                pytest.fail(f"{page.relative_to(ROOT)}: {line}: {error}")
            assert [word for word in others if word.startswith("-")] == [], (page, line)
            for word in words:
                if re.match(r"recipes/.*\.yaml$", word):
                    assert (ROOT / word).is_file() or "*" in word, (page, line)
            said += 1
    assert said > 200


@pytest.mark.slow
def test_five_minutes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_small(world, PAGES["five_minutes"])
    assert follow("five_minutes") == 8
    assert "trained, against untrained, is" in capsys.readouterr().out
    assert list(Path("runs/bevt/pictures").glob("reconstruction*.png"))


@pytest.mark.slow
def test_parts_of_ones_own(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_small(world, PAGES["add_a_part"])
    shutil.copy(ROOT / "docs/examples/clip_order.py", world / "docs/examples/clip_order.py")
    assert follow("add_a_part") == 10
    said = capsys.readouterr().out
    assert "nearest_mean" in said
    assert Path("runs/clip_order/checkpoints/step-000002.safetensors").is_file()


@pytest.mark.slow
def test_kinetics_on_a_toy_of_it(world: Path) -> None:
    copy_small(world, PAGES["kinetics_eight_gpus"])
    recipe = world / "recipes/paper/videomae_base_k400.yaml"
    text = recipe.read_text()
    for large, small in {
        "size: 224": "size: 32",
        "num_frames: 16, frame_stride: 4": "num_frames: 4, frame_stride: 1",
        "num_heads: 12": "num_heads: 4",
        "[2, 16, 16]": "[2, 8, 8]",
        "batch_size: 4": "batch_size: 8",
        "precision: fp16": "precision: fp32",  # of GPUs alone
    }.items():
        assert large in text, large
        text = text.replace(large, small)
    recipe.write_text(text)
    folder = Path("data/k400/train/abseiling")
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number in range(16):
        write_clip(folder / f"{number:011}_000001_000011.mp4", 12 + number)
        rows.append(f"abseiling,{number:011},1,11,train")
    Path("data/k400/train.csv").write_text("\n".join(rows) + "\n")
    assert follow("kinetics_eight_gpus", {"--seconds 60": "--seconds 1"}) == 4
    assert Path("data/k400/train.manifest.jsonl").is_file()
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_result_is_published(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_small(world, PAGES["publish_a_result"])
    one_seed = {r"seeds: \[0, 1, 2\]": "seeds: [0]", r"(\\\n)? +runs/claim/\w+-seed-[12]": ""}
    assert follow("publish_a_result", one_seed) == 7
    assert Path("claim.html").is_file()
    assert Path("published/README.md").is_file()
    assert r"\toprule" in capsys.readouterr().out
