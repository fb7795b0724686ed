"""Scores networks under the same protocols and prints a Markdown table for each data set and protocol.

  python docs/measure_comparison.py runs/bevt runs/svt runs/vimpac pixels untrained:torchvision:swin3d_t \
      --data svt --data vimpac --protocol knn --protocol linear
  python docs/measure_comparison.py runs/bevt runs/svt runs/vimpac pixels untrained:torchvision:swin3d_t \
      --clips VIDEOS

Networks are named as for 'vidssl eval', with their words: "torchvision:swin3d_t weights=swin.pth". A run, or
a network with weights, stands beside the same network untrained. With --data the labelled videos and views
are those of a recipe. With --clips they are videos of a folder that holds a folder for each class: of each
class one half is learned from and the other tested on, by the nearest neighbour, then the other way round,
and both are counted together.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vidssl.config.strict_yaml import dump_flow
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import eval_words, evaluate_run, find_checkpoint
from vidssl.evaluate.networks import ExternalNetwork, is_external
from vidssl.evaluate.score_file import ScoreFile, read_scores
from vidssl.evaluators.statistics import wilson_interval

CLIP_VIEWS = {"type": "uniform_clips", "num_clips": 4, "num_frames": 8, "frame_stride": 4, "size": 48}
VIDEOS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg")


@dataclass(frozen=True)
class Cell:
    """How many videos were classified right, of how many; and how many the commonest class would have."""

    right: int
    videos: int
    by_chance: int

    def shown(self) -> str:
        low, high = wilson_interval(self.right, self.videos)
        return f"{100 * self.right / self.videos:.1f} ({100 * low:.0f} to {100 * high:.0f})"


Rows = dict[str, dict[str, Cell]]  # network -> label and setting -> its cell


def scored(network: str, protocol: str, words: Sequence[str], console: Console) -> ScoreFile:
    """What 'vidssl eval' finds."""
    target, *own = network.split()
    evaluate_run(target, [protocol], [*own, *words], console)
    name = next(word for word in words if word.startswith("name=")).removeprefix("name=")
    if is_external(target):
        sorted_words = eval_words(own)
        request = ExternalNetwork(target, sorted_words.weights, sorted_words.network)
        return read_scores(request.folder.scores / f"{name}-step-000000.json")
    checkpoint = find_checkpoint(target)
    return read_scores(checkpoint.parent.parent / "scores" / f"{name}-{checkpoint.stem}.json")


def cells(file: ScoreFile) -> Rows:
    """The rows of a file: one for each of its networks."""
    rows: Rows = {}
    for column, scores in file.scores.items():
        name = file.checkpoint.removesuffix(f"/checkpoints/step-{file.step:06d}.safetensors")
        row = rows.setdefault(f"{name}, {column}", {})
        for score in scores:
            what = ", ".join(word for word in (score.label, score.setting) if word)
            count = score.num_test
            chance = round((score.chance or 0.0) * count)
            row[what] = Cell(round(score.top1 * count), count, chance)
    return rows


def added(one: Rows, other: Rows) -> Rows:
    """Both counted together."""
    return {
        network: {
            what: Cell(cell.right + more.right, cell.videos + more.videos, cell.by_chance + more.by_chance)
            for what, cell in row.items()
            for more in (other[network][what],)
        }
        for network, row in one.items()
    }


def print_table(title: str, rows: Rows) -> None:
    """A row for each network, a column for each label."""
    first = next(iter(rows.values()))
    print(
        f"\n{title}: top-1 in %, 95 % interval in brackets, {next(iter(first.values())).videos} test videos\n"
    )
    print("| network | " + " | ".join(first) + " |")
    print("| --- | " + " | ".join("---" for _ in first) + " |")
    for network, row in rows.items():
        print(f"| {network} | " + " | ".join(row[what].shown() for what in first) + " |")
    chances = (f"{100 * cell.by_chance / cell.videos:.1f}" for cell in first.values())
    print("| largest class | " + " | ".join(chances) + " |", flush=True)


def halves(folder: Path, left_out: Sequence[str], out: Path) -> list[Path]:
    """Two lists of the videos of a folder, of each class one after the other in turn."""
    lines: list[list[str]] = [["path,class"], ["path,class"]]
    for below in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in left_out):
        videos = sorted(path for path in below.iterdir() if path.suffix in VIDEOS)
        if len(videos) > 1:  # a single video could not be both learned and found
            for place, path in enumerate(videos):
                lines[place % 2].append(f"{path.relative_to(folder)},{below.name}")
    out.mkdir(parents=True, exist_ok=True)
    lists = [out / "half_a.csv", out / "half_b.csv"]
    for path, text in zip(lists, lines, strict=True):
        path.write_text("\n".join(text) + "\n")
    return lists


def clip_words(folder: Path, learned: Path, tested: Path) -> list[str]:
    """Overrides of the protocol 'knn' for one half against the other."""
    source = {"type": "video_list", "root": str(folder), "list": str(learned), "test_list": str(tested)}
    data = {"train": {**source, "part": "train"}, "test": {**source, "part": "test"}, "views": CLIP_VIEWS}
    return [f"data={dump_flow(data)}", "evaluator.k=1", f"name=clips-{tested.stem}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("networks", nargs="+", help="as for 'vidssl eval'")
    parser.add_argument("--data", action="append", default=[], help="recipe whose labelled videos are meant")
    parser.add_argument(
        "--protocol", action="append", help="of the tables on --data; default: knn and linear"
    )
    parser.add_argument("--clips", type=Path, help="folder with a folder of videos for each class")
    parser.add_argument(
        "--leave-out", action="append", default=[], help="folders of --clips that are no class"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="further key=value, e.g. data.test.limit=100"
    )
    options = parser.parse_args()
    if not options.data and options.clips is None:
        parser.error("name videos: --data svt, or --clips FOLDER")
    console = Console(file=sys.stderr)
    try:
        for data in options.data:
            for protocol in options.protocol or ("knn", "linear"):
                words = [f"data={data}", f"name={protocol}-{Path(data).stem}", *options.set]
                rows: Rows = {}
                for network in options.networks:
                    rows |= cells(scored(network, protocol, words, console))
                print_table(f"{protocol}, videos of {data}", rows)
        if options.clips is not None:
            lists = halves(options.clips, options.leave_out, Path("runs") / "clips")
            rows = {}
            for network in options.networks:
                one, other = (
                    cells(scored(network, "knn", clip_words(options.clips, *pair), console))
                    for pair in (lists, lists[::-1])
                )
                rows |= added(one, other)
            print_table(f"nearest neighbour, videos of {options.clips}", rows)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
