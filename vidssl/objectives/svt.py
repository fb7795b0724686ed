"""SVT: a student learns to say of one view of a video what a teacher, its own average, says of another."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vidssl.engine.schedules import cosine_between
from vidssl.engine.speed import full_precision
from vidssl.interfaces import Backbone, Band, Batch, LossOutput, Objective, Progress, Watched, Yardstick
from vidssl.layers.transformer import BatchNorm
from vidssl.objectives.parts.distillation import (
    CentredTargets,
    CollapseMonitor,
    Correspondence,
    DinoHead,
    Projector,
    SinkhornTargets,
    TeacherTemp,
    check_shares,
    distillation_bands,
    follow,
    match_views,
    needed_views,
    pair_terms,
    read_slots,
)


class SVT(Objective, Watched):
    """Matches views of a video that differ in space, time and frame rate (SVT, Sec. 3.2 and 3.3).

    A student and a teacher have the same backbone and head. The student's probabilities over ``out_dim``
    prototypes are to be those that the teacher gives another view of the same clip; the teacher's
    parameters are a moving average of the student's. What is saved and evaluated is the teacher's backbone.
    All slots that the streams give are used, in published settings two of ``global``, eight of ``local``.

    The loss is the mean over all pairs of views that are matched. Eq. 1 to 3 add them up instead: the same
    weights among them, 9 times the scale. The teacher sees all global views, as in the published code; the
    text routes one of them through it at random.

    Metrics:

    - ``loss``; ``loss_gg``, ``loss_lg``, ... of each correspondence alone. ln(out_dim) is what a student
      pays that gives all prototypes the same share.
    - ``teacher_entropy``: of the teacher's targets, in nats, mean over clips; ``batch_entropy``: of their
      mean over the batch. A healthy teacher is sure of each clip (low) and of each in another way (high).
      ``..._share`` is the same over ln(out_dim).
    - ``teacher_student_kl``: loss less ``teacher_entropy``, what the student could still win; of both it is
      the mean over pairs of views where every teacher's view is in as many of them.
    - ``centre_norm``: length of the centre, where there is one.
    - ``feature_std`` and ``rankme``: see ``collapse.feature_std`` and ``collapse.rank_me``; of the student's
      global views where it sees any. RankMe is that of the first view of the last 512 clips, taken anew
      every 20 steps; in evaluation mode that of the batch, whose size then bounds it.

    Signs of collapse in training are said as they come; ``distillation_bands`` has the rules.

    Args:
        out_dim: K, prototypes.
        head_hidden: width of the head's MLP.
        bottleneck: width before the prototypes.
        head_layers: linear layers before the prototypes.
        head_norm: batch norm in the head. Published without; small runs need it (measured).
        norm_last_layer: whether prototypes keep length 1.
        freeze_last_layer_epochs: epochs in which the prototypes do not learn.
        student_temp: temperature of the student's softmax.
        teacher_temp: of the teacher's.
        warmup_teacher_temp: the teacher's in epoch 0, from where a line leads to ``teacher_temp``; null for
            no such line. Evaluation mode takes ``teacher_temp`` throughout.
        warmup_teacher_temp_epochs: epochs of that line, both ends included.
        teacher_momentum: share of itself that the teacher keeps in the first step; it moves to 1 along half
            a cosine.
        teacher_mode: "eval" for a teacher without stochastic depth, "train" as published, with it. Batch norm
            takes the statistics of the teacher's own batch in either, as in DINO and BYOL.
        targets: "centre" as published, or "sinkhorn" as in DINOv2.
        centre_momentum: share of itself that the centre keeps.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp.
        correspondences: pairs of views that are matched, each as the student's view and the teacher's: lg
            leads from local to global (Table 4). A view is never matched with itself.

    Raises:
        ValueError: if a key is out of its range, or the backbone reads token ids.
    """

    toy: ClassVar = {"out_dim": 16, "head_hidden": 16, "bottleneck": 8, "freeze_last_layer_epochs": 0}

    follows_length = True  # the teacher's momentum

    def __init__(
        self,
        backbone: Backbone,
        *,
        out_dim: int = 65536,
        head_hidden: int = 2048,
        bottleneck: int = 256,
        head_layers: int = 3,
        head_norm: bool = False,
        norm_last_layer: bool = True,
        freeze_last_layer_epochs: int = 1,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float | None = None,
        warmup_teacher_temp_epochs: int = 0,
        teacher_momentum: float = 0.996,
        teacher_mode: Literal["eval", "train"] = "eval",
        targets: Literal["centre", "sinkhorn"] = "centre",
        centre_momentum: float = 0.9,
        sinkhorn_iterations: int = 3,
        correspondences: tuple[Correspondence, ...] = ("lg", "gg"),
    ) -> None:
        super().__init__()
        if backbone.input_kind != "pixels":
            raise ValueError("svt matches views of pixels, and this backbone reads token ids")
        check_shares({"teacher_momentum": teacher_momentum, "centre_momentum": centre_momentum})
        if freeze_last_layer_epochs < 0 or head_layers < 1 or student_temp <= 0:
            raise ValueError(
                "freeze_last_layer_epochs cannot be negative, head_layers is at least 1 and student_temp "
                f"above 0, got {freeze_last_layer_epochs}, {head_layers} and {student_temp}"
            )
        self.needs_views: Mapping[str, int] = needed_views(correspondences)
        self.splits_batch = targets == "centre" and not head_norm  # the others look at a batch as a whole
        self.correspondences = correspondences
        self.freeze_last_layer_epochs = freeze_last_layer_epochs
        self.student_temp = student_temp
        self.teacher_temp = TeacherTemp(teacher_temp, warmup_teacher_temp, warmup_teacher_temp_epochs)
        self.teacher_momentum = teacher_momentum
        self.teacher_mode = teacher_mode
        widths = (backbone.embed_dim, *(head_hidden,) * (head_layers - 1), bottleneck)
        head = DinoHead(widths, out_dim, batch_norm=head_norm, norm_last_layer=norm_last_layer)
        self.targets = _targets(targets, out_dim, centre_momentum, sinkhorn_iterations)
        self.monitor = CollapseMonitor(out_dim, backbone.embed_dim)
        self.student = Projector(backbone, head)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SVT":
        """As of every module, but that the teacher stays as ``teacher_mode`` has it."""
        super().train(mode)
        if mode and self.teacher_mode == "eval":
            self.teacher.eval()
            for module in self.teacher.modules():
                if isinstance(module, BatchNorm | _BatchNorm):
                    module.train()
        return self

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        num_slots = {name: len(batch.views[name]) for name in self.needs_views}
        matching = match_views(num_slots, self.correspondences)
        with torch.no_grad():
            _, answers = self.teacher(read_slots(batch, matching.teacher))
        features, logits = self.student(
            read_slots(batch, matching.student),
            freeze_last=self.training and progress.epoch < self.freeze_last_layer_epochs,
        )
        # measurements in the course of a run are to be compared: they all take the last temperature
        temp = self.teacher_temp.at(progress.epoch) if self.training else self.teacher_temp.last
        # softmax and centre in full precision whatever the networks run in
        targets = self.targets(full_precision(answers).flatten(0, 1), temp, progress.step)
        log_probs = (full_precision(logits) / self.student_temp).log_softmax(dim=-1)
        terms = pair_terms(targets.view_as(answers), log_probs)
        loss = matching.mean(terms, self.correspondences)
        metrics = {"loss": loss.detach()}
        for name in self.correspondences:
            metrics[f"loss_{name}"] = matching.mean(terms.detach(), [name])
        num_global = sum(name == "global" for name, _ in matching.student)
        metrics |= self.monitor(loss, targets, features[: num_global or None], progress)
        return LossOutput(loss, metrics | self.targets.metrics())

    def encoder(self) -> Backbone:
        return self.teacher.backbone

    def trained_encoder(self) -> Backbone:
        return self.student.backbone

    def bands(self) -> tuple[Band, ...]:
        return distillation_bands(self.monitor.num_prototypes)

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """The teacher follows the student, and the centre what the teacher has answered in this step."""
        follow(self.teacher, self.student, self.teacher_momentum_at(progress))
        self.targets.after_step()

    def teacher_momentum_at(self, progress: Progress) -> float:
        """Share of itself that the teacher keeps after this step."""
        return cosine_between(self.teacher_momentum, 1.0, progress.step, progress.total_steps)

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(
                metric="loss",
                label="loss between views",
                says="views of a video get the same answer of student and teacher at a loss of {}",
                baselines={"one answer for all clips": self.monitor.log_k},
                lower_is_better=True,
            ),
            Yardstick(
                metric="feature_std",
                label="deviation of features",
                says="features of different clips deviate by {} of 1",
                baselines={"all alike": 0.0},
            ),
        )


def _targets(
    kind: Literal["centre", "sinkhorn"], num_prototypes: int, centre_momentum: float, iterations: int
) -> CentredTargets | SinkhornTargets:
    if kind == "centre":
        if iterations != 3:
            raise ValueError("targets 'centre' takes no Sinkhorn iterations: leave out sinkhorn_iterations")
        return CentredTargets(num_prototypes, centre_momentum)
    if kind == "sinkhorn":
        if centre_momentum != 0.9:
            raise ValueError("targets 'sinkhorn' has no centre: leave out centre_momentum")
        return SinkhornTargets(iterations)
    raise ValueError(f"targets must be 'centre' or 'sinkhorn', got {kind!r}")
