"""Commands on videos of one's own and on tokenizers: data and those below it, init, tokenize, convert."""

import argparse
import math
from pathlib import Path
from typing import Any, Literal

from vidssl.cli import operands
from vidssl.errors import UsageError

_VIDEOS = "videos in folders, a text or CSV list of them, or what 'data check' wrote (.jsonl)"
_EXIT_CODE = "Exit code 0: all are {done}; 1: some {flaw}; 2: it was not finished"


def add_commands(commands: "operands.Commands[operands.Parser]") -> None:
    data = commands.add_parser("data", help="scan, prepare and pack the videos of a data set")
    below = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (_add_list, _add_split, _add_check, _add_prepare, _add_shard, _add_index):
        command(below)
    add_init(commands)


def add_init(commands: "operands.Commands[operands.Parser]") -> None:
    init = operands.add(
        commands,
        "init",
        _init,
        "write a recipe for videos of your own and this machine, each value with its reason",
        ("RECIPE.yaml", "the file to write; where there are several objectives, the grid of their recipes"),
    )
    init.add_argument(
        "--videos",
        type=Path,
        required=True,
        metavar="LIST",
        help="what to train on: NAME.train.csv of 'data split', beside its other parts; a list or folder",
    )
    init.add_argument(
        "--objective",
        metavar="NAME[,NAME]",
        help="svt (default), bevt, vimpac, videomae; of several a recipe each, and a grid that compares them",
    )
    init.add_argument(
        "--from",
        dest="start",
        metavar="WEIGHTS",
        help="go on from a run, or a released file of V-JEPA 2 or VideoMAE, at a low rate (docs/adapting.md)",
    )
    time = init.add_mutually_exclusive_group()
    time.add_argument(
        "--minutes", type=operands.positive, metavar="N", help="of a run on this machine; 10 without --gpu"
    )
    time.add_argument("--gpu", action="store_true", help="sizes for a GPU, whether or not there is one here")
    init.add_argument(
        "--tokenizer", metavar="NAME", help="name, file or run, instead of one trained on these videos"
    )
    init.add_argument(
        "--tokenizer-steps", type=operands.at_least(1), metavar="N", help="to train one for; default: 500"
    )
    operands.add_trust(init)


def _init(words: list[str], **options: Any) -> int:
    path = operands.only(
        words, "init takes the recipe to write", "vidssl init my.yaml --videos videos.train.csv"
    )
    from vidssl.tools.init.init import write_recipe

    return write_recipe(Path(path), options.pop("videos"), **options)


def _add_shared(parser: operands.Parser, each: str, bad: str, *, root: str | None = None) -> None:
    """Options that several of them have."""
    if root is not None:
        parser.add_argument(
            "--root", type=Path, metavar="FOLDER", help=f"of the paths in a {root}; default: its own"
        )
    parser.add_argument(
        "--processes", type=operands.at_least(1), metavar="N", help=f"{each} at a time; default: one a core"
    )
    parser.add_argument("--all", dest="show_all", action="store_true", help=f"name all {bad} files, not 20")


def _add_list(commands: "operands.Commands[operands.Parser]") -> None:
    making = operands.add(
        commands,
        "list",
        _list,
        "make a list of videos, with labels from folders, paths or annotations",
        ("FOLDER", "videos, in a folder for each class where neither option says what their labels are"),
    )
    making.add_argument(
        "--pattern", help="of paths, their fields being labels: '{camera}_{action}_{take}.mp4'"
    )
    making.add_argument(
        "--annotations", type=Path, metavar="CSV", help="a row for each video or segment, with a header"
    )
    making.add_argument("--labels", type=_names, metavar="A,B", help="these fields or columns alone")
    making.add_argument("--group", metavar="NAME", help="field or column of what no split may part")
    making.add_argument(
        "--column",
        dest="columns",
        action="append",
        type=_pair,
        metavar="NAME=MEANING",
        help="of annotations: path, start, end, start_frame, end_frame or a label's name; may be repeated",
    )
    making.add_argument("--unit", choices=("seconds", "frames"), help="of start and end")
    making.add_argument(
        "--join", action="store_true", help="several rows of a video: their classes as run|jump"
    )
    making.add_argument("--out", type=Path, metavar="FILE", help="the list; default: NAME.csv beside it")
    making.add_argument("--all", dest="show_all", action="store_true", help="name all that is left out")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _pair(text: str) -> tuple[str, str]:
    name, equals, meaning = text.partition("=")
    if not (name and equals and meaning):
        raise argparse.ArgumentTypeError(f"expected NAME=MEANING, got {text}")
    return name, meaning


def _list(words: list[str], *, columns: list[tuple[str, str]] | None = None, **options: Any) -> int:
    path = operands.only(words, "data list takes one folder", "vidssl data list videos/")
    from vidssl.tools.collection.make_list import make_list

    return make_list(Path(path), columns=dict(columns or ()), **options)


def _add_split(commands: "operands.Commands[operands.Parser]") -> None:
    parting = operands.add(
        commands,
        "split",
        _split,
        "part a list for training and testing; groups and near-duplicates stay together",
        ("LIST", "as 'data list' writes it, or any that sources read"),
    )
    kinds = parting.add_mutually_exclusive_group()
    kinds.add_argument(
        "--fractions",
        type=_numbers,
        metavar="A,B[,C]",
        help="train, (validation,) test; default 0.7,0.15,0.15",
    )
    kinds.add_argument(
        "--folds", type=operands.at_least(2), metavar="K", help="each video is tested on in one of K"
    )
    kinds.add_argument("--leave-one-group-out", action="store_true", help="a fold for each group")
    parting.add_argument("--seed", type=operands.at_least(0), metavar="N", help="default 0")
    parting.add_argument(
        "--stratify", metavar="LABEL", help="whose classes are shared out; default the first"
    )
    parting.add_argument(
        "--no-duplicates", action="store_true", help="do not look for near-duplicates: no video is opened"
    )
    parting.add_argument(
        "--root", type=Path, metavar="FOLDER", help="of the paths; default: as the list says"
    )
    parting.add_argument("--out", type=Path, metavar="FOLDER", help="of the parts; default: the list's own")
    parting.add_argument("--all", dest="show_all", action="store_true", help="name all near-duplicates")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(
        operands.number(each, float, lambda x: 0 < x < 1, "fractions such as 0.7,0.3")
        for each in text.split(",")
    )


def _split(words: list[str], *, no_duplicates: bool = False, **options: Any) -> int:
    path = operands.only(words, "data split takes one list", "vidssl data split videos.csv")
    from vidssl.tools.collection.split import Rule, split_list

    rule = operands.taken(options, "fractions", "folds", "leave_one_group_out", "seed", "stratify")
    return split_list(Path(path), Rule(**rule, duplicates=not no_duplicates), **options)


def _add_check(commands: "operands.Commands[operands.Parser]") -> None:
    check = operands.add(
        commands,
        "check",
        _check,
        "look at every video once; write what was found into a manifest",
        (
            "FOLDER_OR_LIST",
            "videos in folders, or a text or CSV list of them. Exit code 0: all is well; 1: some files are "
            "bad or videos leak from test to train; 2: nothing was done",
        ),
    )
    check.add_argument(
        "--test-list", type=Path, metavar="LIST", help="held-out videos that must not be in the list"
    )
    check.add_argument(
        "--against",
        type=Path,
        action="append",
        metavar="MANIFEST",
        help="other data that must have no video in common with this; may be repeated",
    )
    check.add_argument(
        "--out", type=Path, metavar="FILE", help="the manifest; default: NAME.manifest.jsonl beside it"
    )
    check.add_argument(
        "--test-share", type=_fraction, metavar="SHARE", help="as sources have it; default: 0.25"
    )
    check.add_argument(
        "--sheets", type=Path, metavar="FOLDER", help="for a contact sheet (PNG) of each class"
    )
    _add_shared(check, "files", "bad", root="list")
    limits = check.add_argument_group("limits", "a file past one of them is unreadable")
    limits.add_argument(
        "--max-pixels", type=operands.at_least(1), metavar="N", help="of a frame; default: 36000000"
    )
    limits.add_argument(
        "--max-frames", type=operands.at_least(1), metavar="N", help="of a file; default: 1000000"
    )
    limits.add_argument(
        "--max-seconds", type=operands.positive, metavar="S", help="for decoding a file once; default: 300"
    )


def _fraction(text: str) -> float:
    return operands.number(text, float, lambda x: 0 < x < 1, "a number between 0 and 1")


def _check(words: list[str], **options: Any) -> int:
    path = operands.only(words, "data check takes one folder or list", "vidssl data check videos/")
    from vidssl.data.decode.content import Limits
    from vidssl.tools.data.check import check_data

    limits = Limits(**operands.taken(options, "max_pixels", "max_frames", "max_seconds"))
    return check_data(Path(path), limits=limits, **options)


def _add_prepare(commands: "operands.Commands[operands.Parser]") -> None:
    code = _EXIT_CODE.format(done="prepared", flaw="were skipped")
    prepare = operands.add(
        commands,
        "prepare",
        _prepare,
        "make videos small and quick to decode, as files of their own or as JPEG shards",
        ("FOLDER_OR_LIST_OR_MANIFEST", f"{_VIDEOS}. {code}"),
    )
    prepare.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="of the results; the originals stay"
    )
    prepare.add_argument("--short-side", type=int, metavar="PIXELS", help="never enlarged; default: 256")
    prepare.add_argument("--gop", type=int, metavar="FRAMES", help="between keyframes; default: 12")
    prepare.add_argument("--crf", type=int, metavar="CRF", help="quality of H.264, 0 to 51; default: 18")
    prepare.add_argument(
        "--cut", action="store_true", help="make each segment of a list a file of its own, and a list of them"
    )
    prepare.add_argument("--jpeg-shards", action="store_true", help="frames as JPEGs in a few large files")
    prepare.add_argument("--quality", type=int, metavar="Q", help="of the JPEGs, 1 to 100; default: 90")
    prepare.add_argument(
        "--max-difference",
        type=float,
        metavar="LEVELS",
        help="mean difference to the source, of 255, that a sampled frame may have; default: 8",
    )
    _add_shared(prepare, "files", "skipped", root="list or manifest")


def _prepare(words: list[str], *, out: Path, jpeg_shards: bool = False, **options: Any) -> int:
    path = operands.only(
        words, "data prepare takes one folder, list or manifest", "vidssl data prepare videos/ --out prepared"
    )
    for name in ("gop", "crf", "cut") if jpeg_shards else ("quality",):
        if name in options:
            raise UsageError(f"--{name} goes with{'out' * jpeg_shards} --jpeg-shards")
    from vidssl.tools.data.encode import H264, Jpegs
    from vidssl.tools.data.prepare import prepare_data

    form = operands.taken(options, "short_side", "gop", "crf", "quality", "max_difference")
    return prepare_data(Path(path), out, (Jpegs if jpeg_shards else H264)(**form), **options)


def _add_shard(commands: "operands.Commands[operands.Parser]") -> None:
    code = _EXIT_CODE.format(done="packed", flaw="are bad and left out")
    shard = operands.add(
        commands,
        "shard",
        _shard,
        "pack videos or images into tar shards, with an index",
        ("FOLDER_OR_LIST_OR_MANIFEST", f"{_VIDEOS}. {code}"),
    )
    shard.add_argument(
        "--out",
        required=True,
        metavar="ADDRESS",
        help="a folder, or an address of fsspec's (s3://bucket/k400)",
    )
    shard.add_argument("--images", action="store_true", help="pack the images of a folder, not its videos")
    shard.add_argument(
        "--shard-mb",
        dest="shard_bytes",
        type=lambda text: operands.at_least(1)(text) * 10**6,
        metavar="MB",
        help="of a shard; default: 256",
    )
    shard.add_argument("--seed", type=int, metavar="N", help="of the order of files; default: 0")
    _add_shared(shard, "files", "bad", root="list or manifest")


def _shard(words: list[str], *, out: str, **options: Any) -> int:
    path = operands.only(
        words, "data shard takes one folder, list or manifest", "vidssl data shard videos/ --out shards"
    )
    from vidssl.tools.data.shard import shard_data

    return shard_data(Path(path), out, **options)


def _add_index(commands: "operands.Commands[operands.Parser]") -> None:
    index = operands.add(
        commands,
        "index",
        _index,
        "look through tar shards that others made; write an index",
        (
            "ADDRESS",
            "of tar shards in the convention of WebDataset: a folder, or an address of fsspec's. Exit code "
            "0: all is well; 1: some files or shards are bad; 2: it was not finished",
        ),
    )
    index.add_argument(
        "--out", type=Path, metavar="FILE", help="the index; default: index.jsonl in the folder"
    )
    _add_shared(index, "shards", "bad")


def _index(words: list[str], **options: Any) -> int:
    address = operands.only(words, "data index takes the address of shards", "vidssl data index shards/")
    from vidssl.tools.data.index import index_data

    return index_data(address, **options)


_PLACES = ("top", "middle", "bottom", "far")


def add_tokenize(commands: "operands.Commands[operands.Parser]") -> None:
    tokenize = operands.add(
        commands,
        "tokenize",
        _tokenize,
        "turn a recipe's videos into ids, once",
        (operands.RECIPE, "whose videos and tokenizer, overrides"),
    )
    tokenize.add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="the store; one that was begun is resumed"
    )
    tokenize.add_argument(
        "--videos",
        choices=("data.video.source", "data.video.test_source", "data.probe.train", "data.probe.test"),
        help="which of the recipe's; default: data.video.source",
    )
    tokenize.add_argument(
        "--for",
        dest="purpose",
        choices=("pretraining", "finetuning", "testing"),
        help="VIMPAC's settings: 2 fps, middle, not mirrored; or 16 fps under twelve transforms; or what the "
        "views of data.probe want, which is the default for its videos",
    )
    tokenize.add_argument(
        "--fps", type=_fps, metavar="FPS", help="of the stored frames; 'own' keeps the videos' own"
    )
    tokenize.add_argument(
        "--resize", type=_resize, metavar="LIST", help="short sides over the views' size, such as 1,1.25"
    )
    tokenize.add_argument(
        "--crops", type=_crops, metavar="LIST", help=f"places of the square, of {','.join(_PLACES)}"
    )
    tokenize.add_argument("--flip", choices=("no", "both"), help="whether mirrored squares are stored too")
    tokenize.add_argument(
        "--spot-checks",
        type=operands.at_least(0),
        metavar="N",
        help="videos to compare afterwards; default: 3",
    )
    tokenize.add_argument(
        "--videos-per-shard",
        type=operands.at_least(1),
        metavar="N",
        help="lost by a kill at most; default: 128",
    )
    tokenize.add_argument(
        "--retry-unreadable", action="store_true", help="make shards anew that lack a video"
    )
    operands.add(
        commands,
        "convert",
        _convert,
        "make safetensors of the published dVAE without executing its pickles",
        ("ENCODER [DECODER] OUT.safetensors", "files to read, file to write"),
    )


def _fps(text: str) -> float | Literal["own"]:
    return "own" if text == "own" else operands.positive(text)


def _resize(text: str) -> tuple[float, ...]:
    words = "numbers of at least 1, such as 1,1.25"
    return tuple(operands.number(side, float, lambda x: 1 <= x < math.inf, words) for side in text.split(","))


def _crops(text: str) -> tuple[str, ...]:
    if set(text.split(",")) - set(_PLACES):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(_PLACES)}, got {text}")
    return tuple(text.split(","))


def _tokenize(words: list[str], *, out: Path, **options: Any) -> int:
    names, overrides = operands.split(words)
    name = operands.only(names, "tokenize takes one recipe", "vidssl tokenize my.yaml --out tokens/mine")
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.tokenize.tokenize import tokenize

    return tokenize(load_recipe(name, overrides), out, **options)


def _convert(words: list[str]) -> int:
    from vidssl.tools.convert import convert_files

    return convert_files(words)
