"""The loop that trains, for tokenizer and transformer alike: what is trained is a `Task`.

The trainer counts steps and samples, skips steps that would spoil the weights, goes back to the last checkpoint after
too many of them, saves, logs, validates, stops when told to, and exports. A task makes a step and knows its tensors.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from data_specs import digest, storage
from data_specs.lease import Lease, acquire
from data_specs.metrics import MetricsLog
from data_specs.progress import Progress
from data_specs.records import CheckpointFile, CheckpointState, Finished, Identity, TaskState
from data_specs.root import record_spec
from data_specs.sections import Training
from data_specs.spec import Spec
from data_specs.telemetry import Row
from data_specs.text import say
from tokenize_jobs import checkpoint, stopping
from tokenize_jobs.guard import SpikeDetector, Watchdog
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import NotFiniteError
from tokenize_jobs.throughput import Throughput


# ---- what is trained -----------------------------------------------------------------------------------------------
class Step(NamedTuple):
    """What became of a step: mean loss over all ranks, whether the weights moved, seconds spent waiting for data."""

    loss: float
    applied: bool
    waited: float


class Validation(NamedTuple):
    """A validation's row, and the figure that is to be small: with the weights, and with their moving average."""

    row: Row
    weights: float
    ema: float | None

    @property
    def ema_is_worse(self) -> bool:
        """Whether the moving average is of less use than the weights."""
        return self.ema is not None and not self.ema <= self.weights


class Task(Protocol):
    """A model in training, with its data. Everything but `tensors` and `export` is called on all ranks at once."""

    picture_every: int | None

    def begin(self, position: int, num_steps: int) -> None:
        """Be ready to make `num_steps` steps on the data from sample `position` on."""

    def step(self, rate: float, limit: float) -> Step:
        """Make one step, unless the mean loss is over `limit` or it or the gradient is not finite."""

    def report(self, images_per_second: float) -> tuple[Row, str]:
        """Return the log's row of the steps since the last one, and what it says in a few words."""

    def validate(self) -> Validation:
        """Measure the model on held-out data, or on the first of its own where there is none: then without a row."""

    def picture(self) -> bytes | None:
        """Draw a PNG of what the model can do, on rank 0."""

    def tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the flat tensors that this rank answers for, by `kind/name/first element`."""

    def state(self) -> TaskState:
        """Return what a resumed run needs beside the tensors."""

    def load(self, stored: checkpoint.StoredTensors, state: TaskState) -> None:
        """Take the tensors and the state of a checkpoint.

        Raises:
            ValueError: it is another task's.
        """

    def export(self, stored: checkpoint.StoredTensors, folder: Path) -> dict[str, CheckpointFile]:
        """Write the finished model into a local folder; return its files of weights."""

    def close(self) -> None:
        """End what runs in the background."""


class Job(NamedTuple):
    """A training: its command, the folder it fills, its section of the spec, and what its result depends on.

    `keys` are those of the spec that it is made by, its own section last.
    """

    command: str
    folder: str
    section: Training
    spec: Spec
    keys: tuple[str, ...]
    identity: Identity

    @property
    def remedy(self) -> str:
        """What a refusal offers beside going back: to go on past the schedule's end, or to learn anew on the data."""
        fixed = self.section.schedule == "cosine" and not self.section.extend_schedule
        more = f"for more steps add --set {self.keys[-1]}.extend_schedule=true, " if fixed else ""
        root = self.folder.rpartition("/")[0]
        return f"{more}train another model on the same data under a new root (--root NEW --from {root}), "


def learning_rate(section: Training, step: int) -> float:
    """Return the rate of a step: linear warm-up, then constant or a cosine to 1 %."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    done = (step - section.warmup_steps) / max(section.steps - section.warmup_steps, 1)
    return section.learning_rate * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))


# ---- the loop ------------------------------------------------------------------------------------------------------
class Trainer:
    """A training run. `position` counts samples; it runs ahead of `step` where data before a rollback is left out."""

    def __init__(self, job: Job, task: Task, ranks: Ranks, held: Lease | None = None) -> None:
        self.job = job
        self.section = job.section
        self.task = task
        self.ranks = ranks
        self.held = held
        self.writer = checkpoint.CheckpointWriter(job.folder, ranks, self.section.keep_last, self.section.keep_every)
        self.num_rollbacks = 0
        self.note = ""
        self.saved_at = time.monotonic()
        self.save_is_due = False
        self.validation: Validation | None = None
        self.ema_was_worse = False
        self.step = self.position = self.saved_step = 0
        self.spikes = SpikeDetector(self.section.spike, self.section.max_skips)
        if found := self._load():
            self._restore(found)
        self.metrics = MetricsLog(job.folder, self.step, ranks.rank == 0, f"{job.spec.name} {job.command}")
        self.throughput = Throughput(self.section.batch_size)
        self.progress = Progress(job.command, self.section.steps, "steps", self.step)

    # ---- training --------------------------------------------------------------------------------------------------
    def run(self) -> bool:
        """Make the steps that are left; return False where it was told to stop before, and has saved.

        Raises:
            ValueError: it cannot go on, and no restart mends that.
        """
        watchdog = Watchdog(self.section.rank_timeout)
        try:
            while True:
                try:
                    return self._run(watchdog)
                except NotFiniteError as error:
                    self._roll_back(str(error))
        finally:
            watchdog.end()

    def _run(self, watchdog: Watchdog) -> bool:
        self.task.begin(self.position, self.section.steps - self.step)
        while self.step < self.section.steps and not self._agree_to_stop():
            self._make_step()
            watchdog.beat()
            if self.ranks.rank == 0:
                self.progress.advance(self.step - self.progress.done, self.note)
        self._save()
        self._complete_checkpoint()
        if self.ranks.rank == 0:
            self.progress.finish(self.note)
        return self.step >= self.section.steps

    def _make_step(self) -> None:
        rate = learning_rate(self.section, self.step)
        made = self.task.step(rate, self.spikes.limit)
        self.step += 1
        self.position += self.section.batch_size
        self.throughput.add_step(made.waited)
        if made.applied:
            self.spikes.accept(made.loss)
        else:
            self._say(f"step {self.step} left out: loss {made.loss:.4g}, limit {self.spikes.limit:.4g}")
            if self.spikes.skip(made.loss):
                raise NotFiniteError(f"the loss is not finite, or leaps, {self.section.max_skips} steps in a row")
        self._do_what_is_due(rate)

    def _do_what_is_due(self, rate: float) -> None:
        """Log a row, validate, draw a picture and save a checkpoint, each where it is due."""
        if self._is_due(self.section.log_every):
            self._log(rate)
        with self.throughput.paused():
            if self._is_due(self.section.validate_every):
                self._validate()
            if self._is_due(self.task.picture_every):
                self._draw()
            if self.step % self.section.checkpoint_every == 0 or self.save_is_due:
                self._save()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.section.steps)

    def _roll_back(self, why: str) -> None:
        """Load the last checkpoint, to go on behind the data that spoiled the steps since.

        Raises:
            ValueError: there is none, or it was done too often.
        """
        with suppress(NotFiniteError):
            self._complete_checkpoint()
        self.num_rollbacks += 1
        failed_at = self.step
        position = self.position
        skipped = self.spikes.skipped
        state = self._load() if self.num_rollbacks <= self.section.max_rollbacks else None
        if state is None:
            raise ValueError(
                f"{self.job.folder}: {why}, at step {failed_at}, also after {self.num_rollbacks - 1} returns to a "
                "checkpoint: lower learning_rate, lengthen warmup_steps, or look at the data with `dnd verify`"
            )
        self._restore(state)
        self.position = position
        self.spikes.skipped = skipped
        self.metrics.cut(self.step)
        self._say(f"{why}: back to step {self.step}; data before sample {position} is left out")

    # ---- accounts --------------------------------------------------------------------------------------------------
    def _log(self, rate: float) -> None:
        figures = self.throughput.report()
        row, self.note = self.task.report(figures["images_per_second"])
        about = {"step": self.step, "position": self.position, "rate": rate, "skipped_steps": self.spikes.skipped}
        self.metrics.add({**about, **row, **figures, "time": time.time()})

    def _validate(self) -> None:
        self.validation = found = self.task.validate()
        if found.row:
            self.metrics.add({"step": self.step, **found.row, "time": time.time()})
        if found.ema_is_worse and not self.ema_was_worse:
            self._say(
                f"step {self.step}: the moving average validates worse than the weights ({found.ema:.4g} against "
                f"{found.weights:.4g}): train longer or lower `ema`; sample.ema=false samples from the weights"
            )
        self.ema_was_worse = found.ema_is_worse

    def _draw(self) -> None:
        """FOLDER/samples/step_XXXXXXXX.png, and wandb."""
        png = self.task.picture()
        if png is not None:
            name = f"{checkpoint.step_name(self.step)}.png"
            storage.write(storage.join(self.job.folder, "samples", name), png)
            self.metrics.add_picture(self.step, png)

    def _say(self, message: str) -> None:
        if self.ranks.rank == 0:
            say(f"{self.job.command}: {message}", sys.stderr)

    # ---- stopping, saving, loading ---------------------------------------------------------------------------------
    def _agree_to_stop(self) -> bool:
        """Whether any rank was told to stop. Also completes a checkpoint once no rank is writing any more."""
        if self.held:
            self.held.check()
        minutes = self.section.checkpoint_minutes
        due = minutes is not None and self.ranks.rank == 0 and time.monotonic() > self.saved_at + 60 * minutes
        stop, busy, self.save_is_due = self.ranks.any(stopping.stop_requested(), self.writer.busy, due)
        if not busy:
            self.writer.commit()
        return stop

    def _save(self) -> None:
        """Begin a checkpoint of this step, unless it is the one resumed from or just written."""
        if self.saved_step == self.step:
            return
        self._complete_checkpoint()
        self.metrics.flush()
        state = CheckpointState(
            step=self.step,
            position=self.position,
            world=self.ranks.world,
            guard=self.spikes.state(),
            task=self.task.state(),
            spec=self.job.spec.tree(),
            files={},
        )
        self.writer.start(state, self.task.tensors())
        self.saved_step = self.step
        self.saved_at = time.monotonic()
        self.save_is_due = False

    def _complete_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written, on all ranks, and make it count."""
        self.writer.commit()
        self.ranks.any(False)  # none goes on before rank 0 has made it count

    def _load(self) -> CheckpointState | None:
        """Take the newest whole checkpoint, where there is one, and return its state."""
        found = checkpoint.find_whole(self.job.folder, self.ranks)
        if found is None:
            return None
        uri, state = found
        self.task.load(checkpoint.StoredTensors(uri, state.files), state.task)
        return state

    def _restore(self, state: CheckpointState) -> None:
        self.step = self.saved_step = state.step
        self.position = state.position
        self.spikes = SpikeDetector(self.section.spike, self.section.max_skips, state.guard)

    # ---- the end ---------------------------------------------------------------------------------------------------
    def export(self) -> None:
        """Write the model from its last checkpoint and, last, `done`; all ranks call it.

        Raises:
            ValueError: what the model does is not finite: it is of no use.
        """
        found = self.validation or self.task.validate()
        if not math.isfinite(found.weights) or not math.isfinite(found.ema or 0):
            raise ValueError(f"{self.job.folder}: the model's validation is not finite: lower learning_rate")
        if self.ranks.rank:
            return
        uri = storage.join(self.job.folder, checkpoint.step_name(self.step))
        stored = checkpoint.StoredTensors(uri, checkpoint.read_state(uri).files)
        with storage.writable_folder(self.job.folder) as folder:
            files = self.task.export(stored, folder)
        done = Finished(step=self.step, files=files, weights=found.weights, ema=found.ema)
        storage.write(storage.join(self.job.folder, checkpoint.DONE), done.to_json())

    def close(self) -> None:
        """End what runs in the background."""
        self.task.close()
        self.metrics.finish()


def fit(job: Job, build: Callable[[Ranks], Task]) -> bool:
    """Train until the model is exported, from the last checkpoint on; a finished run returns at once.

    Args:
        job: what is trained, and where.
        build: makes the task, on every rank.

    Returns:
        Whether it is finished; False where it was told to stop, and has saved.

    Raises:
        ValueError: what no restart mends: a folder made for something else or in use, bad data, a loss that is not
            finite.
    """
    digest.require_claimable(job.folder, job.identity, job.remedy)
    if checkpoint.finished_step(job.folder) >= job.section.steps:
        return True
    ranks = Ranks()
    held = ranks.on_first(partial(acquire, job.folder, f"dnd {job.command}"))
    try:
        task = build(ranks)
        ranks.on_first(partial(_accept, job))
        trainer = Trainer(job, task, ranks, held)
        finished = trainer.run()
        if finished:
            trainer.export()
        trainer.close()
        ranks.any(False)
        return finished
    finally:
        if held:
            held.release()


def _accept(job: Job) -> None:
    """Bind the folder to the job and put its spec on record, once the task has found nothing to refuse."""
    digest.claim(job.folder, job.identity, job.remedy)
    root, _, name = job.folder.rpartition("/")
    record_spec(job.spec, root, name, job.keys)
