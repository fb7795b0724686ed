"""Schedules against the papers' released code, and what they refuse."""

import json
from pathlib import Path

import pytest

from vidssl.engine.schedules import (
    Cosine,
    LinearDecay,
    MultiStep,
    WarmupCosine,
    cosine_between,
    epochs_before,
    multistep_factor,
)
from vidssl.interfaces import Progress

GOLDEN = Path(__file__).parents[1] / "golden"
BEVT = json.loads((GOLDEN / "bevt" / "schedule.json").read_text())
SVT = json.loads((GOLDEN / "svt" / "schedules.json").read_text())
VIMPAC = json.loads((GOLDEN / "vimpac" / "schedule.json").read_text())


@pytest.mark.parametrize("name", ["pretrain_two_stream", "finetune_k400", "finetune_ssv2"])
def test_cosine_gives_the_rates_of_bevt(name):
    golden = BEVT[name]
    plan = Cosine(
        epochs=golden["epochs"],
        warmup_epochs=golden["warmup_epochs"],
        warmup_start=golden["warmup_ratio"],
        moves_every="epoch" if golden["cosine_by_epoch"] else "step",
    ).plan({"video": golden["iters_per_epoch"]})
    assert plan.total_steps == golden["epochs"] * golden["iters_per_epoch"]
    for step, lr in golden["points"]:
        assert golden["base_lr"] * plan.factor(step) == pytest.approx(lr, rel=1e-9), step


@pytest.mark.parametrize("name", ["lr", "lr_no_warmup"])
def test_warmup_cosine_gives_the_rates_of_svt(name):
    golden = SVT[name]
    peak = golden["scaled_base"]
    plan = WarmupCosine(
        epochs=SVT["epochs"], warmup_epochs=golden["warmup_epochs"], final=golden["final"] / peak
    ).plan({"video": SVT["iterations_per_epoch"]})
    found = [peak * plan.factor(step) for step in range(plan.total_steps)]
    assert found == pytest.approx(golden["values"], rel=0, abs=1e-12)


@pytest.mark.parametrize("name", ["weight_decay_paper", "weight_decay_code_default", "ema_momentum"])
def test_a_cosine_between_two_values_is_that_of_svt(name):
    golden = SVT[name]
    found = [cosine_between(golden["base"], golden["final"], step, 1000) for step in range(1000)]
    assert found == pytest.approx(golden["values"], rel=0, abs=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "small_pretrain_linear",
        "large_pretrain_linear",
        "finetune_small_linear",
        "linear_warmup_steps_7",
        "constant",
    ],
)
def test_linear_gives_the_rates_of_vimpac(name):
    golden = VIMPAC[name]
    warmup = golden["warm_up_argument"]
    key = "warmup_steps" if isinstance(warmup, int) else "warmup_share"
    final = 1.0 if name == "constant" else 0.0
    plan = LinearDecay(steps=golden["total_updates"], final=final, **{key: warmup}).plan({"video": 1.0})
    found = [golden["peak"] * plan.factor(step) for step in range(plan.total_steps)]
    assert found == pytest.approx(golden["lr"], rel=1e-9, abs=1e-15)
    assert golden["peak"] * plan.factor(plan.total_steps) == pytest.approx(golden["after_last"], abs=1e-15)


def test_multistep_drops_at_the_epochs_of_svt_finetuning():
    plan = MultiStep(epochs=15, drop_epochs=(11, 14)).plan({"video": 298.04})
    assert plan.total_steps == round(15 * 298.04)
    first, second = 3279, 4173  # the first steps at or behind 11 * 298.04 = 3278.44 and 14 * 298.04 = 4172.56
    assert [plan.factor(step) for step in (0, first - 1, first, second - 1, second)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01]
    )


def test_multistep_counts_steps_and_warms_up():
    plan = MultiStep(steps=10, drop_steps=(6,), gamma=0.5, warmup_steps=2, warmup_start=0.2).plan(
        {"video": 5}
    )
    assert [plan.factor(step) for step in (0, 1, 2, 5, 6, 9)] == pytest.approx([0.2, 0.6, 1, 1, 0.5, 0.5])
    assert multistep_factor(6, (6, 7), 0.5, 8, 0.0) == pytest.approx(0.5 * 0.75)


def test_each_way_to_count_a_warmup_gives_the_same():
    plans = [
        Cosine(epochs=4, **warmup).plan({"video": 25.0})
        for warmup in ({"warmup_steps": 10}, {"warmup_epochs": 0.4}, {"warmup_share": 0.1})
    ]
    curves = [[plan.factor(step) for step in range(100)] for plan in plans]
    assert curves[0] == curves[1] == curves[2]
    assert curves[0][0] == pytest.approx(0.1)


def test_a_plan_knows_the_steps_of_an_epoch_of_the_stream_that_it_counts():
    lengths = {"video": 20.0, "image": 7.5}
    assert Cosine(steps=60).plan(lengths).steps_per_epoch == 20.0
    assert LinearDecay(epochs=2, epoch_of="image").plan(lengths).steps_per_epoch == 7.5
    # a recipe of images alone that counts steps: there is no other epoch
    assert WarmupCosine(steps=60).plan({"image": 7.5}).steps_per_epoch == 7.5


def test_a_step_that_an_epoch_begins_with_belongs_to_it():
    length = 10 / 3
    assert [epochs_before(step, length) for step in (0, 3, 4, 6, 7, 10, 100, 1000)] == [
        0,
        0,
        1,
        1,
        2,
        3,
        30,
        300,
    ]
    assert epochs_before(35, 7 / 3) == 15  # 35 / (7 / 3) comes out just below
    assert Progress(35, 100, 7 / 3).epoch == 15


def test_a_cosine_by_epochs_counts_a_length_in_steps_too():
    by_steps = Cosine(steps=40, moves_every="epoch").plan({"video": 10})
    by_epochs = Cosine(epochs=4, moves_every="epoch").plan({"video": 10})
    curve = [by_steps.factor(step) for step in range(40)]
    assert curve == [by_epochs.factor(step) for step in range(40)]
    assert len(set(curve)) == 4


@pytest.mark.parametrize("schedule", [Cosine, WarmupCosine, LinearDecay])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either 'steps' or 'epochs'"),
        ({"steps": 5, "epochs": 1.0}, "either 'steps' or 'epochs'"),
        ({"steps": 5, "warmup_steps": 1, "warmup_epochs": 1.0}, "give the warm-up once"),
        ({"steps": 5, "warmup_share": 0.1, "warmup_epochs": 1.0}, "give the warm-up once"),
        ({"steps": 0}, "longer than nothing"),
        ({"steps": 5, "warmup_steps": -1}, "negative"),
    ],
)
def test_schedules_refuse_what_cannot_be_meant(schedule, keys, message):
    with pytest.raises(ValueError, match=message):
        schedule(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give the drops of the rate once"),
        ({"drop_steps": (3,), "drop_epochs": (1.0,)}, "give the drops of the rate once"),
        ({"drop_steps": ()}, "must rise"),
        ({"drop_steps": (4, 3)}, "must rise"),
        ({"drop_epochs": (0.0, 1.0)}, "above 0"),
    ],
)
def test_multistep_refuses_drops_that_cannot_be_meant(keys, message):
    with pytest.raises(ValueError, match=message):
        MultiStep(steps=10, **keys)


def test_plans_refuse_what_does_not_fit_the_run_or_the_data():
    with pytest.raises(ValueError, match="does not fit"):
        Cosine(steps=5, warmup_steps=5).plan({"video": 1})
    with pytest.raises(ValueError, match="drop at step 30, and the run ends after 30"):
        MultiStep(epochs=3, drop_epochs=(3,)).plan({"video": 10})
    for schedule in (
        Cosine(epochs=5),
        Cosine(steps=5, moves_every="epoch"),
        WarmupCosine(steps=5, warmup_epochs=1),
        MultiStep(steps=5, drop_epochs=(1,)),
    ):
        with pytest.raises(ValueError, match="epoch_of"):
            schedule.plan({"image": 1})


def test_a_warmup_as_long_as_a_run_in_steps_is_refused_before_data_are_opened():
    for keys, said in (
        (
            {"warmup_steps": 50},
            "50 steps does not fit into a run of 20; shorten it with schedule.warmup_steps=2",
        ),
        (
            {"warmup_share": 1.0},
            "20 steps does not fit into a run of 20; shorten it with schedule.warmup_share",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            Cosine(steps=20, **keys)
    with pytest.raises(ValueError, match=r"shorten it with schedule\.warmup_epochs"):
        Cosine(epochs=2, warmup_epochs=2).plan({"video": 10})
