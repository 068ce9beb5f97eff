"""Search DLRM's settings on Criteo with Ray Tune: `python tune_dlrm.py`.

Optuna's TPE proposes settings, ASHA stops trials that are behind at equal progress, and of those that were not stopped
the best three are tested once. If it is killed, the same command continues it. Everything is written to
runs/tune_dlrm/version_N (except Ray's sockets, which are in a temporary folder). With concurrent_trials=1 a seed
reproduces the search; otherwise TPE and ASHA depend on which trial is faster.
"""

import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import UserError, answer_help, check, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

import optuna
import torch
from ray import tune

import dlrm.train as dlrm
from common.cluster import study as studies
from common.cluster.search import TuneReporter, run_search
from common.files import write_json
from common.model.metrics import auc_error
from common.paths import data_root, output_root
from common.settings import Settings, check_names, check_settings, plain
from common.training.run_folder import BEST_CHECKPOINT, NOT_COMPARED, claim_run_folder, continued_folder, keep_unchanged
from data.criteo_data import ClickDataModule

# Settings of dlrm/train.py. SPACE is searched, starting from the values in dlrm/train.py if they lie in it; FIXED is
# the same for all trials; all other settings have the values in dlrm/train.py.
SPACE = dict(
    learning_rate=tune.loguniform(3e-4, 5e-3),
    embedding_learning_rate=tune.loguniform(1e-3, 2e-2),
    embedding_dim=tune.choice([8, 16, 32]),
    bottom_mlp_units=tune.choice([(64,), (128, 64), (256, 64), (512, 256, 64)]),
    top_mlp_units=tune.choice([(128, 64), (256, 128), (512, 256)]),
    batch_size=tune.choice([128, 256, 512, 1024]),
    dropout=tune.choice([0.0, 0.2]),
)
FIXED = dict(
    validations_per_epoch=10  # with more, bad trials can be stopped earlier
)
SEARCH = dict(
    trials=16,  # after raising it, the same command continues the search
    grace_validations=3,  # no trial is stopped earlier: while the rate is high, results say little about the end
    reduction_factor=2,  # at 1, 2, 4, ... times grace_validations the best 1/reduction_factor of the trials continue
    concurrent_trials=None,  # None: as many as the CPUs and GPUs allow
    cpus_per_trial=1,  # also the number of threads
    gpus_per_trial=0,  # may be a fraction
    workers_per_trial=1,  # processes that train a trial together, each with cpus_per_trial (and a GPU)
    ray_address=None,  # of a running cluster ("auto", "host:6379"); None: $RAY_ADDRESS, otherwise Ray is started here
    storage=None,  # path of a folder that all nodes can see, for everything written; None: runs/tune_dlrm
)

os.environ |= {  # read by Ray Tune
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search immediately, because it can be continued
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # only the study keeps results
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",  # until a stopped trial of several processes is killed and its CPUs are free
}


def search(space: dict[str, Any] = SPACE, fixed: dict[str, Any] = FIXED, **changes: Any) -> dict[str, Any]:
    """Run a search, or continue the newest unfinished one with the same settings, and test its best trials once.

    changes: settings in SEARCH to change, by name. Returns the contents of best.json."""
    check_names(changes, list(SEARCH))
    options = {name: plain(value) for name, value in (SEARCH | changes).items()}
    check_settings({"space": space, "fixed": fixed} | options)
    both = ", ".join(sorted(space.keys() & fixed.keys()))
    check(not both, f"{both} must be in SPACE or in FIXED, not in both.")
    settings = Settings(dlrm.DATA, dlrm.MODEL, dlrm.OPTIMIZER, dlrm.TRAINING).changed(fixed)
    data = ClickDataModule(**settings.data, seed=settings.training["seed"])
    data.setup()  # builds the cache before the trials map it
    settings = settings.for_rows(len(data.rows["train"]), dlrm.AUTO)
    # ASHA stops trials, not patience; trials run in another working directory, so paths must be absolute
    fixed = fixed | {"max_epochs": settings.training["max_epochs"], "patience": None}
    fixed |= {"data_root": str(Path(settings.data["data_root"] or data_root()).resolve())}
    settings = settings.changed(fixed)
    check_names(space, list(settings.flat()))
    validations = settings.training["max_epochs"] * settings.training["validations_per_epoch"]
    grace = options["grace_validations"]
    check(grace <= validations, f"grace_validations is {grace}; a trial has {validations} validations.")
    clicks, rows = int(data.targets("val").sum()), len(data.rows["val"])
    metric = "val_auc" if settings.training["monitor"] == "auto" else settings.training["monitor"]
    check(
        0 < clicks < rows or "auc" not in metric,
        f"all {rows:,} validation rows of {data.dataset!r} are of one class: trials cannot be compared by AUC.",
    )
    identity = {name: value for name, value in settings.flat().items() if name not in {*space, *NOT_COMPARED}}
    identity |= {"space": {name: str(values) for name, values in studies.distributions(space).items()}}
    identity |= {name: options[name] for name in ("grace_validations", "reduction_factor")}
    home = Path(options["storage"] or output_root() / "runs" / "tune_dlrm").resolve()
    chosen = continued_folder(home, identity, lambda folder: is_complete(folder, metric, options["trials"]))
    with claim_run_folder("tune_dlrm", identity, chosen) as folder:
        keep_unchanged(folder / "data.json", {"rows": rows, "fingerprint": data.fingerprint}, "data")
        study = studies.open_study(folder, metric)
        print(f"{'Continuing' if study.trials else 'Writing to'} {folder}", flush=True)
        trial = tune.with_parameters(run_trial, folder=folder, fixed=fixed, workers=options["workers_per_trial"])
        run_search(trial, space, settings, options, study, folder)
        contents = conclude(study, folder, data, fixed)
        shutil.rmtree(folder / "ray", ignore_errors=True)
        return contents


def run_trial(config: dict[str, Any], folder: Path, fixed: dict[str, Any], workers: int) -> None:
    """One training run in one or several Ray processes; continues from its checkpoint if there is one."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    changes = fixed | config | ({"devices": workers, "strategy": "ray"} if workers > 1 else {})
    folder = studies.trial_folder(folder, changes.pop("number"))
    try:
        dlrm.train(run_folder=str(folder), callbacks=[TuneReporter()], test=False, resume=True, **changes)
    except KeyboardInterrupt:  # Ray stops a trial by SystemExit(0), which arrives here as this
        sys.exit(0)


def is_complete(folder: Path, metric: str, trials: int) -> bool:
    """Whether a search was concluded with at least this many trials."""
    if not (folder / "best.json").exists():
        return False
    return len(studies.in_state(studies.open_study(folder, metric), *studies.ENDED)) >= trials


def conclude(study: optuna.Study, folder: Path, data: ClickDataModule, fixed: dict[str, Any]) -> dict[str, Any]:
    """Test the best trials, write best.json, trials.csv, importance.csv and figures, and print a summary."""
    best, trial_folder = studies.best_trials(study), partial(studies.trial_folder, folder)
    sample = ", built-in sample" if data.is_sample else ""
    studies.plot_search(study, folder, f"DLRM, {data.dataset}{sample}, {folder.name}")
    if not best:
        failed = studies.in_state(study, "failed")
        cause = f"the first one: {failed[0].user_attrs['cause']}\nFix the cause, then remove {folder} to search again."
        raise UserError(f"all {len(failed)} trials failed; {cause}")
    metric, tested = study.user_attrs["metric"].removeprefix("val_"), []
    for trial in best:
        print(f"\nTesting trial {trial.number}", flush=True)
        # a finished trial is not trained again: it continues from its last checkpoint, so it is only tested
        results = dlrm.train(run_folder=trial_folder(trial.number), **fixed | studies.settings_of(trial.params))
        tested.append({"trial": trial.number, "validation": results["validation"], "test": results["test"]})
    print("\n" + studies.write_table(study, folder, {each["trial"]: each["test"][metric] for each in tested}))
    importance = studies.setting_importance(study)
    importance.to_csv(folder / "importance.csv", header=["importance"], index_label="setting")
    if len(importance):
        shown = ", ".join(f"{name} {share:.2f}" for name, share in importance.items())
        print(f"\nShare of the metric's variance explained by each setting (unreliable with few trials): {shown}")
    errors = {}
    for split, part in (("validation", "val"), ("test", "test")):
        clicks, rows = int(data.targets(part).sum()), len(data.rows[part])
        errors[split] = auc_error(tested[0][split]["auc"], clicks, rows - clicks) if 0 < clicks < rows else math.nan
        print(f"Standard error of an AUC: {errors[split]:.4f} on {rows:,} {split} rows.")
    config = studies.settings_of(best[0].params)
    contents = {
        **tested[0],
        "settings": config,
        "tested": tested,
        "auc_standard_error": errors,
        "checkpoint": str(trial_folder(best[0].number) / BEST_CHECKPOINT),
        "trials": {state: len(studies.in_state(study, state)) for state in studies.ENDED},
    }
    write_json(folder / "best.json", contents)
    lines = "\n".join(f"    {name}={value!r}," for name, value in config.items())
    print(f"\nFor dlrm/train.py (trial {best[0].number}, the best on validation rows):\n{lines}")
    print(f"Trials, tables and figures: {folder}")
    return contents


if __name__ == "__main__":
    run_script(search)
