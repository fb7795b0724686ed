"""A step whose loss or gradient is no number leaves no trace, is counted, and ends a run of many of them."""

import copy
import io
import json
import math
import os
import platform
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from stumbling import write_recipe
from torch import Tensor, nn
from toy_runs import BY_DEFAULT, make_world

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.data.loader import Loader
from vidssl.engine.checkpoint import read_tensors, save_tensors, tensors_digest
from vidssl.engine.distributed import end_group, here as processes_here
from vidssl.engine.guard import Attempt, Conditions, Guard, Skips, read_capture, save_capture
from vidssl.engine.process import file_sha256, sole_process
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, LossOutput, Objective, Progress
from vidssl.train import start
from vidssl.train.run import train_recipe

NAN, ONE = torch.tensor(math.nan), torch.tensor(1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of videos, which becomes the working folder of every test."""
    return write_recipe(tmp_path_factory.mktemp("guard"))


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def train(*overrides: str) -> tuple[RunFolder, Objective, str]:
    """A run of the recipe, its objective, and all that was said."""
    said = io.StringIO()
    console = Console(width=10_000, file=said)
    objective, result = train_recipe(load_recipe("stumbling.yaml", overrides), console)
    return RunFolder(result.folder), objective, said.getvalue()


# the guard by itself


class Buffered(Objective):
    """Buffers of several kinds, all of which a forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        self.count += 1
        self.hidden = self.hidden + 1  # another tensor under the name
        return LossOutput(self.norm(torch.randn(4, 2)).sum(), {})

    def encoder(self):
        return self.norm


def guard_of(objective: Objective, **keys: object) -> tuple[Guard, Skips, list[str], list[Attempt]]:
    skips, said, captured = Skips(), list[str](), list[Attempt]()

    def capture(attempt: Attempt) -> Path:
        captured.append(attempt)
        return Path("there")

    settings = {"most_in_a_row": 3, "say": lambda step, text: said.append(text), "capture": capture, **keys}
    return Guard(objective, torch.Generator(), skips, **settings), skips, said, captured


def buffers_of(objective: Objective) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in objective.named_buffers()}


def step_of(objective: Objective, guard: Guard, number: int = 0) -> None:
    guard.begin(Progress(number, 10), Batch({}))
    objective(Batch({}), Progress(number, 10), torch.Generator())


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(NAN, ONE), (ONE, NAN), (torch.tensor(math.inf), ONE), (NAN, NAN)]
)
def test_buffers_are_put_back_where_a_step_is_no_number(loss: Tensor, grad_norm: Tensor) -> None:
    objective = Buffered()
    guard, skips, said, _ = guard_of(objective)
    step_of(objective, guard)
    assert guard.passes(ONE, ONE)
    before = buffers_of(objective)
    assert before["count"].tolist() == [1, 1, 1]
    assert before["hidden"].tolist() == [1, 1]
    step_of(objective, guard, 1)
    assert not guard.passes(loss, grad_norm)
    assert {name: buffer.tolist() for name, buffer in buffers_of(objective).items()} == {
        name: buffer.tolist() for name, buffer in before.items()
    }
    assert (skips.total, skips.in_a_row) == (1, 1)
    assert said == [
        f"step 2: the loss is {float(loss):.4g}, the gradient norm {float(grad_norm):.4g}. "
        "The step is not taken (1 in a row, 1 in all)."
    ]


def test_so_many_in_a_row_stop_the_run_and_leave_a_capture() -> None:
    objective = Buffered()
    guard, skips, said, captured = guard_of(objective)
    for number, loss in enumerate([NAN, NAN, ONE, NAN, NAN]):
        step_of(objective, guard, number)
        assert guard.passes(loss, ONE) == bool(loss == 1)
    assert (skips.total, skips.in_a_row, len(captured)) == (4, 2, 0)
    before = buffers_of(objective)
    step_of(objective, guard, 5)
    with pytest.raises(
        UsageError, match=r"step 6: the loss is nan.* for 3 steps in a row.*vidssl replay there"
    ):
        guard.passes(NAN, ONE)
    assert len(said) == 4
    (attempt,) = captured
    assert attempt.progress.step == 5
    assert torch.equal(attempt.state["count"], before["count"])
    assert skips.metrics() == {"skipped_steps": 5.0}


def test_the_random_states_are_those_before_the_step() -> None:
    guard, _, _, captured = guard_of(Buffered(), most_in_a_row=1)
    torch.manual_seed(5)
    guard.begin(Progress(0, 1), Batch({}))
    expected = torch.rand(3)
    with pytest.raises(UsageError):
        guard.passes(NAN, ONE)
    torch.set_rng_state(captured[0].random["cpu"])
    assert torch.equal(torch.rand(3), expected)


def test_another_process_s_step_is_not_taken_either() -> None:
    objective = Buffered()
    answers = iter((True, False))  # a loss or gradient elsewhere is not finite; the weights everywhere are
    guard, skips, said, _ = guard_of(objective, agree=lambda flag: next(answers))
    step_of(objective, guard)
    assert not guard.passes(ONE, ONE)
    assert int(objective.count.sum()) == 0
    assert skips.total == 1
    assert "another process's loss or gradient is not finite" in said[0]


def test_an_overflow_under_a_scaled_loss_is_no_mishap() -> None:
    objective = Buffered()
    guard, skips, said, _ = guard_of(objective)
    step_of(objective, guard)
    assert not guard.passes(ONE, torch.tensor(math.inf), scale=1024.0)
    assert int(objective.count.sum()) == 0
    assert (skips.total, skips.in_a_row, skips.scaled_down, said) == (0, 0, 1, [])
    assert skips.metrics() == {"scaled_down_steps": 1.0}
    assert guard.passes(ONE, ONE, scale=512.0)
    assert not guard.passes(ONE, NAN, scale=1.0)  # a scale that cannot be the cause
    assert not guard.passes(NAN, NAN, scale=1024.0)  # nor is it of a loss that is none
    assert (skips.total, skips.scaled_down) == (2, 1)


def test_counts_go_on_with_the_run() -> None:
    other = Skips()
    other.load(Skips(5, 2, 1).tensors())
    assert other == Skips(5, 2, 1)
    other.load({})
    assert other == Skips(5, 2, 1)
    assert Skips().metrics() == {}


# every objective


@pytest.fixture(scope="module")
def toys(world: Path) -> Path:
    """Recipes of every objective."""
    make_world(world)
    return world


def stepped(objective: Objective, recipe: Recipe, guard: Guard, batch: Batch, number: int, bad: bool) -> None:
    """One step as the loop takes it, with random states of its own."""
    torch.manual_seed(number)
    generator = torch.Generator().manual_seed(number)
    progress = Progress(number, 6, 2.5)
    guard.begin(progress, batch)
    output = objective(batch.to(torch.device("cpu")), progress, generator)
    objective.zero_grad()
    output.loss.backward()
    if not guard.passes(output.loss.detach(), NAN if bad else ONE):
        return
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    objective.after_step(progress, generator)


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_a_step_that_is_not_taken_leaves_no_trace_in_any_objective(name: str, toys: Path) -> None:
    """After a good step and a bad one, a good one does what it does without the bad one."""
    recipe = load_recipe(f"{name}.yaml")
    torch.manual_seed(0)
    one = build.objective(recipe, say=lambda text: None).train()
    other = copy.deepcopy(one)
    with Loader(build.streams(recipe)) as loader:
        batches = [next(loader) for _ in range(3)]
    for objective, numbers in ((one, (0, 1, 2)), (other, (0, 2))):
        guard, *_ = guard_of(objective)
        for number in numbers:
            stepped(objective, recipe, guard, batches[number], number, bad=number == 1)
    theirs = dict(other.named_buffers()) | other.state_dict()
    for key, value in (dict(one.named_buffers()) | one.state_dict()).items():
        if key != "recent_counts":  # a window over steps, in which the bad one is a gap
            assert torch.equal(value, theirs[key]), key


# in a run


def test_a_run_goes_on_without_the_steps_that_are_no_numbers() -> None:
    run, objective, said = train()
    assert int(objective.hooked) == 4
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())
    _, state = read_tensors(run.state_path(6))
    steps = {int(value) for key, value in state.items() if key.startswith("optimizer.step.")}
    assert steps == {4}
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record.get("skipped_steps") for record in records] == [None, 2, 2]
    assert "loss" not in records[1]  # both of its steps were skipped
    assert records[1]["clips_per_second"] > 0
    assert math.isfinite(records[2]["loss"])
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in events] == [(3, "skipped"), (4, "skipped")]
    assert events[1]["text"].endswith("The step is not taken (2 in a row, 2 in all).")
    assert events[1]["text"] in said
    assert not run.captures.exists()


def test_a_run_that_took_no_step_is_an_error_and_one_that_ended_so_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["stumbling.yaml", "name=none", "objective.bad_steps=[0, 1, 2, 3, 4, 5]", "schedule.steps=2"]
    assert main(["train", *words]) == 2
    shown = capsys.readouterr()
    assert "no step was taken: no loss and gradient of 2 steps was finite" in shown.err
    assert "Trained" not in shown.out
    assert main(["train", *words, "objective.bad_steps=[1]"]) == 0
    shown = capsys.readouterr().out
    assert "; skipped as not finite: 1." in shown
    assert "The weights since step 1 gave no finite loss" in shown


def test_states_saved_while_steps_are_skipped_do_not_displace_the_last_that_works() -> None:
    run, _, _ = train(
        "objective.bad_steps=[2, 3, 4, 5]", "run.checkpoint_every_steps=1", "run.keep_checkpoints=1"
    )
    assert [path.stem for path in run.states()] == [f"step-{step:06d}" for step in range(2, 7)]


def test_weights_that_are_not_finite_are_not_saved_and_end_the_run() -> None:
    """The sixth step is taken with a finite loss and gradient, and leads to NaN."""
    recipe = load_recipe("stumbling.yaml", ["name=blown", "objective.bad_steps=[]", "run.keep_checkpoints=1"])
    streams, objective = build.streams(recipe), build.objective(recipe)
    hooked = objective.after_step

    def after_step(progress: Progress, generator: torch.Generator) -> None:
        hooked(progress, generator)
        if progress.step == blown:
            objective.head.bias.data[0] = math.nan

    def run_it() -> None:
        start.train(
            objective,
            streams,
            optim=build.optim(recipe),
            schedule=build.schedule(recipe),
            name="blown",
            run=replace(recipe.run, checkpoint_every_steps=4),
            console=Console(quiet=True),
        )

    objective.after_step = after_step
    blown = 5
    with pytest.raises(UsageError, match=r"step 6: 1 tensor \(head.bias\) .* finite checkpoint is .*000004"):
        run_it()
    assert [path.name for path in Path("runs/blown/checkpoints").iterdir()] == ["step-000004.safetensors"]
    blown = 0  # from then on nothing can be finite: the run ends with the first skipped step, not the tenth
    with torch.no_grad():
        objective.head.bias.zero_()
    with pytest.raises(UsageError, match=r"step 2: the loss is nan.*1 tensor \(head.bias\) hold NaN or inf"):
        run_it()


def test_a_run_resumes_from_its_last_finite_state() -> None:
    """Earlier versions saved states whose weights or moments are not finite."""
    words, quiet = (
        ["name=older", "run.checkpoint_every_steps=2", "run.keep_checkpoints=3"],
        Console(quiet=True),
    )
    recipe = load_recipe("stumbling.yaml", ["objective.bad_steps=[]", *words])
    _, whole = train_recipe(recipe, quiet)
    run = RunFolder(whole.folder)
    metadata, tensors = read_tensors(run.checkpoint_path(6))
    tensors["objective.head.bias"][0] = math.inf
    save_tensors(run.checkpoint_path(6), tensors, metadata)
    state, kept = read_tensors(run.state_path(6))
    state["weights_sha256"] = file_sha256(run.checkpoint_path(6))
    state["digest"] = tensors_digest(kept, {key: text for key, text in state.items() if key != "digest"})
    save_tensors(run.state_path(6), kept, state)
    said = io.StringIO()
    _, again = train_recipe(recipe, Console(width=10_000, file=said), resume=run.path)
    assert "step-000006.safetensors: not finite (NaN or inf): 1 tensor (head.bias) of " in said.getvalue()
    assert "Resumes after step 4 of 6." in said.getvalue()
    assert again.skipped == 0


def test_a_run_that_is_trained_already_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run, _, _ = train("name=twice")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with sole_process(run.path, print):
        assert main(["train", "--resume", str(run.path)]) == 2
    assert f"process {os.getpid()} on {platform.node()}" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert {path.name for path in after if after[path] != before.get(path)} <= {".lock"}


def test_counts_and_rows_are_kept_over_a_resumption() -> None:
    """Stopped between two skipped steps: the second makes two in a row."""
    words = ["run.max_skipped_steps=2"]
    quiet = Console(quiet=True)
    _, half = train_recipe(load_recipe("stumbling.yaml", words), quiet, stop_after=3)
    with pytest.raises(UsageError, match="for 2 steps in a row"):
        train_recipe(load_recipe("stumbling.yaml", words), quiet, resume=half.folder)
    events = (half.folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(event)["step"] for event in events] == [3]


# with real processes


def one_of_two(
    number: int, folder: str, queue: "mp.SimpleQueue[tuple[int, list[bool], list[int], str]]"
) -> None:
    """Three steps, of which the second process's second and third losses are no numbers."""
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=number, world_size=2, timeout=timedelta(seconds=60)
    )
    objective, world = Buffered(), processes_here()
    capture = partial(save_capture, RunFolder(Path(folder)), {}, Conditions("", "fp32", "cpu", rank=number))
    guard, *_ = guard_of(objective, most_in_a_row=2, agree=world.any, capture=capture)
    passed, counts, message = [], [], ""
    for step, loss in enumerate([ONE, NAN if number else ONE, NAN if number else ONE]):
        step_of(objective, guard, step)
        try:
            passed.append(guard.passes(loss, ONE))
        except UsageError as error:
            message = str(error)
        counts.append(int(objective.count[0]))
    queue.put((number, passed, counts, message))
    end_group()


@pytest.mark.slow
def test_processes_skip_together_and_the_one_at_fault_leaves_the_capture(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=one_of_two, args=(n, str(tmp_path), queue)) for n in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
    assert [passed for _, passed, _, _ in found] == [[True, False]] * 2
    assert [counts for _, _, counts, _ in found] == [[1, 1, 1]] * 2
    assert "another process's loss or gradient is not finite" in found[0][3]
    assert "the loss is nan" in found[1][3]
    (path,) = (tmp_path / "captures").iterdir()
    assert read_capture(path).conditions.rank == 1
