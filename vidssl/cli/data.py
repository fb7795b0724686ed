"""The command ``vidssl data`` and those below it."""

import argparse
from pathlib import Path

from vidssl.errors import UsageError


def add_data(data: argparse.ArgumentParser) -> None:
    """Give the parser of ``vidssl data`` its commands."""
    commands = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(
        commands.add_parser("check", help="look at every video once; write what was found into a manifest")
    )
    _add_prepare(
        commands.add_parser(
            "prepare", help="make videos small and quick to decode, as files of their own or as JPEG shards"
        )
    )
    _add_shard(commands.add_parser("shard", help="pack videos or images into tar shards, with an index"))
    _add_index(commands.add_parser("index", help="look through tar shards that others made; write an index"))


def _add_check(check: argparse.ArgumentParser) -> None:
    check.set_defaults(command=_check)
    check.add_argument(
        "operands",
        nargs="*",
        metavar="FOLDER_OR_LIST",
        help="videos in folders, or a text or CSV list of them. Exit code 0: all is well; 1: some files are "
        "bad or videos leak from test to train; 2: nothing was done",
    )
    check.add_argument("--root", metavar="FOLDER", help="of the paths in a list; default: the list's own")
    check.add_argument("--test-list", metavar="LIST", help="held-out videos that must not be in the list")
    check.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="MANIFEST",
        help="other data that must have no video in common with this; may be repeated",
    )
    check.add_argument("--out", metavar="FILE", help="the manifest; default: NAME.manifest.jsonl beside it")
    check.add_argument("--processes", type=int, metavar="N", help="files at a time; default: one a core")
    check.add_argument(
        "--test-share", type=float, default=0.25, metavar="SHARE", help="as sources have it; default: 0.25"
    )
    check.add_argument("--all", dest="show_all", action="store_true", help="name all files, not the first 20")
    limits = check.add_argument_group("limits", "a file past one of them is unreadable")
    limits.add_argument(
        "--max-pixels", type=int, default=36_000_000, metavar="N", help="of a frame; default: 36000000"
    )
    limits.add_argument(
        "--max-frames", type=int, default=1_000_000, metavar="N", help="of a file; default: 1000000"
    )
    limits.add_argument(
        "--max-seconds", type=float, default=300.0, metavar="S", help="for decoding a file once; default: 300"
    )


def _check(arguments: argparse.Namespace) -> int:
    if len(arguments.operands) != 1:
        given = " ".join(arguments.operands) or "none"
        raise UsageError(f"data check takes one folder or list, got {given} (vidssl data check videos/)")
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {arguments.processes}")
    if not 0.0 < arguments.test_share < 1.0:
        raise UsageError(f"--test-share must lie between 0 and 1, got {arguments.test_share}")
    for name in ("max_pixels", "max_frames", "max_seconds"):
        if not getattr(arguments, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name)}")
    from vidssl.data.decode.limits import Limits
    from vidssl.tools.data.check import CheckRequest, check_data

    request = CheckRequest(
        Path(arguments.operands[0]),
        root=_path(arguments.root),
        test_list=_path(arguments.test_list),
        against=tuple(map(Path, arguments.against)),
        out=_path(arguments.out),
        processes=arguments.processes,
        test_share=arguments.test_share,
        show_all=arguments.show_all,
        limits=Limits(arguments.max_pixels, arguments.max_frames, arguments.max_seconds),
    )
    return check_data(request)


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    prepare.set_defaults(command=_prepare)
    prepare.add_argument(
        "operands",
        nargs="*",
        metavar="FOLDER_OR_LIST_OR_MANIFEST",
        help="videos in folders, a text or CSV list of them, or what 'data check' wrote (.jsonl). Exit code "
        "0: all are prepared; 1: some were skipped; 2: it was not finished",
    )
    prepare.add_argument("--out", required=True, metavar="FOLDER", help="of the results; the originals stay")
    prepare.add_argument(
        "--root", metavar="FOLDER", help="of the paths in a list or manifest; default: its own"
    )
    prepare.add_argument(
        "--short-side", type=int, default=256, metavar="PIXELS", help="never enlarged; default: 256"
    )
    prepare.add_argument("--gop", type=int, metavar="FRAMES", help="between keyframes; default: 12")
    prepare.add_argument("--crf", type=int, metavar="CRF", help="quality of H.264, 0 to 51; default: 18")
    prepare.add_argument("--jpeg-shards", action="store_true", help="frames as JPEGs in a few large files")
    prepare.add_argument("--quality", type=int, metavar="Q", help="of the JPEGs, 1 to 100; default: 90")
    prepare.add_argument(
        "--max-difference",
        type=float,
        default=8.0,
        metavar="LEVELS",
        help="mean difference to the source, of 255, that a sampled frame may have; default: 8",
    )
    prepare.add_argument("--processes", type=int, metavar="N", help="files at a time; default: one a core")
    prepare.add_argument("--all", dest="show_all", action="store_true", help="name all skipped files, not 20")


def _prepare(arguments: argparse.Namespace) -> int:
    if len(arguments.operands) != 1:
        given = " ".join(arguments.operands) or "none"
        raise UsageError(
            f"data prepare takes one folder, list or manifest, got {given} "
            "(vidssl data prepare videos/ --out prepared)"
        )
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {arguments.processes}")
    from vidssl.tools.data.encode import H264, Form, Jpegs
    from vidssl.tools.data.prepare import PrepareRequest, prepare_data

    others = {"--gop": "gop", "--crf": "crf"} if arguments.jpeg_shards else {"--quality": "quality"}
    for option, name in others.items():
        if getattr(arguments, name) is not None:
            raise UsageError(f"{option} goes with{'out' * arguments.jpeg_shards} --jpeg-shards")
    both = {"short_side": arguments.short_side, "max_difference": arguments.max_difference}
    form: Form
    if arguments.jpeg_shards:
        form = Jpegs(**both, quality=90 if arguments.quality is None else arguments.quality)
    else:
        gop, crf = (12 if arguments.gop is None else arguments.gop), arguments.crf
        form = H264(**both, gop=gop, crf=18 if crf is None else crf)
    request = PrepareRequest(
        Path(arguments.operands[0]),
        Path(arguments.out),
        form,
        root=_path(arguments.root),
        processes=arguments.processes,
        show_all=arguments.show_all,
    )
    return prepare_data(request)


def _add_shard(shard: argparse.ArgumentParser) -> None:
    shard.set_defaults(command=_shard)
    shard.add_argument(
        "operands",
        nargs="*",
        metavar="FOLDER_OR_LIST_OR_MANIFEST",
        help="videos in folders, a text or CSV list of them, or what 'data check' wrote (.jsonl). Exit code "
        "0: all are packed; 1: some are bad and left out; 2: it was not finished",
    )
    shard.add_argument(
        "--out",
        required=True,
        metavar="ADDRESS",
        help="a folder, or an address of fsspec's (s3://bucket/k400)",
    )
    shard.add_argument(
        "--root", metavar="FOLDER", help="of the paths in a list or manifest; default: its own"
    )
    shard.add_argument("--images", action="store_true", help="pack the images of a folder, not its videos")
    shard.add_argument("--shard-mb", type=int, default=256, metavar="MB", help="of a shard; default: 256")
    shard.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of files; default: 0")
    shard.add_argument("--processes", type=int, metavar="N", help="files at a time; default: one a core")
    shard.add_argument("--all", dest="show_all", action="store_true", help="name all bad files, not 20")


def _shard(arguments: argparse.Namespace) -> int:
    _check_operands(arguments, "shard", "one folder, list or manifest", "videos/ --out shards")
    if arguments.shard_mb < 1:
        raise UsageError(f"--shard-mb must be at least 1, got {arguments.shard_mb}")
    from vidssl.tools.data.shard import ShardRequest, shard_data

    request = ShardRequest(
        Path(arguments.operands[0]),
        arguments.out,
        root=_path(arguments.root),
        images=arguments.images,
        shard_bytes=arguments.shard_mb * 10**6,
        seed=arguments.seed,
        processes=arguments.processes,
        show_all=arguments.show_all,
    )
    return shard_data(request)


def _add_index(index: argparse.ArgumentParser) -> None:
    index.set_defaults(command=_index)
    index.add_argument(
        "operands",
        nargs="*",
        metavar="ADDRESS",
        help="of tar shards in the convention of WebDataset: a folder, or an address of fsspec's. Exit code "
        "0: all is well; 1: some files or shards are bad; 2: it was not finished",
    )
    index.add_argument("--out", metavar="FILE", help="the index; default: index.jsonl in the folder")
    index.add_argument("--processes", type=int, metavar="N", help="shards at a time; default: one a core")
    index.add_argument("--all", dest="show_all", action="store_true", help="name all bad files, not 20")


def _index(arguments: argparse.Namespace) -> int:
    _check_operands(arguments, "index", "the address of shards", "shards/")
    from vidssl.tools.data.index import IndexRequest, index_data

    request = IndexRequest(
        arguments.operands[0],
        out=_path(arguments.out),
        processes=arguments.processes,
        show_all=arguments.show_all,
    )
    return index_data(request)


def _check_operands(arguments: argparse.Namespace, command: str, wanted: str, example: str) -> None:
    if len(arguments.operands) != 1:
        given = " ".join(arguments.operands) or "none"
        raise UsageError(f"data {command} takes {wanted}, got {given} (vidssl data {command} {example})")
    if arguments.processes is not None and arguments.processes < 1:
        raise UsageError(f"--processes must be at least 1, got {arguments.processes}")


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)
