"""The section ``run`` of a recipe: its dataclass is the schema."""

from dataclasses import dataclass
from typing import Literal

from vidssl.schema import check_fields


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Where and how a run takes place.

    Attributes:
        out: folder that the run's own folder is made in.
        device: "auto" is the GPU where there is one.
        precision: of the forward pass; "auto" is bf16 on a GPU and fp32 on a CPU. Under "fp16" the loss is
            scaled, and what is only measured (features, test metrics) is in fp32.
        compile: torch.compile for the backbone's blocks, each once for every shape.
        activation_checkpointing: the backbone's blocks keep their inputs alone, and are computed again for
            the gradient: less memory, more time, the same numbers.
        channels_last: memory layout of convolutions that overlap.
        deterministic: only algorithms that give the same numbers in every run on a GPU; slower. On a CPU that
            is so anyway.
        workers: processes that decode, for each stream of each training process; 0 decodes in that itself.
        checkpoint_every_steps: how often to save, and to measure on held-out streams.
        test_batches: of the held-out streams, a measurement.
        knn_every_steps: how often to classify the test videos of ``data.probe`` by their nearest neighbours
            (k = 200, temperature 0.07, as VIMPAC's code); null never does.
        accumulate: parts that each step's batch goes through the network in, one after another, to save
            memory; their gradients are averaged. Where an objective compares all samples of a batch (VIMPAC's
            ``negatives_from``), features are cached and the gradients are those of the whole batch.
        parallel: how several processes (``torchrun``) train together. "ddp" keeps the whole network in each,
            "fsdp" a shard of it, for networks that are too large for that. Means nothing to one process.
        timeout_minutes: how long processes wait for each other before one is taken for lost.
        keep_checkpoints: how many checkpoints one can go on from; older ones keep their weights alone.
        keep_every_steps: of the older ones the weights of multiples of this are kept; null keeps them all.
        max_skipped_steps: of steps in a row whose loss or gradient is no number; none of them is taken, and
            with the last of so many the run stops and leaves a capture.
        trackers: where metrics go besides ``metrics.jsonl``; their packages are the extras of these names.
        on_changed_data: whether a run resumes on a list of videos that is not the one that it began with.
        on_collapse: whether a sign of collapse, a metric that has left its band, stops the run.
        resume: "auto" goes on with the newest run of this name and recipe where there is one, so that a
            scheduler can repeat one command.
    """

    out: str = "runs"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    channels_last: bool = False
    deterministic: bool = False
    workers: int = 1
    log_every_steps: int = 10
    checkpoint_every_steps: int = 200
    test_batches: int = 8
    knn_every_steps: int | None = None
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout_minutes: float = 30.0
    keep_checkpoints: int = 2
    keep_every_steps: int | None = None
    max_skipped_steps: int = 10
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    on_changed_data: Literal["stop", "resume"] = "stop"
    on_collapse: Literal["warn", "stop"] = "warn"
    resume: Literal["never", "auto"] = "never"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.timeout_minutes <= 0:
            raise ValueError(f"timeout_minutes must be above 0, got {self.timeout_minutes}")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers are named once each, got {', '.join(self.trackers)}")
        counts = {
            "log_every_steps": self.log_every_steps,
            "checkpoint_every_steps": self.checkpoint_every_steps,
            "test_batches": self.test_batches,
            "knn_every_steps": self.knn_every_steps,
            "accumulate": self.accumulate,
            "keep_checkpoints": self.keep_checkpoints,
            "keep_every_steps": self.keep_every_steps,
            "max_skipped_steps": self.max_skipped_steps,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
