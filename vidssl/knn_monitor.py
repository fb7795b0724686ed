"""A kNN probe in the course of a run, so that a curve of quality stands beside the loss."""

from torch import nn

from vidssl import build
from vidssl.data.origins import shared_videos, videos_of
from vidssl.data.views_stored import StoredViews
from vidssl.engine.devices import pick_device, use_bfloat16
from vidssl.evaluators import KNN
from vidssl.interfaces import Backbone
from vidssl.recipe import Recipe
from vidssl.scoring.extraction import extract
from vidssl.scoring.scores import probe
from vidssl.token_checks import check_stored

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
        self._tokenizer = build.tokenizer(recipe.tokenizer) if makes_ids and recipe.tokenizer else None
        self._device = pick_device(recipe.run.device)
        self._autocast = use_bfloat16(recipe.run.precision, self._device)
        self._workers = recipe.run.workers

    def __call__(self) -> dict[str, float]:
        """``knn_LABEL``, the share of test videos classified right, for each label; modes are kept."""
        modes: dict[nn.Module, bool] = {module: module.training for module in self._encoder.modules()}
        tables = [
            extract(
                self._encoder,
                source,
                self._views,
                tokenizer=self._tokenizer,
                workers=self._workers,
                device=self._device,
                autocast=self._autocast,
            )
            for source in (self._train, self._test)
        ]
        for module, mode in modes.items():
            module.training = mode
        scores = probe(KNN(k=K, temperature=TEMPERATURE), tables[0], tables[1])
        return {f"knn_{score.label}": score.top1 for score in scores}
