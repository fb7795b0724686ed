"""The model card of a run: what it is, how it is loaded, its data, its scores and its recipe."""

import json
from collections.abc import Sequence

from vidssl import __version__
from vidssl.compare.grids import markdown
from vidssl.compare.runs import run_grids
from vidssl.config.recipe import Recipe
from vidssl.config.strict_yaml import dump
from vidssl.engine.checkpoint import Checkpoint
from vidssl.evaluate.score_file import ScoreFile


def model_card(
    recipe: Recipe, checkpoint: Checkpoint, scores: Sequence[ScoreFile], *, name: str, licence: str
) -> str:
    """A README.md with the front matter that model hubs read.

    Args:
        scores: of the checkpoint, under all protocols.
        name: what the run is loaded by, ``hf:OWNER/NAME`` or a folder.
        licence: its identifier; empty where none was given, which the card says.
    """
    return "\n".join([*_front(recipe, scores, licence), *_body(recipe, checkpoint, scores, name, licence)])


def _front(recipe: Recipe, scores: Sequence[ScoreFile], licence: str) -> list[str]:
    classifies = recipe.objective.type == "classification"
    backbone = "" if recipe.backbone is None else recipe.backbone.type
    front: dict[str, object] = {
        "library_name": "vidssl",
        "pipeline_tag": "video-classification" if classifies else "feature-extraction",
        "tags": tuple(filter(None, ("video", "self-supervised-learning", recipe.objective.type, backbone))),
    }
    if licence:
        front["license"] = licence
    results = [
        {
            "task": {"type": "video-classification"},
            "dataset": {"name": _test_videos(file), "type": _test_videos(file)},
            "metrics": ({"name": f"top 1, {file.name}, {row.label}", "type": "accuracy", "value": row.top1},),
        }
        for file in scores
        for row in next(iter(file.scores.values()))
    ]
    if results:
        front["model-index"] = ({"name": recipe.name, "results": tuple(results)},)
    return ["---", dump(front).rstrip(), "---", ""]


def _test_videos(file: ScoreFile) -> str:
    return file.card.get("data.test.type", "videos")


def _body(
    recipe: Recipe, checkpoint: Checkpoint, scores: Sequence[ScoreFile], name: str, licence: str
) -> list[str]:
    steps, what = checkpoint.step, recipe.objective.type
    network = "a tokenizer" if recipe.backbone is None else f"a network of type `{recipe.backbone.type}`"
    lines = [
        f"# {recipe.name}",
        "",
        f"{network.capitalize()}, trained by `{what}` for {steps} steps with vidssl {__version__}.",
        "",
        "## How to load it",
        "",
        "```python",
        "from vidssl import api as v",
        "",
        f"network = v.load({json.dumps(name)})  # in eval mode",
        "# clips: float32 [B, 3, T, H, W] in [0, 1]",
        "features = network(clips).pooled()  # [B, D]",
        "```",
        "",
        f"`vidssl eval {name} --protocol linear`, `vidssl features {name} videos/ -o features.npz`",
        "and all other commands take it where a run may stand.",
        "",
        "## Data",
        "",
    ]
    for stream, spec in recipe.data.streams.items():
        lines.append(f"- {stream}: `{spec.source.type}`, {spec.batch_size} samples a step")
    lines += ["", f"Licence: {licence or 'not stated by who pushed it'}.", "", "## Scores", ""]
    if scores:
        lines += ["Brackets hold 95 % intervals.", ""]
        lines += [
            line for grid in run_grids(scores, each=False)[: len(scores)] for line in (markdown(grid), "")
        ]
        lines += ["Scores may be compared with others of the same card:", ""]
        for file in scores:
            lines += ["<details>", f"<summary>{file.name}: {file.card_sha256[:12]}</summary>", "", "```"]
            lines += [f"{key}: {value}" for key, value in file.card.items()]
            lines += ["```", "", "</details>", ""]
    else:
        lines += [f"None yet: `vidssl eval {name} --protocol linear` makes some.", ""]
    return [*lines, "## Recipe", "", "```yaml", checkpoint.recipe.rstrip(), "```", ""]
