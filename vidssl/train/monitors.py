"""A kNN probe in the course of a run, so that a curve of quality stands beside the loss."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from vidssl.build import build
from vidssl.build.checks import check_stored
from vidssl.config.recipe import Recipe
from vidssl.data.loader import Loader, Stream
from vidssl.data.sources.origins import shared_videos, videos_of
from vidssl.data.views.stored import StoredViews
from vidssl.engine.parallel import Parallel
from vidssl.engine.speed import pick_device, use_bfloat16
from vidssl.errors import LabelError
from vidssl.evaluators.extract import extract
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.scores import probe
from vidssl.interfaces import Backbone, Progress
from vidssl.train.trial import random_states_kept

_log = logging.getLogger(__name__)
K, TEMPERATURE = 200, 0.07  # VIMPAC's and, before it, Wu et al.'s (2018)


class KnnMonitor:
    """kNN accuracy of the encoder on the recipe's ``data.probe``, as VIMPAC's code has it while it trains.

    It draws no random numbers and changes nothing: a run is the same with it and without.

    Args:
        encoder: of the objective under training.

    Raises:
        UsageError: if the recipe's probe data cannot be opened, or train and test have videos in common.
    """

    def __init__(self, recipe: Recipe, encoder: Backbone) -> None:
        data = recipe.data.probe
        assert data is not None, "the build refuses run.knn_every_steps without data.probe"
        self._encoder = encoder
        self._train, self._test = build.source(data.train), build.source(data.test)
        self._views = build.views(data.views)
        for part, source in ((data.train, self._train), (data.test, self._test)):
            check_stored(recipe.tokenizer, part, data.views, source, self._views)
        both = shared_videos(videos_of(self._train), videos_of(self._test))
        if both.keys:
            raise data.test.node.error(both.refusal(way_out=""))
        makes_ids = encoder.input_kind == "tokens" and not isinstance(self._views, StoredViews)
        with random_states_kept():  # first weights are drawn before those of the file take their place
            self._tokenizer = build.tokenizer(recipe.tokenizer) if makes_ids and recipe.tokenizer else None
        self._device = pick_device(recipe.run.device)
        self._autocast = use_bfloat16(recipe.run.precision, self._device)
        self._workers = recipe.run.workers
        self._say = cache(_log.warning)  # each line once

    def __call__(self) -> dict[str, float]:
        """Of labels that can be scored: ``knn_LABEL``, the share of test videos classified right, or
        ``knn_LABEL_mAP`` or ``knn_LABEL_R2``.

        Raises:
            UsageError: if no video of a part can be read, or features are not finite.
        """
        modes: dict[nn.Module, bool] = {module: module.training for module in self._encoder.modules()}
        try:
            tables = [
                extract(
                    self._encoder, source, self._views, tokenizer=self._tokenizer, workers=self._workers,
                    device=self._device, autocast=self._autocast,
                )
                for source in (self._train, self._test)
            ]  # fmt: skip
        finally:
            for module, mode in modes.items():
                module.training = mode
        try:
            scores = probe(KNN(k=K, temperature=TEMPERATURE), tables[0], tables[1], say=self._say)
        except LabelError as error:
            self._say(f"the kNN probe scores no label: {error}")
            return {}
        names = ("_".join(filter(None, ("knn", score.label, score.measure_named))) for score in scores)
        return dict(zip(names, (score.top1 for score in scores), strict=True))


@torch.no_grad()
def measure(
    parallel: Parallel, streams: Mapping[str, Stream], *, batches: int, device: torch.device, autocast: bool
) -> dict[str, float]:
    """The objective's metrics in eval mode over the first batches, at most one pass; the same at every call.

    Each metric is the mean over batches, weighted by their samples. Of several processes each measures its
    slices, and what is a mean over clips is that of all in their mean.

    Args:
        streams: that give each sample once (``Stream.once``); of several, a shorter one begins anew.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[tuple[int, Tensor]]] = {}
    batches = min(batches, max(stream.batches_of_pass() for stream in streams.values()))
    parallel.objective.eval()
    with Loader(streams) as loader:
        for _ in range(batches):
            batch = next(loader).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                output = parallel(batch, Progress(0, 1), generator)
            rows = max(len(numbers) for numbers in batch.indices.values())
            for name, value in output.metrics.items():
                found.setdefault(name, []).append((rows, value.detach()))
    parallel.objective.train()
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[tuple[int, Tensor]]) -> float:
    rows, numbers = zip(*values, strict=True)
    stacked = torch.stack(numbers).float()
    if len(set(rows)) == 1:
        return float(stacked.mean())
    weights = torch.tensor(rows, device=stacked.device, dtype=stacked.dtype)
    return float((stacked * weights).sum() / weights.sum())
