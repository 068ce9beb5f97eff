"""A resumable Ray Tune search: Ray's state is rebuilt from Optuna's study, and each trial has its own checkpoints.

(Ray's own snapshots lag behind by seconds and omit the scheduler's state.)
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytorch_lightning as pl
import ray
from filelock import FileLock
from ray import train, tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from common.cluster import study as studies
from common.cluster.ray_cluster import check_resources, start_ray
from common.errors import UserError, shown
from common.process_group import is_distributed
from common.settings import Settings
from common.training.callbacks import MetricsLog
from common.training.fit import mode_of

RESTARTS = 2  # of a trial whose process dies without an exception (killed, out of memory, a lost node)


def run_search(
    run_trial: Callable, space: dict[str, Any], settings: Settings, options: Mapping, study: optuna.Study, folder: Path
) -> None:
    """Run trials until enough of those in the study have ended.

    run_trial: trains one configuration, which includes its "number". settings: of a trial; tried first if they lie in
    the space. options: SEARCH in tune_dlrm.py."""
    training, workers = settings.training, options["workers_per_trial"]
    start_ray(options["ray_address"], options["cpus_per_trial"], show_output=False)  # SearchProgress prints
    gpus = options["gpus_per_trial"] if workers == 1 else 0  # several workers reserve their GPUs themselves
    cpus = workers * options["cpus_per_trial"]
    check_resources("cpus_per_trial times workers_per_trial", "CPU", cpus, on_one_machine=True)
    check_resources("gpus_per_trial", "GPU", gpus, on_one_machine=True)
    first = {name: settings.flat()[name] for name in space}
    if not study.get_trials(deepcopy=False) and all(values.is_valid(first[name]) for name, values in space.items()):
        study.enqueue_trial({name: studies.in_database(value) for name, value in first.items()})
    while missing := options["trials"] - len(studies.in_state(study, *studies.ENDED)):
        for trial in studies.in_state(study, "started"):  # wait until no process of an earlier, killed search holds it
            if (lock := studies.trial_folder(folder, trial.number) / "run.lock").exists():
                FileLock(lock).acquire(timeout=60).lock.release()
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=ContinuedSearch(study, space, training["seed"]),
                scheduler=make_scheduler(study, settings, options),
                num_samples=missing,
                max_concurrent_trials=options["concurrent_trials"],
                reuse_actors=workers == 1,  # a process imports torch only once
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder / "ray"),
                verbose=0,
                callbacks=[SearchProgress(study, folder, training["max_epochs"])],
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:  # Ray wraps an error that SearchProgress raises
            if isinstance(error.__context__, UserError | OSError):
                raise error.__context__ from error
            raise
    ray.shutdown()


class ContinuedSearch(OptunaSearch):
    """Optuna's TPE, after the trials that an earlier search has left unfinished; configurations have a "number"."""

    def __init__(self, study: optuna.Study, space: dict, seed: int):
        # another seed, because a continued search already has the samples of the first one
        seed += len([trial for trial in study.get_trials(deepcopy=False) if "state" in trial.user_attrs])
        metric = study.user_attrs["metric"]
        super().__init__(studies.distributions(space), metric, mode_of(metric), storage=study._storage, seed=seed)
        self.pending = [optuna.trial.Trial(study, trial._trial_id) for trial in studies.in_state(study, "started")]

    def suggest(self, trial_id: str) -> dict:
        if self.pending:
            self._ot_trials[trial_id] = self.pending.pop(0)
        params = super().suggest(trial_id)
        assert params is not None
        trial = self._ot_trials[trial_id]
        trial.set_user_attr("state", "started")
        return studies.settings_of(params) | {"number": trial.number}

    def _ignore(self, *event: Any, **about: Any) -> None:
        """SearchProgress records it."""

    on_trial_result = on_trial_complete = _ignore


def make_scheduler(study: optuna.Study, settings: Settings, options: Mapping[str, Any]) -> ASHAScheduler:
    """ASHA over the number of validations, so that trials are compared at equal progress; fed with earlier trials."""
    metric, training = study.user_attrs["metric"], settings.training
    scheduler = ASHAScheduler(
        "validation",
        metric,
        mode_of(metric),
        max_t=training["max_epochs"] * training["validations_per_epoch"],
        grace_period=options["grace_validations"],
        reduction_factor=options["reduction_factor"],
        stop_last_trials=False,  # a trial ends by itself: it may have more validations
    )
    for trial in studies.in_state(study, "finished", "stopped"):
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")  # all that ASHA looks at
        controller: Any = None
        scheduler.on_trial_add(controller, earlier)
        for validation, value in sorted(trial.intermediate_values.items()):
            scheduler.on_trial_result(controller, earlier, {"validation": validation, metric: value})
    return scheduler


class TuneReporter(pl.Callback):
    """Reports each validation to Ray once its checkpoint is written; a resumed trial reports its earlier ones again."""

    metrics_log: MetricsLog
    reported = 0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it later
        self.metrics_log = next(each for each in callbacks if isinstance(each, MetricsLog))

    def _report(self, *event: Any, **about: Any) -> None:
        send = train.report if is_distributed() else tune.report
        for row in self.metrics_log.rows[self.reported :]:
            self.reported += 1
            send(row | {"validation": self.reported})

    on_train_batch_start = on_fit_end = _report


class SearchProgress(tune.Callback):
    """Records in the study what happens to Ray's trials, and logs one line per event."""

    def __init__(self, study: optuna.Study, folder: Path, epochs: int):
        self.study, self.folder, self.epochs = study, folder, epochs

    def on_step_end(self, iteration, trials, **info) -> None:
        """End a search that has no nodes left: Ray would wait forever, or end this process silently."""
        if not any(node["Alive"] for node in ray.nodes()):
            sys.stderr.write("error: Ray's own processes died. The same command continues the search.\n")
            os._exit(1)  # not an exception, because Ray ends this process while it handles one

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        ours = self._ours(trial)
        resumed = f", again from validation {len(ours.intermediate_values)}" if ours.intermediate_values else ""
        self.log(ours.number, f"starts{resumed}: {', '.join(f'{k} {shown(v)}' for k, v in ours.params.items())}")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        ours = self._ours(trial)
        if result["validation"] in ours.intermediate_values:
            return  # a resumed trial reports its earlier validations again
        metric = self.study.user_attrs["metric"]
        optuna.trial.Trial(self.study, ours._trial_id).report(result[metric], result["validation"])
        best = studies.by_value(self.study, self.study.get_trials(deepcopy=False))[0]
        place = f"validation {result['validation']:2d}, epoch {result['epoch']:.2f} of {self.epochs}"
        leader = f"(best {studies.best_value(self.study, best):.4f}, trial {best.number})"
        self.log(ours.number, f"{place}  {metric} {result[metric]:.4f}  {leader}")

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        ours = self._ours(trial)
        # by its results, because with few batches it has other validations than were asked for; ASHA may stop it at
        # its end, before it has written them
        written = (studies.trial_folder(self.folder, ours.number) / "results.json").exists()
        state = "finished" if written or trial.last_result.get("epoch", 0) >= self.epochs else "stopped"
        studies.end_trial(self.study, self.folder, ours.number, state)
        self.log(ours.number, f"{state} after {len(ours.intermediate_values)} validations")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        ours, error = self._ours(trial), Path(trial.error_file).read_text().strip()  # Ray's pickle could run code
        text = error.rpartition("common.errors.")[2] if "common.errors." in error else error.splitlines()[-1]
        state, deaths = "failed", ours.user_attrs.get("deaths", 0) + 1
        if "ray::" not in error:  # no traceback
            optuna.trial.Trial(self.study, ours._trial_id).set_user_attr("deaths", deaths)
            state, text = "started" if deaths <= RESTARTS else "failed", f"its process died: {text}"
        elif "Error: [Errno " in error:  # a full disk is not the trial's fault: its state remains "started"
            raise UserError(f"{text.removeprefix('UserError: ')} Then the same command continues the search.")
        studies.end_trial(self.study, self.folder, ours.number, state, text)
        self.log(ours.number, f"failed: {text}" if state == "failed" else "died; it will continue")
        self.on_step_end(iteration, trials)

    def log(self, number: int, text: str) -> None:
        print(f"trial {number:3d}  {text}", flush=True)

    def _ours(self, trial: Any) -> optuna.trial.FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.config["number"]]
