"""Search DLRM's settings on Criteo with Ray Tune: `python tune_dlrm.py`.

Optuna's TPE proposes, ASHA stops what is behind at equal progress, and the best trial is tested once. Killed at any
moment, the same command goes on. Everything is below runs/tune_dlrm/version_N (Ray's sockets are in /tmp/ray).
With one trial at a time the same seed gives the same trials and results; with more, what TPE and ASHA know when they
decide depends on which trial is faster. More machines: see RAY_ADDRESS; they must share the folders of data and runs.
"""

import inspect
import json
import os
import sys
import time
from pathlib import Path

import ray
import torch
from filelock import FileLock
from ray import tune

from common.cluster import check_resources, start_ray
from common.errors import UserError, check, run_script
from common.files import write_json
from common.paths import data_root, output_root
from common.run import NOT_COMPARED, claim_folder, new_folder, numbered_folders
from common.search import (
    CAUSE,
    Progress,
    RecordedSearch,
    Reporter,
    SearchRecord,
    as_choices,
    best_trial,
    distributions,
    make_scheduler,
    say,
)
from common.search_figures import draw_search, write_table
from common.settings import check_settings
from data.criteo_data import CriteoDataModule
from dlrm.train import train

TRIALS = 16
SEARCH_SPACE = {  # keywords of dlrm/train.py, whose constants serve for all others and, if they lie in it, first
    "learning_rate": tune.loguniform(3e-4, 5e-3),
    "embedding_dim": tune.choice([8, 16, 32]),
    "bottom": tune.choice([(64,), (128, 64), (256, 64), (512, 256, 64)]),
    "top": tune.choice([(128, 64), (256, 128), (512, 256)]),
    "batch_size": tune.choice([128, 256, 512, 1024]),
    "dropout": tune.choice([0.0, 0.2]),
}
MAX_EPOCHS = 1
VALIDATIONS_PER_EPOCH = 10  # about, of fewer than 100 batches; the more, the earlier a bad trial can be stopped
GRACE_VALIDATIONS = 3  # none is stopped before; while the rate is high, results say little of those at the end
REDUCTION_FACTOR = 2  # at 1, 2, 4, ... times GRACE_VALIDATIONS a trial goes on if it is in the best 1/REDUCTION_FACTOR
CONCURRENT_TRIALS = None  # None: as many as there are CPUs and GPUs for
CPUS_PER_TRIAL = 1  # also its threads
GPUS_PER_TRIAL = 0  # may be a fraction
WORKERS_PER_TRIAL = 1  # processes that train a trial together, each with CPUS_PER_TRIAL and a GPU where there is one
RAY_ADDRESS = None  # of a running cluster ("auto", "host:6379"); None: $RAY_ADDRESS, else Ray is started here
STORAGE = None  # absolute folder for all that is written, seen by all nodes; None: runs/tune_dlrm
DATASET = "criteo"  # folder below DATA_ROOT
SEED = 1

DATA_SETTINGS = ("split", "numbers_as", "min_count")  # of dlrm/train.py, which decide on the cache
os.environ |= {  # Ray Tune: Ctrl-C ends a search at once, as it can go on; results are kept by its record alone
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",  # a stopped trial of several processes gives its CPUs back so soon
}


def search(
    trials=TRIALS,
    space=SEARCH_SPACE,
    max_epochs=MAX_EPOCHS,
    validations_per_epoch=VALIDATIONS_PER_EPOCH,
    grace_validations=GRACE_VALIDATIONS,
    reduction_factor=REDUCTION_FACTOR,
    concurrent_trials=CONCURRENT_TRIALS,
    cpus_per_trial=CPUS_PER_TRIAL,
    gpus_per_trial=GPUS_PER_TRIAL,
    workers_per_trial=WORKERS_PER_TRIAL,
    ray_address=RAY_ADDRESS,
    storage=STORAGE,
    dataset=DATASET,
    seed=SEED,
) -> dict:
    """Run a search, or go on with the newest unfinished one of the same constants; test its best trial once.

    Returns the content of best.json. Raises: UserError if all trials failed, Ray has too little for one, or a file
    cannot be written.
    """
    check_settings(locals())
    begin = time.perf_counter()
    validations = max_epochs * validations_per_epoch
    check(grace_validations <= validations, f"GRACE_VALIDATIONS is {grace_validations} of {validations} validations.")
    hand_set = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    for name in ("run_folder", "callbacks", "test"):
        del hand_set[name]  # no settings: a search decides on them
    check(space.keys() <= hand_set.keys(), f"SEARCH_SPACE has {sorted(space)}; dlrm/train.py has {sorted(hand_set)}.")
    constants = {
        "dataset": dataset,
        "data_root": str(data_root()),  # absolute, as a trial has another working directory
        "max_epochs": max_epochs,
        "validations_per_epoch": validations_per_epoch,
        "patience": 2 * validations,  # never reached, as there are at most so many: the scheduler stops trials
        "seed": seed,
    }
    check(
        not space.keys() & constants.keys(),
        f"SEARCH_SPACE has {sorted(space)}; {sorted(constants)} are for all trials.",
    )
    fixed = {name: value for name, value in hand_set.items() if name not in {*space, *NOT_COMPARED}}
    compared = fixed | constants | {"space": {name: str(values) for name, values in distributions(space).items()}}
    compared |= {"trials": trials, "grace_validations": grace_validations, "reduction_factor": reduction_factor}
    home = Path(storage).resolve() if storage else output_root() / "runs" / "tune_dlrm"
    with claim_folder("tune_dlrm", compared, find_folder(home, compared)) as folder:
        record = SearchRecord(folder)
        print(f"{'Going on with' if record.trials else 'Writing to'} {folder}", flush=True)
        settings = hand_set | constants
        data = CriteoDataModule(dataset, constants["data_root"], *(settings[name] for name in DATA_SETTINGS))
        data.setup()  # once, before the trials: they map what it wrote
        start_ray(ray_address, cpus_per_trial, show_output=False)  # the record has what happens to trials
        gpus = gpus_per_trial if workers_per_trial == 1 else 0  # several ask for theirs themselves
        cpus = workers_per_trial * cpus_per_trial
        check_resources("CPUS_PER_TRIAL times WORKERS_PER_TRIAL", "CPU", cpus, on_one_machine=True)
        check_resources("GPUS_PER_TRIAL", "GPU", gpus, on_one_machine=True)
        trial = tune.with_parameters(
            run_trial, constants=constants, record=record, threads=cpus_per_trial, workers=workers_per_trial
        )
        trial = tune.with_resources(trial, {"cpu": cpus, "gpu": gpus})
        first = {name: hand_set[name] for name in space}
        while missing := trials - len(record.of("finished", "stopped", "failed")):
            await_death(record)
            tuner = tune.Tuner(
                trial,
                tune_config=tune.TuneConfig(
                    search_alg=RecordedSearch(space, first, seed, record),
                    scheduler=make_scheduler(record, grace_validations, validations, reduction_factor),
                    num_samples=missing,
                    max_concurrent_trials=concurrent_trials,
                    reuse_actors=workers_per_trial == 1,  # a process imports once
                ),
                run_config=tune.RunConfig(
                    storage_path=str(folder / "ray"), verbose=0, callbacks=[Progress(record, max_epochs)]
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError as error:  # made by Ray of what Progress raises
                if isinstance(error.__context__, UserError | OSError):
                    raise error.__context__ from error
                raise
        ray.shutdown()
        return conclude(record, constants, begin)


def run_trial(config: dict, constants: dict, record: SearchRecord, threads: int, workers: int) -> None:
    """One training run in a process of Ray, or in several; goes on from its own checkpoint if it has one."""
    torch.set_num_threads(threads)
    config = dict(config)
    folder = record.folder(config.pop("number"))
    constants = constants | ({"devices": workers, "strategy": "ray"} if workers > 1 else {})
    try:
        train(**constants, **config, resume=True, run_folder=str(folder), callbacks=[Reporter()], test=False)
    except KeyboardInterrupt:  # what becomes of Ray's SystemExit(0) in a trial that it stops
        sys.exit(0)
    except Exception as error:
        if isinstance(error.__cause__, OSError):
            raise OSError(str(error)) from error  # by which Progress tells it from a fault of the trial
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CAUSE).write_text(f"{type(error).__name__}: {error}")
        raise


def find_folder(home: Path, settings: dict) -> Path:
    """The newest unfinished search with these settings, else a new version_N."""
    settings = json.loads(json.dumps(settings))  # as they are kept: tuples are lists
    for _, folder in sorted(numbered_folders(home).items(), reverse=True):
        kept = folder / "settings.json"
        if not (folder / "best.json").exists() and kept.exists() and json.loads(kept.read_text()) == settings:
            return folder
    return new_folder(home)


def await_death(record: SearchRecord) -> None:
    """Wait until no process of an earlier, killed search holds a trial that is to go on."""
    for trial in record.of("started"):
        if (folder := record.folder(trial["number"])).exists():
            FileLock(folder / "run.lock").acquire(timeout=60).lock.release()


def conclude(record: SearchRecord, constants: dict, begin: float) -> dict:
    """Test the best trial; best.json, trials.csv, figures and the table of the best trials."""
    best = best_trial(record.trials)
    draw_search(record)
    if best is None:
        raise UserError(
            f"all {len(record.trials)} trials failed; the first one: {record.trials[0]['cause']}\n"
            f"When that is mended, remove {record.path.parent} to search anew."
        )
    config = as_choices(best["config"])
    results = train(**constants, **config, run_folder=str(record.folder(best["number"])))
    say(record, "\n" + write_table(record))
    content = {
        "trial": best["number"],
        "constants": {name.upper(): value for name, value in config.items()},
        "validation": results["validation"],
        "test": results["test"],
        "checkpoint": str(record.folder(best["number"]) / "checkpoints" / "best.ckpt"),
        "trials": {state: len(record.of(state)) for state in ("finished", "stopped", "failed")},
        "wall_seconds": time.perf_counter() - begin,
    }
    write_json(record.path.with_name("best.json"), content)
    pasted = "\n".join(f"{name} = {value!r}" for name, value in content["constants"].items())
    say(
        record,
        f"\nFor dlrm/train.py (trial {best['number']}):\n{pasted}\nEverything of the search: {record.path.parent}",
    )
    return content


if __name__ == "__main__":
    run_script(search)
