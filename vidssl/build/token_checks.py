"""Checks that stored ids are those of a recipe's tokenizer, and its views those that the store has."""

import hashlib
import json

from vidssl.build.registry import SOURCE, TOKENIZER, constructor_of, resolved_part
from vidssl.config.recipe import UNKNOWN_SHA256, Recipe, TokenizerSpec, WeightsSpec
from vidssl.config.schema import PartSpec
from vidssl.config.strict_yaml import Node
from vidssl.data.sources.token_store import TokenStore
from vidssl.data.views.stored import StoredViews
from vidssl.engine.atomic import file_sha256
from vidssl.interfaces import Backbone, DataSource, ViewSampler


def tokenizer_keys(spec: TokenizerSpec) -> dict[str, object]:
    """All that a tokenizer's ids depend on: its type, all of its keys, and the sha256 of its weights."""
    assert spec.weights is not None, "refused without weights"
    keys: dict[str, object] = json.loads(json.dumps(resolved_part(spec.part, TOKENIZER)))
    return keys | {"weights_sha256": _weights_hash(spec.weights)}


def keys_hash(keys: dict[str, object]) -> str:
    """sha256 of ``tokenizer_keys``, by which stores are known."""
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _weights_hash(weights: WeightsSpec) -> str:
    if weights.sha256 != UNKNOWN_SHA256:
        return weights.sha256  # the file is checked against it wherever it is loaded
    try:
        return file_sha256(weights.path)
    except OSError as error:
        raise weights.node.mapping()["weights"].error(f"{weights.path}: {error.strerror}") from None


def check_stored(
    tokenizer: TokenizerSpec | None, part: PartSpec, views: PartSpec, source: DataSource, sampler: ViewSampler
) -> None:
    """Refuse a store of another tokenizer than its reader's, and views that it does not hold.

    Args:
        part: section of the source.
        views: section of the sampler.
    """
    if not isinstance(source, TokenStore) or not isinstance(sampler, StoredViews):
        return
    if tokenizer is None:
        raise part.node.error("holds ids of a tokenizer, and the recipe has none: add its 'tokenizer'")
    keys, stored = tokenizer_keys(tokenizer), source.stored
    if keys_hash(keys) != stored.tokenizer:
        differ = [
            key
            for key in {**keys, **stored.tokenizer_keys}
            if keys.get(key) != stored.tokenizer_keys.get(key)
        ]
        raise part.node.error(
            f"{source.root} was made with another tokenizer ({stored.tokenizer}) than the recipe's "
            f"({keys_hash(keys)}): {', '.join(sorted(differ))} differ"
        )
    with views.node.located():
        source.check(sampler.wanted)


def check_stored_views(recipe: Recipe, name: str, views: ViewSampler, backbone: Backbone | None) -> None:
    """Refuse views of ids without a source of ids, the reverse, and parts of the recipe that need pixels.

    Opens no data.
    """
    stream = recipe.data.streams[name]
    for source in (stream.source, stream.test_source):
        if source is not None:
            check_go_together(source, stream.views, views)
    if not isinstance(views, StoredViews):
        return
    if backbone is not None and recipe.backbone is not None:
        check_reads_ids(backbone, recipe.backbone.type, f"data.{name}", views, recipe.backbone.node)
    if recipe.augment is not None:
        raise recipe.augment.node.error(
            f"changes pixels, and data.{name} gives stored ids: remove it (views choose among "
            "the stored transforms)"
        )


def check_go_together(source: PartSpec, views: PartSpec, sampler: ViewSampler) -> None:
    """Refuse views of ids of a source of pixels, and the reverse. Opens no data."""
    wants = isinstance(sampler, StoredViews)
    if (constructor_of(source, SOURCE) is TokenStore) == wants:
        return
    if wants:
        raise source.node.error(
            f"views '{views.type}' read stored ids: make it {{type: token_store, root: ...}}"
        )
    raise views.node.error(
        f"'{views.type}' cuts pixels, and the source holds ids: set views.type to stored_clip_pair or "
        "stored_clip, for tests stored_uniform_clips"
    )


def check_reads_ids(backbone: Backbone, name: str, data: str, sampler: ViewSampler, at: Node) -> None:
    """Refuse stored ids for a network that reads pixels."""
    if isinstance(sampler, StoredViews) and backbone.input_kind == "pixels":
        raise at.error(f"'{name}' reads pixels, and {data} gives stored ids")
