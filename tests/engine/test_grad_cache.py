"""A batch that goes in parts, all of whose samples are compared: gradients are those of the undivided one."""

import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from einops import rearrange
from torch import Tensor, nn
from vimpac_reference import VOCAB, Given, Ids, difference, gradients

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.vit import ViT
from vidssl.config.recipe import RunSpec
from vidssl.data.loader import Stream
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.views.vimpac import ClipPair
from vidssl.engine.accumulate import JointLoss, PartOutput, backward_in_parts, split_batch
from vidssl.engine.distributed import end_group
from vidssl.engine.gather import rank, sum_over_processes
from vidssl.engine.optim import SGD
from vidssl.engine.schedules import LinearDecay
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, LossOutput, Masker, Progress
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.block_3d import Block3D
from vidssl.objectives.vimpac import VIMPAC, VIMPACContrast
from vidssl.train.start import train

START = Progress(0, 1)
GRID = (3, 4, 4)
HEAD = {"head_layers": 2, "head_hidden_dim": 12, "head_dim": 6}
TOLERANCE = 1e-9
Autocast = Callable[[], AbstractContextManager[object]]


class Recorded(Masker):
    """Block3D, which hides more of some clips than of others, and what it has drawn."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []
        self._blocks = Block3D(num_blocks=2)

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        self.drawn.append(self._blocks(batch_size, grid, generator))
        return self.drawn[-1]

    def groups(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        return self._blocks.groups(batch_size, grid, generator)


def backbone(dropout: float = 0.0) -> Factorized:
    t, h, w = GRID
    sizes = {"num_frames": t, "height": h, "width": w, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return Factorized(vocab_size=VOCAB, dropout=dropout, init_std=0.2, **sizes)


def made(name: str, masker: Masker | None, dropout: float = 0.0) -> JointLoss:
    """One of the objectives that compare clips, the same at every call, in double precision."""
    torch.manual_seed(0)
    network, ids = backbone(dropout), Ids()
    if name.startswith("contrast"):
        return VIMPACContrast(network, ids, masker, **HEAD).double()
    assert masker is not None
    keys = {"both": {}, "heavy": {"contrastive_weight": 3.0}, "whole": {"contrast_on": "whole"}}
    keys["bert"] = {"replace": "bert"}
    return VIMPAC(network, ids, masker, **HEAD, **keys[name]).double()


def batch(videos: int = 8, padded: int = 0) -> Batch:
    """Ids of two clips of each video; the first few videos are padding but for a frame."""
    drawn = torch.randint(VOCAB, (2, videos, *GRID), generator=torch.Generator().manual_seed(1))
    drawn[:, :padded, 1:] = VOCAB + 1
    return Batch(views={"clip": (drawn[0], drawn[1])})


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def in_parts(objective: JointLoss, given: Batch, parts: int = 4, **keys: object) -> LossOutput:
    torch.manual_seed(3)
    return backward_in_parts(objective, split_batch(given, parts), START, generator(), **keys)


def in_one_graph(
    objective: JointLoss, given: Batch, parts: int = 4, autocast: Autocast = nullcontext
) -> Tensor:
    """The same parts, all of them held at once: the slow, obvious way."""
    torch.manual_seed(3)
    draws = generator()
    outputs = []
    for part in split_batch(given, parts):
        with autocast():
            outputs.append(objective.forward_part(part, START, draws))
    with autocast():
        loss = objective.joint_loss(torch.cat([output.vectors for output in outputs])).loss
    total = sum(float(output.weight) for output in outputs)
    for output in outputs:
        with autocast():
            own = 0 if output.own is None else output.own().loss
        loss = loss + own * float(output.weight) / max(1, total)
    loss.backward()
    return loss.detach()


def assert_same_gradients(one: nn.Module, other: nn.Module) -> None:
    found, wanted = gradients(one), gradients(other)
    assert set(found) == set(wanted)
    for key, gradient in found.items():
        assert difference(gradient, wanted[key]) < TOLERANCE, key
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-2


@pytest.mark.parametrize("name", ["both", "heavy", "whole", "contrast", "contrast whole"])
def test_gradients_loss_and_metrics_are_those_of_the_undivided_batch(name: str) -> None:
    masker = None if name == "contrast whole" else Recorded()
    cached = made(name, masker)
    output = in_parts(cached, batch(padded=3))
    undivided = None
    if masker is not None:
        both = [mask.chunk(2) for mask in masker.drawn[:4]]  # first and second clips of each part
        undivided = Given(torch.cat([first for first, _ in both] + [second for _, second in both]))
        if name != "contrast":
            counts = {int(mask.sum()) for mask in masker.drawn[:4]}
            assert len(counts) > 1
    whole = made(name, undivided)
    wanted = whole(batch(padded=3), START, generator())
    wanted.loss.backward()
    assert_same_gradients(cached, whole)
    assert float(output.loss) == pytest.approx(wanted.loss.item(), abs=TOLERANCE)
    assert list(output.metrics) == list(wanted.metrics)
    means = {key: value for key, value in wanted.metrics.items() if "perplexity" not in key}
    for key, value in means.items():
        assert float(output.metrics[key]) == pytest.approx(float(value), abs=1e-6), key
    assert output.metrics["negatives"] == 7
    for key, value in whole.state_dict().items():  # running statistics of the head
        assert difference(cached.state_dict()[key].double(), value.double()) < TOLERANCE, key


@pytest.mark.parametrize("name", ["both", "whole", "bert", "contrast"])
def test_the_second_pass_draws_the_random_numbers_of_the_first(name: str) -> None:
    masker = Recorded()
    cached, together = made(name, masker, dropout=0.3), made(name, Recorded(), dropout=0.3)
    output = in_parts(cached, batch())
    loss = in_one_graph(together, batch())
    assert float(output.loss) == pytest.approx(float(loss), abs=TOLERANCE)
    assert_same_gradients(cached, together)
    if name != "bert":
        first, second = masker.drawn[:4], masker.drawn[4:]
        assert torch.equal(torch.stack(first), torch.stack(second))
        assert not torch.equal(first[0], first[1])


def test_random_numbers_go_on_as_after_one_pass() -> None:
    both, draws = [], []
    for run in (in_parts, in_one_graph):
        torch.manual_seed(3)
        own = generator()
        objective = made("both", Recorded(), dropout=0.3)
        torch.manual_seed(3)
        if run is in_parts:
            backward_in_parts(objective, split_batch(batch(), 4), START, own)
        else:
            for part in split_batch(batch(), 4):
                objective.forward_part(part, START, own)
        both.append(own.get_state())
        draws.append(torch.rand(4))
    assert torch.equal(*both)
    assert torch.equal(*draws)


def test_gradients_add_to_those_that_are_there_and_are_scaled() -> None:
    plain, scaled = made("both", Recorded()), made("both", Recorded())
    in_parts(plain, batch())
    once = {key: gradient.clone() for key, gradient in gradients(plain).items()}
    in_parts(plain, batch())
    unscaled = in_parts(scaled, batch(), scale=lambda loss: 8 * loss)
    for key, gradient in gradients(scaled).items():
        assert difference(gradient, 8 * once[key]) < 8 * TOLERANCE, key
        assert difference(gradients(plain)[key], 2 * once[key]) < TOLERANCE, key
    assert float(unscaled.loss) < 8  # the loss that is logged is not scaled
    assert not unscaled.loss.requires_grad


def test_a_part_without_one_hidden_id_has_no_loss_of_its_own() -> None:
    class FirstFrame(Masker):
        def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
            mask = torch.zeros(batch_size, *grid, dtype=torch.bool)
            mask[:, 1:] = True
            return mask

    # one video a part: of the first two videos all that is hidden is padding
    cached, whole = made("both", FirstFrame()), made("both", FirstFrame())
    output = in_parts(cached, batch(padded=2), parts=8)
    whole(batch(padded=2), START, generator()).loss.backward()
    assert_same_gradients(cached, whole)
    assert torch.isfinite(output.loss)
    with pytest.raises(ValueError, match="no id is hidden in the whole batch"):
        in_parts(made("both", FirstFrame()), batch(padded=8))


class BatchNormed(JointLoss):
    """Compares vectors that a batch norm has seen, which counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.needs_views = {"clip": 1}
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.modes: list[bool] = []

    def forward_part(self, batch: Batch, progress: Progress, generator: torch.Generator) -> PartOutput:
        self.modes.append(torch.is_grad_enabled())
        return PartOutput(self.net(batch.views["clip"][0]), torch.zeros(()))

    def joint_loss(self, vectors: Tensor) -> LossOutput:
        return LossOutput((vectors @ vectors.t()).square().mean(), {})

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        raise NotImplementedError

    def encoder(self) -> Backbone:
        raise NotImplementedError


def test_running_statistics_count_each_part_once() -> None:
    objective = BatchNormed()
    seen = torch.rand(8, 3)
    in_parts(objective, Batch(views={"clip": (seen,)}))
    assert objective.modes == [False] * 4 + [True] * 4
    other = BatchNormed()
    for part in seen.chunk(4):
        other.net(part)
    for key, value in other.state_dict().items():
        assert torch.equal(objective.state_dict()[key], value), key


def test_every_forward_pass_has_an_autocast_of_its_own() -> None:
    """Within one, the casts that were made without gradients would serve the second pass: no gradient."""
    opened: list[str] = []

    def autocast() -> AbstractContextManager[object]:
        opened.append("")
        return torch.autocast("cpu", dtype=torch.bfloat16)

    objective, together = made("both", Recorded()).float(), made("both", Recorded()).float()
    in_parts(objective, batch(), autocast=autocast)
    assert len(opened) == 4 + 1 + 4
    in_one_graph(together, batch(), autocast=autocast)
    found, wanted = gradients(objective), gradients(together)
    assert set(found) == set(wanted)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in wanted.items():
        assert difference(found[key], gradient) < 0.01 * largest, key


def trained(folder: Path, **run: object) -> tuple[list[dict[str, float]], nn.Module]:
    """Three steps of eight moving digits, all of whose clips are compared; what was logged."""
    torch.manual_seed(0)
    network = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(1, 8, 8))
    negatives = run.pop("negatives", {"negatives": 7})
    objective = VIMPACContrast(network, **HEAD, **negatives)
    videos = MovingDigits(split="train", size=16, digit_size=12, num_frames=4, num_videos=16)
    result = train(
        objective,
        {"video": Stream(videos, ClipPair(num_frames=2, fps=None, size=16), batch_size=8)},
        optim=SGD(lr=0.01),
        schedule=LinearDecay(steps=3),
        name="cached",
        run=RunSpec(out=str(folder), log_every_steps=1, device="cpu", workers=0, **run),
    )
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], objective


def test_the_loop_keeps_all_negatives_however_a_batch_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole, one), (split, other) = trained(tmp_path), trained(tmp_path, accumulate=4)
    for step, line in enumerate(whole):
        for key in ("loss_contrast", "grad_norm", "negatives"):
            assert split[step][key] == pytest.approx(line[key], rel=1e-4), key
        assert line["negatives"] == 7
    for weight, same in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, same, rtol=1e-3, atol=1e-4)
    published = {"negatives": {"negatives": 1, "negatives_from": "part"}}
    lines, _ = trained(tmp_path, accumulate=4, **published)
    assert [line["negatives"] for line in lines] == [1] * 3
    with pytest.raises(UsageError, match=r"8 videos that meet \(batch_size over"):
        trained(tmp_path, **published)
    with pytest.raises(UsageError, match=r"8 videos that meet \(a step's batch\) give 7: make them 4"):
        trained(tmp_path, accumulate=2, negatives={"negatives": 3})


def process(number: int, folder: Path) -> None:
    """What each of two processes does with its half of the videos."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    found = {}
    for name in ("both", "whole", "contrast"):
        given = batch(padded=3)
        half = Batch(views={"clip": tuple(slot.chunk(2)[rank()] for slot in given.views["clip"])})
        masker = Recorded()
        objective = made(name, masker)
        output = backward_in_parts(objective, split_batch(half, 2), START, generator())
        averaged = {key: sum_over_processes(x) / 2 for key, x in gradients(objective).items()}
        found[name] = {
            "masks": torch.stack(masker.drawn[:2]),
            "loss": sum_over_processes(output.loss) / 2,
            "negatives": output.metrics["negatives"],
            **averaged,
        }
    torch.save(found, folder / f"{number}.pt")
    dist.barrier()
    end_group()


@pytest.mark.slow
def test_two_processes_in_parts_are_one_with_the_undivided_batch(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        mp.start_processes(process, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    for name in first:
        masks, same = (each[name].pop("masks") for each in (first, second))
        assert torch.equal(masks, same)  # each draws for both
        of_batch = rearrange(masks, "part (slot process b) t h w -> (slot process part b) t h w", slot=2, b=2)
        whole = made(name, Given(of_batch))
        wanted = whole(batch(padded=3), START, generator())
        wanted.loss.backward()
        for each in (first[name], second[name]):
            assert each.pop("negatives") == 7
            assert float(each.pop("loss")) == pytest.approx(wanted.loss.item(), abs=TOLERANCE)
            assert set(each) == set(gradients(whole))
            for key, gradient in gradients(whole).items():
                assert difference(each[key], gradient) < TOLERANCE, (name, key)
