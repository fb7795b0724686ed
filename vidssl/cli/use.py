"""Commands that use what was trained: features, predict, export, push and mteb."""

import argparse
from pathlib import Path
from typing import Any

from vidssl.cli.operands import Commands, Parser, add, add_trust, at_least, number, only, positive, split
from vidssl.errors import UsageError


def add_commands(commands: "Commands[Parser]") -> None:
    features = add(
        commands,
        "features",
        _features,
        "write the features of videos to a file",
        (
            "RUN_OR_NETWORK VIDEOS [KEY=VALUE ...]",
            "a run, checkpoint or network as eval takes them; a folder, a list or video files, or a source, "
            "data='{type: ...}'; how clips are cut, views='{...}', by default as the run's data.probe has it",
        ),
    )
    features.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help=".npy, .npz, .parquet or .safetensors"
    )
    features.add_argument(
        "--per",
        choices=("video", "clip", "window", "frame"),
        help="what a row is of: a video, all its clips averaged (default); each of these clips; windows of a "
        "long video; or each step in time of windows side by side, the frames that one patch spans",
    )
    features.add_argument(
        "--every", type=positive, metavar="S", help="seconds from a window to the next; default: its length"
    )
    features.add_argument(
        "--layer", type=_layer, metavar="LAYER", help="last (default), all stages, or the number of a block"
    )
    features.add_argument(
        "--tokens", choices=("pooled", "patches"), help="one vector (default), or a grid of them"
    )
    features.add_argument("--half", action="store_true", help="16 bits for each number, not 32")
    features.add_argument("--batch-size", type=at_least(1), metavar="N", help="clips at a time; default: 8")
    add_trust(features)

    predict = add(
        commands,
        "predict",
        _predict,
        "name the classes of videos",
        (
            "RUN_OR_NETWORK VIDEOS [views={...}]",
            "a run that learned classes, such as RUN/finetune/NAME, or a network with a kept probe; a "
            "folder, a list or video files; clips cut otherwise than they were for its test",
        ),
    )
    predict.add_argument(
        "--probe",
        dest="probes",
        action="append",
        metavar="FILE",
        help="that 'eval --save-probe' wrote; default: those beside the run's scores; may be repeated",
    )
    predict.add_argument("--top", type=at_least(1), metavar="N", help="classes of each video; default: 5")
    predict.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    add_trust(predict)

    export = add(
        commands,
        "export",
        _export,
        "write a trained network in a format that others read",
        ("RUN_OR_CHECKPOINT", "whose network is written, and compared with what was written"),
    )
    export.add_argument(
        "--to",
        choices=("safetensors", "timm", "torchscript", "onnx", "huggingface"),
        required=True,
        help="the format. timm and huggingface (VideoMAE) have plain ViTs alone",
    )
    export.add_argument("-o", "--out", type=Path, metavar="PATH", help="default: export/ in the run's folder")
    export.add_argument(
        "--clip", type=_size, metavar="T,H,W", help="of a clip, where the format fixes it; default: a probe's"
    )
    add_trust(export)
    _add_push(commands)
    _add_mteb(commands)


def _add_push(commands: "Commands[Parser]") -> None:
    push = add(
        commands,
        "push",
        _push,
        "put a run where others load it: a folder, or a hub of models",
        (
            "RUN TARGET",
            "a run or checkpoint; a new folder, or hf:OWNER/NAME. Weights, recipe, scores, probes and a card "
            "go there; lists of videos and facts of this machine do not",
        ),
    )
    push.add_argument(
        "--licence", metavar="ID", help="of the weights, such as apache-2.0; the card states it"
    )
    push.add_argument("--private", action="store_true", help="on the hub, for its owner alone")
    add_trust(push)


def _push(words: list[str], **options: Any) -> int:
    if len(words) != 2:
        raise UsageError("push takes a run and a target (vidssl push runs/mine hf:me/mine)")
    from vidssl.use.hub import push

    return push(*words, **options)


def _add_mteb(commands: "Commands[Parser]") -> None:
    command = add(
        commands,
        "mteb",
        _mteb,
        "score a network on tasks of videos of mteb, such as the benchmark MVEB",
        (
            "RUN_OR_NETWORK [KEY=VALUE ...]",
            "a run, checkpoint or network as eval takes them; how clips are cut, views='{...}', by default "
            "as the run's data.probe has it",
        ),
    )
    command.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="NAME",
        help="tasks or benchmarks of mteb: HMDB51Classification, 'MVEB(video, v1)'",
    )
    command.add_argument(
        "--name", metavar="OWNER/NAME", help="by which results are filed; default: the run's"
    )
    command.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="default: mteb/ in the run's folder"
    )
    command.add_argument("--batch-size", type=at_least(1), metavar="N", help="videos at a time; default: 32")
    add_trust(command)


def _mteb(words: list[str], *, tasks: list[str], **options: Any) -> int:
    chosen, behind = split(tasks)  # overrides may follow the tasks
    names, overrides = split(words)
    name = only(names, "mteb takes one run or network", "vidssl mteb runs/mine --tasks 'MVEB(video, v1)'")
    from vidssl.use.mveb import evaluate_mteb

    evaluate_mteb(name, chosen, [*overrides, *behind], **options)
    return 0


def _size(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if len(words) != 3:
        raise argparse.ArgumentTypeError(f"expected frames, height and width, such as 16,224,224, got {text}")
    return tuple(map(at_least(1), words))


def _layer(text: str) -> Any:
    if text in ("last", "all"):
        return text
    return number(text, int, lambda n: True, "last, all or the number of a block")


def _features(words: list[str], *, out: Path, **options: Any) -> int:
    names, overrides = split(words)
    if not names:
        raise UsageError(
            "features takes a network and videos (vidssl features runs/mine videos/ -o mine.npz)"
        )
    from vidssl.use.features import features

    return features(names[0], names[1:], out, overrides=overrides, **options)


def _predict(words: list[str], *, probes: list[str] | None = None, **options: Any) -> int:
    names, overrides = split(words)
    if len(names) < 2:
        raise UsageError("predict takes a network and videos (vidssl predict runs/mine video.mp4)")
    from vidssl.use.predict import predict_videos

    return predict_videos(names[0], names[1:], probes=probes or [], overrides=overrides, **options)


def _export(words: list[str], **options: Any) -> int:
    name = only(words, "export takes one run or checkpoint", "vidssl export runs/mine --to timm")
    from vidssl.use.export import export

    return export(name, **options)
