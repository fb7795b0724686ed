"""Two real processes give what one gives with both batches: losses, gradients, running statistics."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from vimpac_reference import difference, gradients, load, part, toy_backbone, toy_vimpac, two_clips

from vidssl.engine.distributed import end_group
from vidssl.engine.gather import gather_rows, num_processes, rank, sum_over_processes
from vidssl.interfaces import Progress
from vidssl.objectives.vimpac import VIMPAC, info_nce

Found = dict[str, dict[str, Tensor]]  # what was done -> what came of it


def run(number: int, folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    found = {"gather": gather(), "nce": nce(), "step": half_a_step()}
    torch.save(found, folder / f"{number}.pt")
    dist.barrier()
    end_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    folder = tmp_path_factory.mktemp("processes")
    with warnings.catch_warnings():
        # forked, as importing everything anew takes half a minute; Python 3.12 warns of threads, and the
        # children use none of those that there are
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        mp.start_processes(run, (folder,), nprocs=2, start_method="fork")
    first, second = (torch.load(folder / f"{number}.pt") for number in range(2))
    return first, second


def gather() -> dict[str, Tensor]:
    x = (torch.arange(4.0).view(2, 2) + 10 * rank()).requires_grad_()
    rows, total = gather_rows(x), sum_over_processes(x)
    weight = torch.arange(8.0).view(4, 2) * (1 + rank())
    ((rows * weight).sum() + (1 + rank()) * total.square().sum() / 2).backward()
    return {"rows": rows.detach(), "total": total.detach(), "gradient": x.grad}


def test_rows_and_sums_carry_all_gradients_home(found: tuple[Found, Found]) -> None:
    first, second = (each["gather"] for each in found)
    x = torch.arange(4.0).view(2, 2)
    for each in (first, second):
        assert torch.equal(each["rows"], torch.cat((x, x + 10)))
        assert torch.equal(each["total"], 2 * x + 10)
    weight = 3 * torch.arange(8.0).view(4, 2)
    assert torch.equal(first["gradient"], weight[:2] + 3 * (2 * x + 10))
    assert torch.equal(second["gradient"], weight[2:] + 3 * (2 * x + 10))


def test_without_other_processes_nothing_happens() -> None:
    x = torch.ones(2, 2)
    assert (num_processes(), rank()) == (1, 0)
    assert gather_rows(x) is x
    assert sum_over_processes(x) is x


def nce() -> dict[str, Tensor]:
    golden = part(load("nce"), "two_ranks/")
    features = golden[f"features_rank{rank()}"].requires_grad_()
    loss = 0.4 * info_nce(*features.chunk(2), 0.2).loss
    loss.backward()
    return {"loss": loss.detach()[None], "gradient": features.grad}


def test_info_nce_of_two_processes_matches_the_release(found: tuple[Found, Found]) -> None:
    golden = part(load("nce"), "two_ranks/")
    for number, each in enumerate(found):
        assert difference(each["nce"]["loss"], golden[f"loss_rank{number}"]) < 1e-6
        assert difference(each["nce"]["gradient"], golden[f"grad_rank{number}"]) < 1e-6
    mean = (found[0]["nce"]["loss"] + found[1]["nce"]["loss"]) / 2
    assert difference(mean, golden["single_process_loss"]) < 1e-6


def one_step(videos: slice) -> tuple[VIMPAC, dict[str, Tensor]]:
    """A step of the whole objective in float64, on some of the golden step's videos."""
    golden = load("pretrain_step")
    ids = golden["in/codes_two_clips"][videos].transpose(0, 1).flatten(0, 1)
    hidden = golden["in/labels"] != -100  # of all videos: each process draws for all
    objective = toy_vimpac(toy_backbone("model_T_HW"), part(golden, "state/"), hidden).double()
    output = objective(two_clips(ids), Progress(0, 1), torch.Generator())
    output.loss.backward()
    statistics = {key: x for key, x in objective.state_dict().items() if "running" in key}
    return objective, {"loss": output.loss.detach(), "negatives": output.metrics["negatives"], **statistics}


def half_a_step() -> dict[str, Tensor]:
    objective, found = one_step(slice(2 * rank(), 2 * rank() + 2))
    averaged = {}
    for key, gradient in gradients(objective).items():
        dist.all_reduce(gradient)
        averaged[f"gradient of {key}"] = gradient / 2
    return {**found, **averaged}


def test_a_step_of_two_processes_is_that_of_one_with_both_batches(found: tuple[Found, Found]) -> None:
    first, second = (each["step"] for each in found)
    objective, whole = one_step(slice(None))
    assert first["negatives"] == second["negatives"] == whole["negatives"] == 3
    assert float(first["loss"] + second["loss"]) / 2 == pytest.approx(float(whole["loss"]), abs=1e-12)
    for key in whole:
        if "running" in key:
            assert difference(first[key], whole[key]) < 1e-12
    for key, gradient in gradients(objective).items():
        assert difference(first[f"gradient of {key}"], gradient) < 1e-12, key
