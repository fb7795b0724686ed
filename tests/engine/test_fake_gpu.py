"""What a GPU would meet, without one: fake tensors on "cuda", and who waits for the device.

Fake tensors have a device and a shape and no content (torch's ``FakeTensorMode``). What lies on the CPU stays
real, so that masks are drawn as they are on a GPU; an operation on tensors of two devices raises. A host
that reads a value from the device waits for all that was queued there: such reads are counted by line.
"""

import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_runs import PARTS_OF_OTHERS

from docs.compatibility.table import Trials, combinations, random_batch
from vidssl.build import build
from vidssl.config.protocol import FrameOrder
from vidssl.config.recipe import Recipe
from vidssl.data.augment.batch import ColourAugment, PerClipAugment
from vidssl.data.augment.rand_augment import FinetuneAugment
from vidssl.engine.collapse import CollapseWatch
from vidssl.engine.logging import Meter
from vidssl.engine.parallel import _parameters_behind
from vidssl.errors import UsageError
from vidssl.evaluators import EVALUATORS
from vidssl.evaluators.attentive import Attentive
from vidssl.evaluators.features import encode_views
from vidssl.evaluators.knn import KNN, Retrieval
from vidssl.evaluators.linear import Linear, LinearSGD
from vidssl.evaluators.statistics import average_views, in_top, predict
from vidssl.interfaces import (
    Augment,
    Batch,
    Evaluator,
    LabelledFeatures,
    LabelledPatches,
    LossOutput,
    PatchEvaluator,
    PatchTokens,
    Progress,
)
from vidssl.interfaces.evaluator import ScoreKind
from vidssl.objectives import OBJECTIVES
from vidssl.objectives.classification import Classification
from vidssl.objectives.parts.masked_prediction import FrozenTokenizer

CUDA = torch.device("cuda")
aten = torch.ops.aten
# the host learns a value, or a size that depends on values
READS = {
    aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default,
    aten.masked_select.default, aten.equal.default, aten.is_nonzero.default, aten.bincount.default,
    aten._unique2.default, aten.unique_dim.default,
}  # fmt: skip
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
WATCHED = {*READS, *INDEXED, aten._to_copy.default}

# files of which one line may ask in a step
KNOWN = {
    "classification.py",  # class numbers are looked at before they are used
    "factorized.py",  # whether ids are padding: without any, attention needs no mask
}


class Waits(TorchDispatchMode):
    """Counts what the host waits for; every number that it asks for is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, int | None]] = set()  # file and line

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in WATCHED:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        on_gpu = any(leaf.device.type == "cuda" for leaf in given)
        by_mask = func in INDEXED and any(
            isinstance(index, Tensor) and index.dtype == torch.bool and index.device.type == "cuda"
            for index in args[1]
        )
        to_host = func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu")
        if on_gpu and (func in READS or by_mask or to_host):
            asks = [frame for frame in traceback.extract_stack() if "/vidssl/" in frame.filename]
            self.found |= {(Path(asks[-1].filename).name, asks[-1].lineno)} if asks else {("torch", 0)}
        if given and func in (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default):
            return False if given[0].dtype == torch.bool else 0.0 if given[0].is_floating_point() else 0
        return func(*args, **kwargs)


class AsOnGPU(TorchFunctionMode):
    """Runs under fake tensors what names "cuda" or is given a fake tensor, and all else for real."""

    def __init__(self, *, any_size: bool = False) -> None:
        """``any_size``: sizes may depend on values, which a step's may not."""
        super().__init__()
        shapes = ShapeEnv() if any_size else None
        self.fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes, static_shapes=True)
        self.waits = Waits()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.backward:  # torch's engine wants a real device: all gradients are there, and fake
            for parameter in _parameters_behind(args[0]):
                parameter.grad = torch.zeros_like(parameter)
            return None
        for leaf in tree_leaves((args, kwargs)):
            named = isinstance(leaf, torch.device | str) and re.match("cuda", str(leaf))
            if named or isinstance(leaf, FakeTensor):
                with self.fake, self.waits:
                    return func(*args, **kwargs)
        return func(*args, **kwargs)

    def __enter__(self):
        self.waits.__enter__()  # also of what no function mode sees, such as float(tensor)
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.waits.__exit__(*raised)

    def moved(self, tensor: Tensor) -> Tensor:
        real = tensor.detach()
        with self.fake:
            return self.fake.from_tensor(real).to(CUDA)

    def move(self, module: nn.Module) -> None:
        """Moves a network in place, as ``module.to("cuda")`` would."""
        held = [part.tokenizer for part in module.modules() if isinstance(part, FrozenTokenizer)]
        for part in [*module.modules(), *(inner for each in held for inner in each.modules())]:
            for key, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[key] = nn.Parameter(self.moved(parameter), parameter.requires_grad)
            for key, buffer in part._buffers.items():
                part._buffers[key] = None if buffer is None else self.moved(buffer)

    def batch(self, batch: Batch) -> Batch:
        views = {name: tuple(map(self.moved, slots)) for name, slots in batch.views.items()}
        labels = {
            name: {key: self.moved(each) for key, each in given.items()}
            for name, given in batch.labels.items()
        }
        return replace(batch, views=views, labels=labels)


def toy(name: str, backbone: str, folder: Path) -> Recipe:
    trials = Trials(folder)
    for one in combinations(name):
        if one.backbone in (backbone, None) and one.tokenizer in ("fsq", None):
            recipe = trials.recipe(one)
            with suppress(UsageError):
                build.check(recipe)
                return recipe
    raise AssertionError(f"no toy of {name}")


MORE = {("vimpac", "vit")}  # of what others show


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        pytest.param(name, backbone, marks=[pytest.mark.slow] * (name in PARTS_OF_OTHERS or pair in MORE))
        for pair in (*((name, "vit") for name in OBJECTIVES), ("vimpac", "factorized"))
        for name, backbone in [pair]
    ],
)
def test_a_step_stays_on_its_device_and_waits_for_it_only_where_that_is_known(
    name: str, backbone: str, tmp_path: Path
) -> None:
    recipe = toy(name, backbone, tmp_path)
    objective = build.objective(recipe, say=lambda line: None)
    gpu, generator = AsOnGPU(), torch.Generator().manual_seed(0)
    batch = gpu.batch(random_batch(recipe))
    gpu.move(objective)
    update = build.optim(recipe).update
    for training in (False, True):
        objective.train(training)
        with gpu:  # first in evaluation mode, where the very first clips are looked at
            gpu.waits.found.clear()
            output = objective(batch, Progress(1, 10), generator)
            if training:
                output.loss.backward()
                update.clip_gradients(objective.parameters())
                objective.after_step(Progress(1, 10), generator)
        assert output.loss.device.type == "cuda"
        assert {value.device.type for value in output.metrics.values()} == {"cuda"}
    files = [file for file, _ in gpu.waits.found]
    assert set(files) <= KNOWN
    assert len(files) == len(set(files)) == (name == "classification") + (backbone == "factorized")


def test_a_tensor_of_the_wrong_device_and_a_wait_are_found() -> None:
    gpu = AsOnGPU()
    clip = gpu.moved(torch.rand(2, 3))
    with gpu, pytest.raises(RuntimeError, match="device"):
        clip + torch.zeros(2, 3)
    with gpu:
        assert not bool((clip > 0).any())
    assert gpu.waits.found == {("torch", 0)}


def features(gpu: AsOnGPU, number: int = 30) -> LabelledFeatures:
    labels = torch.arange(number) % 3
    return LabelledFeatures(gpu.moved(torch.rand(number, 8)), gpu.moved(labels), 3)


PROBES: dict[str, Evaluator] = {
    "knn": KNN(k=(3, 5), backend="torch"),
    "retrieval": Retrieval(k=(1, 5), centre=True, backend="torch"),
    "linear": Linear(penalties=(1.0, 10.0), max_iterations=2),
    "linear_sgd": LinearSGD(lr=(0.1, 1.0), epochs=1),
    "attentive": Attentive(lr=(1e-3, 1e-2), epochs=1, num_heads=2),
}


@pytest.mark.parametrize("name", sorted(EVALUATORS))
def test_probes_work_on_the_device_of_the_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, generator, probe = AsOnGPU(any_size=True), torch.Generator().manual_seed(0), PROBES[name]
    train = features(gpu)
    rows = torch.arange(20), torch.arange(20, 30)
    if isinstance(probe, PatchEvaluator):  # which reads tokens from the CPU, by rows that it has there
        tokens = PatchTokens((torch.rand(30, 4, 8),), torch.arange(30)[:, None])
        patches = LabelledPatches(tokens, train.labels, 3)
        with gpu:
            chosen = Attentive(epochs=1, num_heads=2, lr=1e-3).fit(patches, generator)
            scores = {"": probe._logits([chosen], tokens, CUDA)[0]}
    else:
        # scikit-learn draws the parts from the labels themselves
        found = [tuple(map(gpu.moved, rows))]
        for module in ("linear", "held_out"):
            monkeypatch.setattr(f"vidssl.evaluators.{module}.folds", lambda *given, **keys: found)
        with gpu:
            settled, _ = probe.settled(train, generator)
            scores = settled.named_scores(train, gpu.moved(torch.rand(5, 8)), generator)
    assert {score.device.type for score in scores.values()} == {"cuda"}
    assert {score.shape[1] for score in scores.values()} == {3}


def test_features_of_clips_are_made_on_the_device(tmp_path: Path) -> None:
    orders: tuple[FrameOrder, ...] = ("normal", "reversed", "shuffled")
    gpu = AsOnGPU()
    recipe = toy("vimpac", "factorized", tmp_path)
    objective = build.objective(recipe, say=lambda line: None).eval()
    gpu.move(objective)
    tokenizer = next(part.tokenizer for part in objective.modules() if isinstance(part, FrozenTokenizer))
    clip = (random_batch(recipe).views["clip"][0] * 255).to(torch.uint8)
    kept: dict[str, Tensor] = {}
    with gpu:
        vectors, _ = encode_views(
            objective.trained_encoder(), tokenizer, iter([(torch.arange(len(clip)), {"clip": [clip]})]),
            layers="last", orders=orders, device=CUDA, autocast=False,
            keep_patches=kept.__setitem__,
        )  # fmt: skip
    assert vectors.keys() == kept.keys() == set(orders)
    assert {tensor.device.type for tensor in (*vectors.values(), *kept.values())} == {"cuda"}


@pytest.mark.parametrize("kind", ["logits", "votes", "found"])
def test_what_is_right_is_counted_on_the_device(kind: ScoreKind) -> None:
    gpu = AsOnGPU()
    scores, truth = gpu.moved(torch.rand(6, 4, 5)), gpu.moved(torch.arange(6) % 5)
    with gpu:
        one = scores[:, 0] if kind == "found" else average_views(scores, "scores", kind)
        named, among = predict(one, truth, kind), in_top(one, truth, 2, kind)
    assert {named.device.type, among.device.type} == {"cuda"}
    assert gpu.waits.found == set()


def test_what_a_run_watches_waits_only_where_it_is_logged() -> None:
    gpu = AsOnGPU()
    output = LossOutput(
        gpu.moved(torch.rand(())), {"loss": gpu.moved(torch.rand(()))}, gpu.moved(torch.rand(4, 8))
    )
    with gpu:
        watch, meter = CollapseWatch(), Meter()
        watch.add(output)
        meter.add(output.metrics, output.loss)
        assert gpu.waits.found == set()
        found = watch.measures() | meter.means()
    assert {file for file, _ in gpu.waits.found} == {"collapse.py", "logging.py"}
    assert {"rankme", "feature_std", "loss", "grad_norm"} <= found.keys()


# one round, in which 64 clips draw each of the fourteen operations
EVERY_OPERATION = {"num_ops": 1, "magnitude": 20.0, "flip": 0.5, "erase": 1.0}


@pytest.mark.parametrize(
    "make",
    [
        PerClipAugment,
        ColourAugment,
        partial(ColourAugment, flip=1.0, jitter=1.0, hue=0.1, grey=0.5, blur=1.0, solarise=1.0),
        FinetuneAugment,
        partial(FinetuneAugment, **EVERY_OPERATION),
    ],
)
def test_augmentation_happens_on_the_device_of_the_clips(make: Callable[[], Augment]) -> None:
    gpu = AsOnGPU()
    many = isinstance(make, partial) and make.func is FinetuneAugment
    clips = (torch.rand(64 if many else 2, 3, 2, 16, 16),)
    batch = gpu.batch(Batch({"clip": clips} if many else {"global": clips * 2, "local": clips}))
    with gpu:
        made = make()(batch, torch.Generator().manual_seed(0))
    assert {slot.device.type for slots in made.views.values() for slot in slots} == {"cuda"}
    # torchvision's equalisation looks whether there is anything to equalise
    assert len(gpu.waits.found) == many


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_finetuning_mixes_and_averages_on_the_device(keys: dict[str, float], tmp_path: Path) -> None:
    gpu, generator = AsOnGPU(), torch.Generator().manual_seed(0)
    recipe = toy("classification", "vit", tmp_path)
    backbone = build.backbone(recipe, say=lambda line: None)
    objective = Classification(backbone, num_classes=3, ema_momentum=0.1, label_smoothing=0.1, **keys)
    batch = gpu.batch(random_batch(recipe))
    gpu.move(objective)
    with gpu:
        output = objective.train()(batch, Progress(1, 10), generator)
        output.loss.backward()
        objective.after_step(Progress(1, 10), generator)
    assert output.loss.device.type == "cuda"
    assert {file for file, _ in gpu.waits.found} == {
        "classification.py",
        "backbone.py",
    }  # the very first clips
