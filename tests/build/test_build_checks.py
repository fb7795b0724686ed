"""What a recipe may get wrong across its components, and in which words it is refused."""

from pathlib import Path

import pytest
from toy_parts import RECIPE, VIDEO_ONLY, changed, edited, message, set_up

from vidssl.build import build
from vidssl.config.recipe import recipe_from_text


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_up(monkeypatch, tmp_path)


def test_good_recipe_passes_without_data_or_weights() -> None:
    Path("tokenizers/trained.safetensors").unlink()
    build.check(changed())


def test_check_takes_no_memory_for_weights() -> None:
    build.check(
        edited("backbone: {type: toy}", "backbone: {type: toy, dim: 1_000_000_000_000}".replace("_", ""))
    )


MISTAKES = {
    "misspelt_key": (
        "objective: {type: toy}",
        "objective: {type: toy, vidoe_weight: 1.0}",
        "x.yaml:2: objective.vidoe_weight: unknown key. Did you mean 'video_weight'?",
    ),
    "wrong_choice": (
        "masker: {type: toy}",
        "masker: {type: toy, mode: tubes}",
        "x.yaml:5: masker.mode: expected 'tube' or 'cube', got 'tubes'. Did you mean 'tube'?",
    ),
    "wrong_type": (
        "backbone: {type: toy}",
        "backbone: {type: toy, dim: wide}",
        "x.yaml:3: backbone.dim: expected a whole number, got 'wide'",
    ),
    "constructor_refuses": (
        "backbone: {type: toy}",
        "backbone: {type: toy, dim: 3}",
        "x.yaml:3: backbone: dim must be even, got 3",
    ),
    "no_backbone": (
        "backbone: {type: toy}\n",
        "",
        "x.yaml:2: objective: 'toy' needs a backbone: add a 'backbone' section",
    ),
    "no_masker": (
        "masker: {type: toy}\n",
        "",
        "x.yaml:2: objective: 'toy' needs a masker: add a 'masker' section",
    ),
    "unused_section": (
        "objective: {type: toy}",
        "objective: {type: plain}",
        "x.yaml:4: tokenizer: unused: objective 'plain' takes no tokenizer. Remove the section",
    ),
    "untrained_targets": (
        "tokenizer: trained",
        "tokenizer: {type: toy}",
        (
            "x.yaml:4: tokenizer: has no weights, and objective 'toy' does not train it. Name a "
            "file of tokenizers/, or give 'weights', 'sha256', 'source' and 'licence'"
        ),
    ),
    "augments_a_view_that_is_not_there": (
        "objective: {type: toy}",
        "augment: {type: colour, solarise: 0.0}\nobjective: {type: toy}",
        (
            "x.yaml:2: augment: augment.blur names the view 'global', and the batch has clip, image: "
            "write out 'blur' for these"
        ),
    ),
    "unused_view": (
        "name: clip}",
        "name: clips}",
        ("x.yaml:9: data.video.views: unused: objective 'toy' reads no view 'clips', only clip, image"),
    ),
    "same_view_twice": (
        "name: image, num_frames: 1}",
        "name: clip}",
        "x.yaml:13: data.image.views: view 'clip' already comes from the 'video' stream",
    ),
    "too_few_views": (
        "name: clip}",
        "name: clip, slots: 0}",
        "x.yaml:9: data.video.views: objective 'toy' needs 1 of the view 'clip', got 0",
    ),
    "tokenizer_refuses_clip": (
        "name: clip}",
        "name: clip, size: 36}",
        (
            "x.yaml:4: tokenizer: ToyTokenizer takes clips whose (frames, height, width) are "
            "whole multiples of (1, 8, 8), got (4, 36, 36) (a clip of 4 frames at 36x36)"
        ),
    ),
    "tokenizer_refuses_image": (
        "num_frames: 1}",
        "num_frames: 1, size: 36}",
        (
            "x.yaml:4: tokenizer: ToyTokenizer takes clips whose (frames, height, width) are "
            "whole multiples of (1, 8, 8), got (1, 36, 36) (an image of 36x36)"
        ),
    ),
    "backbone_refuses_clip": (
        "backbone: {type: toy}",
        "backbone: {type: toy, patch: [3, 4, 4]}",
        (
            "x.yaml:3: backbone: ToyBackbone takes clips whose (frames, height, width) are whole "
            "multiples of (3, 4, 4), got (4, 32, 32) (a clip of 4 frames at 32x32)"
        ),
    ),
    "masker_refuses_grid": (
        "masker: {type: toy}",
        "masker: {type: toy, min_cells: 9}",
        "x.yaml:5: masker: grid (1, 4, 4) has fewer rows than 9 (an image of 32x32)",
    ),
    "misspelt_key_of_a_source": (
        "{type: none, root: a}",
        "{type: none, rooot: a}",
        "x.yaml:8: data.video.source.rooot: unknown key. Did you mean 'root'?",
    ),
    "one_test_source": (
        "batch_size: 4",
        "batch_size: 4\n    test_source: {type: none, root: c}",
        "x.yaml:12: data.image: missing 'test_source': give it for every stream or for none",
    ),
    "misspelt_key_of_a_test_source": (
        "batch_size: 4",
        "batch_size: 4\n    test_source: {type: none, rot: c}",
        "x.yaml:11: data.video.test_source.rot: unknown key. Did you mean 'root'?",
    ),
    "misspelt_key_of_a_probe": (
        "optim:",
        "  probe: {train: {type: none, root: a}, test: {type: none, rot: a}, views: {type: toy}}\noptim:",
        "x.yaml:15: data.probe.test.rot: unknown key. Did you mean 'root'?",
    ),
    "augmentation_refuses": (
        "optim:",
        "augment: {type: per_clip, flip: 2.0}\noptim:",
        "x.yaml:15: augment: flip must lie between 0 and 1, got 2.0",
    ),
    "optimizer_without_lr": (
        "{type: adamw, lr: 1e-3}",
        "{type: adamw}",
        "x.yaml:15: optim: missing 'lr' (a number)",
    ),
    "optimizer_refuses": (
        "lr: 1e-3",
        "lr: -1.0",
        "x.yaml:15: optim: lr must be above 0 and, times encoder_lr_scale, at most 1e+30, which float32 "
        "can take a step of; got -1.0",
    ),
    "schedule_refuses": (
        "steps: 5",
        "final: 0.5",
        "x.yaml:16: schedule: give the length of the run once: either 'steps' or 'epochs'",
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_named_with_its_line_and_key(old: str, new: str, expected: str) -> None:
    assert message(lambda: build.check(edited(old, new))) == expected


def test_unknown_component_lists_those_there_are() -> None:
    said = message(lambda: build.check(edited("objective: {type: toy}", "objective: {type: toyy}")))
    start, _, choices = said.partition("There are: ")
    assert start == "x.yaml:2: objective.type: unknown objective 'toyy'. Did you mean 'toy'? "
    assert {"toy", "plain", "trains"} <= set(choices.split(", "))


def test_backbone_that_takes_no_mask_under_a_masking_objective() -> None:
    said = message(lambda: build.check(edited("backbone: {type: toy}", "backbone: {type: maskless}")))
    start, _, able = said.partition("Backbones that take one: ")
    assert start == "x.yaml:3: backbone: 'maskless' takes no mask, and objective 'toy' masks its input. "
    assert {"toy", "ids"} <= set(able.split(", "))
    assert "maskless" not in able.split(", ")


def test_view_that_no_stream_gives_is_named() -> None:
    assert message(lambda: build.check(recipe_from_text(VIDEO_ONLY, "x.yaml"))) == (
        "x.yaml:6: data: objective 'toy' needs the view 'image', and the streams give 'clip'"
    )


def test_too_few_slots_of_a_view() -> None:
    text = VIDEO_ONLY.replace("objective: {type: toy}", "objective: {type: plain}")
    text = text.replace("tokenizer: trained\nmasker: {type: toy}\n", "")
    assert message(lambda: build.check(recipe_from_text(text, "x.yaml"))) == (
        "x.yaml:7: data.video.views: objective 'plain' needs 2 of the view 'clip', got 1"
    )


def test_grids_that_do_not_nest() -> None:
    backbone = "backbone: {type: toy, patch: [2, 12, 12]}"
    text = RECIPE.replace("backbone: {type: toy}", backbone).replace("name: clip", "name: clip, size: 24")
    text = text.replace("num_frames: 1", "num_frames: 1, size: 24")
    assert message(lambda: build.check(recipe_from_text(text, "x.yaml"))) == (
        "x.yaml:4: tokenizer: grids (1, 2, 2) and (1, 3, 3) do not nest (an image of 24x24)"
    )


@pytest.mark.parametrize("counted", ["epochs: 5", "steps: 5, warmup_epochs: 1"])
def test_epochs_of_a_stream_that_there_is_not(counted: str) -> None:
    text = VIDEO_ONLY.replace("steps: 5", f"{counted}, epoch_of: image")
    text = text.replace("objective: {type: toy}", "objective: {type: trains}")
    text = text.replace("backbone: {type: toy}\n", "").replace("masker: {type: toy}\n", "")
    assert message(lambda: build.check(recipe_from_text(text, "x.yaml"))) == (
        "x.yaml:10: schedule: epochs are counted of the 'image' stream, and data has only video: "
        "set 'epoch_of'"
    )


@pytest.mark.parametrize(
    ("objective", "problem"),
    [
        ("{type: classification, num_classes: 2}", ": add a 'tokenizer' section that makes them"),
        (
            "{type: plain}",
            ", and objective 'plain' has only pixels. Backbones that read those: maskless, pytorchvideo, ",
        ),
    ],
)
def test_backbone_that_reads_ids_needs_them(objective: str, problem: str) -> None:
    build.check(changed("backbone.type=ids"))
    text = VIDEO_ONLY.replace("objective: {type: toy}", f"objective: {objective}")
    text = text.replace("tokenizer: trained\nmasker: {type: toy}\n", "").replace(
        "backbone: {type: toy}", "backbone: {type: ids}"
    )
    said = message(lambda: build.check(recipe_from_text(text, "x.yaml")))
    assert said.startswith(f"x.yaml:3: backbone: 'ids' reads token ids{problem}")


def test_backbone_that_reads_ids_has_the_vocabulary_of_the_tokenizer() -> None:
    assert message(lambda: build.check(changed("backbone.type=ids", "backbone.vocab_size=16"))) == (
        "x.yaml:3: backbone: 'ids' reads ids of a vocabulary of 16, and the tokenizer's has 8: "
        "set vocab_size to 8"
    )


def test_backbone_that_reads_ids_is_asked_about_the_grid_of_ids() -> None:
    said = message(lambda: build.check(changed("backbone.type=ids", "data.video.views.size=80")))
    assert said == (
        "x.yaml:3: backbone: has positions for 8 rows of ids, got 10 (a clip of 4 frames at 80x80)"
    )


def test_untrained_tokenizer_is_allowed_where_it_is_trained() -> None:
    text = VIDEO_ONLY.replace("objective: {type: toy}", "objective: {type: trains}")
    text = text.replace("backbone: {type: toy}\n", "").replace("masker: {type: toy}\n", "")
    recipe = recipe_from_text(text.replace("tokenizer: trained", "tokenizer: {type: toy}"), "x.yaml")
    build.check(recipe)
    assert build.objective(recipe).encoder().training
