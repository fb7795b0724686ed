"""MVEB, the public benchmark of video embeddings: a network as a model of the package ``mteb``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from vidssl.build import build
from vidssl.data.sources.datasets import DatasetSource
from vidssl.engine.distributed import processes, take_device
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.engine.speed import use_bfloat16
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import asked_network, eval_words
from vidssl.evaluate.subject import Subject
from vidssl.evaluators.extract import encode
from vidssl.interfaces import Backbone, DataSource, ViewSampler
from vidssl.use.features import usual_views, words_of

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta
    from mteb.results import ModelResult

FOLDER = "mteb"  # in the run's folder; below it mteb's own layout, results/NAME/REVISION/TASK.json


class MtebNetwork:
    """A network as mteb calls it: [videos, D] of a loader's videos, the mean over the views of each.

    Videos are decoded by this package, file by file, and cut by its views, so that mteb sees what
    ``vidssl features`` gives.

    Args:
        subject: whose first network it is.
        views: of a video.
        name: OWNER/NAME, by which mteb files results.

    Attributes:
        mteb_model_meta: name, size and kind, as a leaderboard shows them.
    """

    def __init__(self, subject: Subject, views: ViewSampler, *, name: str) -> None:
        self._network: Backbone = next(iter(subject.networks.values()))
        self._views, self._spec = views, subject.spec
        self._device = take_device(subject.spec.run.device, 0)
        spec = subject.spec.tokenizer
        reads_ids = self._network.input_kind == "tokens"
        self._tokenizer = build.tokenizer(spec) if reads_ids and spec is not None else None
        self.mteb_model_meta = _metadata(self._network, name, subject.weights)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: object,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        precision: str = "float32",
    ) -> Tensor:
        """Vectors of the videos of a loader, float32 [N, D].

        Args:
            inputs: mteb's loader over a Hugging Face dataset with a column ``video``.
            task_metadata, hf_split, hf_subset, prompt_type: what the videos are; they change nothing.
            batch_size: videos that go through the network together.
            show_progress_bar: draw one.
            precision: of the vectors; float32 alone.

        Raises:
            UsageError: if a video cannot be read, or the videos come with other inputs.
        """
        import datasets

        rows = inputs.dataset
        if "video" not in rows.column_names or precision != "float32":
            raise UsageError(
                "a network of videos alone takes a column 'video' and gives float32: choose tasks of "
                f"videos, got columns {', '.join(rows.column_names)} and {precision}"
            )
        files = rows.select_columns("video").cast_column("video", datasets.Video(decode=False))
        found = encode(
            self._network,
            cast(DataSource, DatasetSource(files)),
            self._views,
            tokenizer=self._tokenizer,
            layers="last",
            frames=("normal",),
            batch_size=batch_size,
            workers=0,
            device=self._device,
            autocast=use_bfloat16(self._spec.run.precision, self._device),
            console=terminal() if show_progress_bar else None,
            title="videos",
        )
        if found.unreadable:
            raise UsageError(f"a benchmark's videos must all be read: {found.unreadable[0]}")
        return found.vectors["normal"].mean(1).cpu()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of each with each, [N, M]."""
        given = (torch.as_tensor(part).float() for part in (embeddings1, embeddings2))
        one, other = (F.normalize(part, dim=-1) for part in given)
        return one @ other.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines of the first with the first, and so on, [N]."""
        return F.cosine_similarity(
            torch.as_tensor(embeddings1).float(), torch.as_tensor(embeddings2).float(), dim=-1
        )


def _metadata(network: Backbone, name: str, weights: str) -> "ModelMeta":
    from mteb.models import ModelMeta

    count = sum(parameter.numel() for parameter in network.parameters())
    given: dict[str, Any] = {
        "name": name,
        "revision": weights[:40],
        "n_parameters": count,
        "memory_usage_mb": count * 4 / 2**20,
        "embed_dim": network.num_features,
        "modalities": ["video"],
        "framework": ["PyTorch"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
    }
    unknown: dict[str, Any] = dict.fromkeys(
        (
            "loader", "release_date", "languages", "max_tokens", "license", "open_weights",
            "public_training_code", "public_training_data", "training_datasets",
        )
    )  # fmt: skip
    return ModelMeta(**unknown, **given)


def load_mteb(model_name: str, revision: str | None = None, *, device: str | None = None) -> MtebNetwork:
    """The ``loader`` of a ``mteb.ModelMeta``: a network of the hub, or of a folder, as a model of mteb.

    Args:
        model_name: OWNER/NAME on the hub, or a run's folder.
        revision: what mteb files results under; the newest weights are taken.
        device: "cuda" or "cpu"; None for the one of its recipe.

    Raises:
        UsageError: if there is no such network.
    """
    target = model_name if Path(model_name).exists() else f"hf:{model_name}"
    words = eval_words([] if device is None else [f"run.device={device}"])
    asked = asked_network(target, words)
    made = MtebNetwork(asked.make(print), build.views(usual_views(asked.recipe)), name=model_name)
    if revision is not None:
        made.mteb_model_meta = made.mteb_model_meta.model_copy(update={"revision": revision})
    return made


def evaluate_mteb(
    target: str,
    tasks: "Sequence[str | AbsTask]",
    overrides: Sequence[str] = (),
    console: Console | None = None,
    *,
    name: str | None = None,
    out: Path | None = None,
    batch_size: int = 32,
    trust: bool = False,
) -> "ModelResult":
    """Score a network on tasks of ``mteb``; results are written as its leaderboard takes them.

    Args:
        target: a run, a checkpoint, or a network that is no run's, as ``vidssl eval`` takes them.
        tasks: names of tasks and of benchmarks, such as "MVEB(video, v1)"; or tasks themselves.
        overrides: ``views={...}``, and those of ``vidssl eval`` for networks and how to run.
        console: where the table is printed; None for the terminal.
        name: OWNER/NAME; None for that of ``hf:OWNER/NAME``, else "vidssl/" and the run's own.
        out: folder of results; None for ``mteb`` in the run's.
        batch_size: videos that go through the network together.
        trust: as for ``vidssl eval``.

    Raises:
        UsageError: if mteb is missing, a task is unknown or has other inputs than videos.
    """
    try:
        import mteb
    except ImportError:
        raise UsageError("mteb is not installed: pip install 'vidssl[mteb]'") from None
    if name is not None and name.count("/") != 1:
        raise UsageError(f"--name takes OWNER/NAME, got {name}")
    console = console or terminal()
    specs, words = words_of(overrides, ("views",))
    asked = asked_network(target, words, trust)
    views = build.views(specs["views"] if "views" in specs else usual_views(asked.recipe))
    chosen = [each for task in tasks for each in _tasks(task)]
    other = [task for task in chosen if set(task.metadata.modalities) != {"video"}]
    if other or not chosen:
        named = f"{other[0].metadata.name} has {', '.join(other[0].metadata.modalities)}" if other else "none"
        raise UsageError(f"--tasks takes tasks of videos alone, such as 'MVEB(video, v1)', got: {named}")
    with processes(asked.run.device, timeout_minutes=asked.run.timeout_minutes), shown_messages(console):
        subject = asked.make(partial(print_line, console))
        model = MtebNetwork(subject, views, name=name or _name(target, subject))
        folder = out or subject.folder / FOLDER
        results = mteb.evaluate(
            cast(Any, model),
            chosen,
            cache=mteb.ResultCache(cache_path=folder),
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
        measures = {task.metadata.name: task.metadata.main_score for task in chosen}
        console.print(_table(results, model.mteb_model_meta, measures))
        print_line(console, f"Results: {folder / 'results'}")
    return results


def _name(target: str, subject: Subject) -> str:
    if target.startswith("hf:"):
        return target.removeprefix("hf:")
    return f"vidssl/{subject.folder.name or 'network'}"


def _tasks(word: "str | AbsTask") -> "list[AbsTask]":
    import mteb

    if not isinstance(word, str):
        return [word]
    try:
        return list(mteb.get_benchmark(word).tasks)
    except KeyError:
        pass
    try:
        return [mteb.get_task(word)]
    except KeyError as error:
        raise UsageError(f"--tasks {word}: mteb knows no task or benchmark of this name ({error})") from error


def _table(results: "ModelResult", meta: "ModelMeta", measures: Mapping[str, str]) -> Table:
    """A row for each task; ``measures``: name of a task -> its main score."""
    table = Table(
        title=f"mteb: {meta.name}, revision {str(meta.revision)[:8]}",
        title_justify="left",
        title_style="bold",
    )
    for head in ("task", "split", "score", "measure"):
        table.add_column(head, justify="right" if head == "score" else "left")
    for result in results.task_results:
        for split, subsets in result.scores.items():
            for scores in subsets:
                score = f"{100 * scores['main_score']:.1f}"
                table.add_row(result.task_name, split, score, measures[result.task_name])
    return table
