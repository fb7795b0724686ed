"""Two examples for the help of every command, by its name."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "train": ("train bevt", "train recipes/svt.yaml optim.lr=1e-3 name=svt-slow"),
    "bench": ("bench bevt", "bench recipes/svt.yaml run.workers=8 --seconds 60"),
    "selftest": ("selftest resume bevt", "selftest gpu --out a100.json"),
    "replay": ("replay runs/bevt/captures/STEP", "replay runs/bevt/captures/STEP --precision run"),
    "eval": (
        "eval runs/bevt --protocol linear --protocol knn",
        "eval timm:resnet50 weights=pretrained data=bevt --protocol linear",
    ),
    "compare": ("compare runs/bevt runs/svt", "compare runs/bevt runs/svt --markdown"),
    "grid": ("grid recipes/grids/bevt_masks.yaml", "grid recipes/grids/bevt_masks.yaml --tables"),
    "report": ("report runs/bevt runs/svt", "report runs/bevt -o bevt.html --no-pictures"),
    "runs": ("runs", "runs runs/grids --csv"),
    "features": (
        "features runs/bevt videos -o features.npz",
        "features runs/bevt videos --per window --every 1 -o windows.parquet",
    ),
    "predict": ("predict runs/bevt/finetune/NAME videos", "predict runs/bevt clip.mp4 --json --top 3"),
    "export": ("export runs/bevt --to onnx", "export runs/videomae --to timm --clip 16,224,224"),
    "push": ("push runs/bevt published --licence apache-2.0", "push runs/bevt hf:me/bevt --private"),
    "mteb": (
        "mteb runs/bevt --tasks 'MVEB(video, v1)'",
        "mteb hf:me/bevt --tasks HMDB51Classification UCF101VideoClassification",
    ),
    "show": ("show runs/svt --what attention", "show runs/bevt --what reconstruction --video clip.mp4"),
    "watch": ("watch runs/bevt", "watch runs/bevt --metric 'loss*' --once"),
    "tokenize": ("tokenize vimpac --out tokens/mine", "tokenize vimpac --out tokens/mine --for finetuning"),
    "convert": ("convert encoder.pkl dalle.safetensors", "convert encoder.pkl decoder.pkl dalle.safetensors"),
    "init": (
        "init my.yaml --videos mine.train.csv",
        "init my.yaml --videos mine.train.csv --objective svt,bevt,videomae",
    ),
    "data list": (
        "data list videos",
        "data list videos --annotations segments.csv --unit frames --out mine.csv",
    ),
    "data split": ("data split mine.csv", "data split mine.csv --folds 5 --seed 1"),
    "data check": ("data check videos", "data check list.csv --root videos --test-list test.csv"),
    "data prepare": (
        "data prepare videos --out small",
        "data prepare videos --out small --jpeg-shards --quality 95",
    ),
    "data shard": ("data shard videos --out shards", "data shard images --out s3://bucket/shards --images"),
    "data index": ("data index shards", "data index s3://bucket/shards --out index.jsonl"),
    "check": ("check", "check recipes/bevt.yaml evaluation/linear.yaml"),
    "list": ("list backbones", "list protocols recipes runs"),
}


def epilog(prog: str) -> str:
    """The examples of a command as help shows them; ``prog`` is its name behind ``vidssl``."""
    name = prog.removeprefix("vidssl ")
    return "\n".join(["examples:", *(f"  vidssl {line}" for line in EXAMPLES.get(name, ()))])
