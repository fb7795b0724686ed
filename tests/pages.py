"""Commands of a page, and specs made so small that a test can run them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
SMALL = {
    r"type: moving_digits,": "type: moving_digits, num_videos: 24,",
    r"limit: \d+": "limit: 20",
    r"embed_dim: \d+": "embed_dim: 16",
    r"depth: \d+": "depth: 1",
    r"batch_size: \d+": "batch_size: 4",
    r"negatives: \d+": "negatives: 3",
    r"(?<!warmup_)(?<!every_)steps: \d+": "steps: 2",
    r"warmup_steps: \d+": "warmup_steps: 0",
    r"test_batches: \d+": "test_batches: 1",
    r"workers: \d+": "workers: 0",
    r"penalties: \[.*\]": "penalties: [10.0], max_iterations: 20",
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Kind and text of each block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def lines_of(block: str) -> list[str]:
    """The commands of a block of bash, each on one line."""
    return block.replace("\\\n", " ").splitlines()


def commands(page: str) -> list[str]:
    """Those of all blocks of bash."""
    return [line for kind, text in blocks(page) if kind == "bash" for line in lines_of(text)]


def words_of(command: str) -> list[str]:
    """What ``vidssl`` is given by a command, whatever starts it."""
    return shlex.split(re.sub(r"^torchrun .* -m vidssl", "vidssl", command), comments=True)


def made_small(text: str) -> str:
    for pattern, small in SMALL.items():
        text = re.sub(pattern, small, text)
    return text


def copy_small(folder: Path, page: str) -> None:
    """The recipes that a page names, and the linear protocol, made small, below a folder."""
    recipes = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("docs/examples/*.yaml")]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix() for path in recipes}
    wanted = [path for path, name in names.items() if name.removeprefix("recipes/") in page]
    for path in (*wanted, ROOT / "evaluation" / "linear.yaml"):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(made_small(path.read_text(encoding="utf-8")), encoding="utf-8")
