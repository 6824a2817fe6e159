"""The training loop, which resumes bit for bit, and stops at the first loss that is not finite."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.engine.hooks import LRScheduler
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipself_seg.checkpoints import training_state
from clipself_seg.data.annotations import Record
from clipself_seg.data.loader import DrawOrder, MappedDraws, batches_of, draws_of_process
from clipself_seg.data.mappers.samples import Sample
from clipself_seg.data.shards import ShardStream
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import remove_leftovers
from clipself_seg.models.model_protocols import Group, SteppedModel, TrainableModel
from clipself_seg.training.metrics import HostCopy, flatten_numbers, metric_writers, write_all
from clipself_seg.training.optimizer import build_adamw, leave_out_step, may_skip, set_learning_rate
from clipself_seg.training.settings import TrainingSettings, check_same_run

MOST_SKIPPED = 20  # steps in a row: loss scaling finds a scale within a few


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of the optimiser whose numbers may not be known yet: it changed nothing if one of them is not finite.

    Attributes:
        iteration: counted from 0.
        rate: learning rate.
        own: numbers of this process by name, on the device.
        mean: their means over all processes.
        files: names of this process's images.
    """

    iteration: int
    rate: float
    own: Mapping[str, Tensor]
    mean: HostCopy
    files: list[str]


class TrainingStopped(InputError):
    """The loss, a gradient or a trained weight became NaN or infinite."""


class Trainer(TrainerBase):
    """Trains a model of `clipself_seg.models` on this process's part of every batch.

    Only the first process writes. Detectron2's hooks find here what its own trainers have: `iter`, `start_iter`,
    `max_iter`, `storage`, `model` and `optimizer`. They run in every process, after an evaluation and before the log
    of their step; the numbers of a step are in the storage when it is logged, or one step later.
    """

    def __init__(
        self,
        *,
        model: TrainableModel,
        records: Sequence[Record] | ShardStream,
        mapper: Callable[[Record, int], Sample | None],
        settings: TrainingSettings,
        evaluate: Callable[[TrainableModel], Mapping[str, object]] | None = None,
        groups: list[Group],
        hooks: Sequence[HookBase] = (),
        vocabulary: Vocabulary | Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            model: an nn.Module, on its device.
            records: images of the data set with their annotations, or a stream of images.
            mapper: (record, number of the draw) -> sample, or None for another image.
            settings: the numbers of the run.
            evaluate: (model) -> nested numbers, called before training and after every evaluation period.
            groups: parameter groups of the optimiser, see `TrainableModel.optimizer_groups`.
            hooks: hooks of Detectron2, called in this order; checkpoints keep their `state_dict()` as JSON.
            vocabulary: the training vocabulary, for hooks; None where training needs no classes.

        Raises:
            InputError: a hook sets the learning rate, which the settings do.
        """
        super().__init__()
        if any(isinstance(hook, LRScheduler) for hook in hooks):
            raise InputError(
                "the hook LRScheduler has no effect: SOLVER sets the rate of every step"
            )
        self.register_hooks(hooks)
        self.vocabulary = vocabulary
        self.model = model
        self._module = cast(nn.Module, model)
        self.device = next(p.device for _, p in model.named_parameters())
        self.records = records
        self.mapper = mapper
        self.settings = settings
        self.evaluate = evaluate
        if not isinstance(records, ShardStream):
            self.order = DrawOrder(
                num_images=len(records), batch_size=settings.batch_size, seed=settings.seed
            )
        self.optimizer = build_adamw(groups, betas=settings.betas, eps=settings.eps)
        self._may_skip = may_skip(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.loss_scaling)
        self.checkpoints = training_state.CheckpointFolder(
            settings.output_dir / "checkpoints", settings.checkpoint_keep
        )
        self._run = self._run_metadata()
        self._skipped = 0
        self._unsettled: _Step | None = None
        # Of the latest step that is settled; of a run that died in an evaluation, those of the step before it.
        self._numbers: dict[str, float] = {}

    def train(self, resume: bool = False) -> None:
        """Runs the remaining steps.

        Args:
            resume: go on from the newest checkpoint in the output folder, if there is one.

        Raises:
            InputError: there are checkpoints and `resume` is False, or they belong to another run; the
                processes do not agree.
            TrainingStopped: the loss, a gradient or a trained weight is not finite.
        """
        self.iter = self.start_iter = start = self._start(resume)
        self.max_iter = self.settings.iterations
        self._require_agreement(start)
        steps = range(start, self.settings.iterations)
        batches = self._batches(steps)
        self._module.train()
        forward = self._parallel()
        places = self.settings.output_dir, start, self.settings.iterations
        with EventStorage(start) as storage, metric_writers(*places) as writers:
            self.storage = storage
            try:
                self.before_train()
                if start == 0:
                    self._evaluate_first(storage, writers)
                if self._numbers:
                    self.iter = storage.iter = start - 1
                    storage.put_scalars(smoothing_hint=False, **self._numbers)
                    self._after_step(storage, writers)
                clock = time.perf_counter()
                for self.iter, samples in zip(steps, batches):
                    self.before_step()
                    storage.put_scalar("data_time", time.perf_counter() - clock)
                    self._settle(storage)
                    self._step(forward, storage, samples)
                    storage.put_scalar("time", time.perf_counter() - clock)
                    self._after_step(storage, writers)
                    clock = time.perf_counter()
                self.iter = self.max_iter
            finally:
                self.after_train()
            write_all(writers, self.settings.output_dir)

    def _batches(self, steps: range) -> Iterable[list[Sample]]:
        """This process's part of the batch of each step."""
        place = {"rank": comm.get_rank(), "processes": comm.get_world_size()}
        workers = self.settings.workers
        if isinstance(self.records, ShardStream):
            return self.records.batches(self.mapper, steps, workers=workers, **place)
        draws = draws_of_process(self.order, steps, **place)
        return batches_of(MappedDraws(self.records, self.mapper), workers, batch_sampler=draws)

    def _step(self, forward: nn.Module, storage: EventStorage, samples: list[Sample]) -> None:
        """Forward, backward, and the optimiser's step, which the device leaves out if a number is not finite.

        `_settle` reads the numbers later, so that nothing here waits for the device. With loss scaling it is called at
        once, because the factor must not change for a step that is left out.
        """
        iteration, settings = storage.iter, self.settings
        # Random numbers drawn inside a model follow from seed, step and process: nothing to save.
        torch.manual_seed(_step_seed(settings.seed, iteration, comm.get_rank()))
        rate = settings.rate(iteration)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad()
        if isinstance(self.model, SteppedModel):
            self.model.before_optimizer_step(iteration, settings.iterations)
        losses = self._backward(forward, samples)
        self.after_backward()
        self.scaler.unscale_(self.optimizer)
        own = losses | {"gradient_norm": self._clip()} | self._unusable()
        mean = self._mean_over_processes(own)
        files = [sample["file_name"] for sample in samples]
        self._unsettled = _Step(iteration, rate, own, HostCopy(mean), files)
        if settings.loss_scaling or not self._may_skip:
            self._settle(storage)
        else:
            leave_out_step(self.optimizer, 1 - mean.isfinite().all().float())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.model.after_optimizer_step()

    def _settle(self, storage: EventStorage) -> None:
        """Takes the numbers of the latest step, if that has not been done: refuses them, or keeps them for the log."""
        step = self._unsettled
        self._unsettled = None
        if step is None:
            return
        shared = dict(zip(step.own, step.mean.numbers()))
        if "unusable_images" in shared:
            shared["unusable_images"] = round(shared["unusable_images"] * comm.get_world_size())
        self._refuse_non_finite(step, shared)
        self._refuse_endless_skipping(step.iteration, shared["gradient_norm"])
        # No medians: their window starts anew with the process, and a resumed run would log others.
        self._numbers = shared | {"lr": step.rate}
        storage.put_scalars(smoothing_hint=False, cur_iter=step.iteration, **self._numbers)

    def _backward(self, forward: nn.Module, samples: list[Sample]) -> dict[str, Tensor]:
        """Gradients of the mean loss of equal parts of the samples; returns the mean losses.

        `forward` is the model or its wrapper; gradients are averaged over processes once, with the last part.
        """
        passes = self.settings.accumulate
        if len(samples) % passes:
            raise InputError(
                f"SOLVER.ACCUMULATE {passes} does not divide the {len(samples)} images of a process"
            )
        size = len(samples) // passes
        means: dict[str, Tensor] = {}
        for begin in range(0, len(samples), size):
            last = begin + size == len(samples)
            waiting: AbstractContextManager[None] = nullcontext()
            if isinstance(forward, DistributedDataParallel) and not last:
                waiting = forward.no_sync()
            with waiting:
                losses = forward(samples[begin : begin + size])
                total = torch.stack(list(losses.values())).sum() / passes
                self.scaler.scale(total).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach() / passes
        return means

    def _clip(self) -> Tensor:
        parameters = training_state.trained_parameters(self._module).values()
        if self.settings.clip_norm is None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            return torch.nn.utils.get_total_norm(gradients)
        return torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)

    def _unusable(self) -> dict[str, Tensor]:
        """Number of images of a stream that this process could not use so far."""
        if not isinstance(self.records, ShardStream):
            return {}
        return {"unusable_images": torch.full((), float(self.records.unusable), device=self.device)}

    @staticmethod
    def _mean_over_processes(own: Mapping[str, Tensor]) -> Tensor:
        values = torch.stack([value.float() for value in own.values()])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
            values /= comm.get_world_size()
        return values

    def _refuse_non_finite(self, step: _Step, shared: Mapping[str, float]) -> None:
        # Loss scaling tries too large scales on purpose and skips the steps that overflow.
        skipped = {"gradient_norm"} if self.settings.loss_scaling else set()
        bad = {k for k, v in shared.items() if not math.isfinite(v)} - skipped
        if not bad:
            return
        guilty = bad - {"gradient_norm"} or bad
        mine = any(not bool(torch.isfinite(step.own[name])) for name in guilty)
        gathered = comm.all_gather(step.files if mine else [])
        names = ", ".join(name for part in gathered for name in part)
        iteration = step.iteration
        where = f"at iteration {iteration}, images: {names}"
        what = f"{', '.join(sorted(guilty))} is not finite {where}. "
        self._save(iteration, what)
        raise TrainingStopped(
            f"{what}That step was not taken; {self.checkpoints.path(iteration)} is the state before it, "
            "but for the statistics of batch norms that train and the states of hooks. "
            "Repair the images and --resume, or start anew in another OUTPUT_DIR with a lower "
            "SOLVER.BASE_LR or SOLVER.AMP.DTYPE bfloat16"
        )

    def _refuse_endless_skipping(self, iteration: int, norm: float) -> None:
        """Loss scaling skips a step whose gradients overflow; a run of such steps learns nothing."""
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == MOST_SKIPPED:
            raise TrainingStopped(
                f"gradients overflowed float16 in {MOST_SKIPPED} steps in a row, the last at iteration "
                f"{iteration}, with a loss scale of {self.scaler.get_scale():g}: none of them was taken. "
                "Start anew in another OUTPUT_DIR with SOLVER.AMP.DTYPE bfloat16"
            )

    def _after_step(self, storage: EventStorage, writers: Sequence[EventWriter]) -> None:
        """Hooks, and log, checkpoint and evaluation when they are due."""
        done, settings = storage.iter + 1, self.settings
        last = done == settings.iterations
        period = settings.evaluation_period
        evaluating = bool(period) and done % period == 0 and not last
        logging_due = last or evaluating or done % settings.log_period == 0
        saving_due = last or done % settings.checkpoint_period == 0
        if logging_due or saving_due:
            self._settle(storage)
        if evaluating:
            if saving_due:  # a run that dies in the evaluation begins with it
                self._save(done, unlogged=self._numbers)
            self._evaluate(storage)
        self.after_step()
        # Log before the checkpoint: a run that dies between them logs the step again, not never.
        # The writers take a step's numbers once, so they wait for those of an evaluation.
        if logging_due:
            write_all(writers, self.settings.output_dir)
        if saving_due:
            self._save(done)

    def _evaluate_first(self, storage: EventStorage, writers: Sequence[EventWriter]) -> None:
        """Evaluates before step 0, and writes the numbers at once, which a later evaluation or a kill would lose.

        With the numbers of step 0 they are one line where that is logged and no evaluation follows it.
        """
        numbers = self._evaluate(storage)
        if self.settings.log_period > 1 or self.settings.evaluation_period == 1:
            with EventStorage() as first:
                first.put_scalars(smoothing_hint=False, **numbers)
                write_all(writers[1:], self.settings.output_dir)  # not the log, which has losses
            storage.put_scalars(smoothing_hint=False, cur_iter=-1, **numbers)  # for hooks alone
            for writer in writers[1:]:  # they would pass over further numbers of step 0
                vars(writer)["_last_write"] = -1

    def _evaluate(self, storage: EventStorage) -> dict[str, float]:
        if self.evaluate is None or not self.settings.evaluation_period:
            return {}
        numbers = dict(flatten_numbers(self.evaluate(self.model)))
        storage.put_scalars(smoothing_hint=False, **numbers)
        return numbers

    def _parallel(self) -> nn.Module:
        """The module that computes the losses: the model, or a wrapper that averages its gradients."""
        if comm.get_world_size() == 1 or not self.settings.sync_gradients:
            return self._module
        # Without device_ids, by which it would move whole samples to the GPU, tensor by tensor, and wait for each.
        # Gradients as views of the buckets that are sent: no second copy of them.
        wrapper = DistributedDataParallel(self._module, gradient_as_bucket_view=True)
        # Without batch norms that train, no buffer changes, and none has to be sent with every forward.
        tensors = training_state.trained_tensors(self._module).values()
        wrapper.broadcast_buffers = not all(tensor.requires_grad for tensor in tensors)
        return wrapper

    def _run_metadata(self) -> training_state.Metadata:
        """Metadata that a resumed run has to share, besides the number of steps done."""
        metadata = dict(self.settings.shared) | {"original weights": self.model.original_hash()}
        if isinstance(self.records, ShardStream):
            metadata["training shards"] = len(self.records.shards)
            # Every worker of every process has a part of the shards to itself.
            metadata["processes"] = comm.get_world_size()
            metadata["DATALOADER.NUM_WORKERS"] = self.settings.workers
        else:
            metadata["training images"] = len(self.records)
            metadata["names of training images"] = _names_digest(self.records)
        if isinstance(self.vocabulary, Vocabulary):
            # A file of the user's data may name others than before.
            names = ("|".join(entry.names) for entry in self.vocabulary.classes)
            metadata["training classes"] = ", ".join(names)
        if not self.settings.sync_gradients:
            # The replica that is kept sees the first process's part of each batch.
            metadata["processes"] = comm.get_world_size()
        return metadata

    def _save(self, iteration: int, trouble: str = "", **extra: object) -> None:
        """Writes a checkpoint; one that is not finite would push out those to go back to."""
        tensors = training_state.pack(self._module, self.optimizer)
        # The first process saves, and the others stop with it.
        if not comm.all_gather(training_state.all_finite(tensors))[0]:
            good = next(reversed(self.checkpoints.paths()), "there is none")
            raise TrainingStopped(
                f"{trouble}Trained weights or their moments are not finite after {iteration} steps "
                f"and were not saved; the newest checkpoint, which is finite: {good}. "
                "Start anew in another OUTPUT_DIR with a lower SOLVER.BASE_LR"
            )
        metadata = {"iteration": iteration, "scaler": self.scaler.state_dict()}
        states = {name: state for name, hook in self._named_hooks() if (state := hook.state_dict())}
        metadata |= {"hooks": states} if states else {}
        if isinstance(self.records, ShardStream):
            metadata["shards"] = comm.all_gather(self.records.state(iteration))
        if comm.is_main_process():
            self.checkpoints.save(iteration, tensors, metadata | extra | {"run": self._run})

    def _named_hooks(self) -> list[tuple[str, HookBase]]:
        """Hooks with the name of their class, which has "again" behind it for each of them before."""
        names = [type(hook).__qualname__ for hook in self._hooks]
        again = [names[:place].count(name) for place, name in enumerate(names)]
        return [(name + " again" * n, hook) for name, n, hook in zip(names, again, self._hooks)]

    def _require_agreement(self, start: int) -> None:
        """Refuses machines with other files: their processes would wait for each other, or learn two things."""
        own = dict(self._run) | {"steps done": start}
        everyone = comm.all_gather(own)
        differing = [
            f"{name} ({', '.join(sorted({str(other.get(name))[:80] for other in everyone}))})"
            for name in own
            if any(other.get(name) != everyone[0].get(name) for other in everyone)
        ]
        if differing:
            raise InputError(
                f"the processes of this run do not agree on {'; '.join(differing[:3])}: every machine needs the "
                f"same configuration, data and weights, and {self.settings.output_dir} has to be one folder"
            )

    def _start(self, resume: bool) -> int:
        """Number of steps already done; loads their result."""
        existing = self.checkpoints.paths()
        if existing and not resume:
            raise InputError(
                f"{self.checkpoints.folder} holds {existing[-1].name} of an earlier run: "
                "add --resume to go on with it, or choose another OUTPUT_DIR"
            )
        if comm.is_main_process():
            remove_leftovers(self.checkpoints.folder)
        state = self.checkpoints.newest()
        comm.synchronize()
        if state is None:
            return 0
        tensors, metadata = state
        check_same_run(metadata["run"], self._run)
        training_state.unpack(tensors, self._module, self.optimizer)
        if isinstance(self.records, ShardStream):
            self.records.load_states(metadata.get("shards"), comm.get_rank())
        try:
            self.scaler.load_state_dict(metadata["scaler"])
        except (KeyError, RuntimeError):
            raise InputError(
                f"{self.checkpoints.paths()[-1]} has no loss scale, which this run needs: resume with "
                "the precision and on a device as it was started"
            ) from None
        if comm.is_main_process():
            self.checkpoints.remove_oldest()  # a kill in the last save leaves one
        self._numbers = metadata.get("unlogged", {})
        hooks = dict(self._named_hooks())
        for name, state in metadata.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logging.getLogger(__name__).warning("no hook %s here to take its state", name)
        logging.getLogger(__name__).info("resumed after %d steps", metadata["iteration"])
        return metadata["iteration"]


def _names_digest(records: Sequence[Record]) -> str:
    """Digest of the files of the images in their order, below the folder of all: data that were moved have the same."""
    names = [str(record["file_name"]) for record in records]
    root = len(os.path.dirname(os.path.commonprefix(names)))
    return hashlib.sha256("\n".join(name[root:] for name in names).encode()).hexdigest()[:16]


def _step_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1, np.uint64)[0]) >> 1
