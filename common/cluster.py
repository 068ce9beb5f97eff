"""Training and searching on a Ray cluster, which may be this machine alone."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import ray
from ray._private import ray_constants
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from common.errors import UserError, check
from common.paths import REPO, data_root, output_root
from common.processes import is_first
from common.run import LAST, choose_folder
from common.settings import check_settings

RESTARTS = 3  # of a run of which a process or a machine dies
OBJECT_STORE = 128 * 2**20  # bytes; data is read from the cache, Ray carries settings and results


def start_ray(address: str | None, threads: int, show_output: bool) -> None:
    """Connect to a running cluster ($RAY_ADDRESS without an address), or start Ray here, without a dashboard.

    threads: of a process. show_output: whether what the processes print comes to this terminal.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's only switch for listening on the loopback interface alone
    variables = {"PYTHONPATH": str(REPO), "OUTPUT_ROOT": str(output_root()), "DATA_ROOT": str(data_root())}
    variables |= {"OMP_NUM_THREADS": str(threads), "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    try:
        ray.init(
            address,
            log_to_driver=show_output,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": variables, "worker_process_setup_hook": "common.cluster.quiet"},
            **own,
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address}. Where `ray start` turned authentication on, set RAY_AUTH_MODE=token."
        ) from error


def check_resources(constants: str, kind: str, amount: float, on_one_machine: bool = False) -> None:
    """Refuse what Ray would wait for without end; also where an autoscaler could add machines: start those before.

    constants: what asks for `amount` of the kind "CPU" or "GPU".
    """
    amounts = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
    there = max(amounts, default=0) if on_one_machine else sum(amounts)
    where = "the largest machine" if on_one_machine else "all machines together"
    check(amount <= there, f"{constants}: {amount:g} {kind}s are asked for; Ray has {there:g} ({where}).")


def quiet() -> None:
    """In each of Ray's processes: of Ray Train, errors alone."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)


def train_on_ray(train: Callable[..., dict], script: str, settings: dict) -> dict:
    """Call `train(**settings)` in DEVICES times NUM_NODES processes of a cluster; all are started anew, and go on from
    the last checkpoint, when one dies.

    Returns the content of results.json. Raises: UserError if they die more often than RESTARTS, or the cluster has too
    few CPUs or GPUs for them.
    """
    check_settings(settings)
    processes = settings["devices"] * settings["num_nodes"]
    if not ray.is_initialized():
        start_ray(None, threads=1, show_output=True)
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    try:
        reports = [TuneReportCallback()]
    except RuntimeError:  # this is no trial of a search
        reports = []
    constants = "DEVICES times NUM_NODES (in a search: WORKERS_PER_TRIAL)"
    if not reports:  # a trial has its CPUs already
        check_resources(constants, "CPU", processes)
    if use_gpu:
        check_resources(constants, "GPU", processes)
    folder = settings.get("run_folder")
    if folder is None:
        folder, lock = choose_folder(output_root() / "runs" / script, settings["resume"])
        if lock:
            lock.release()  # to the first process

    def work() -> None:
        os.environ["RUN_FOLDER"] = str(folder)
        if (Path(folder) / LAST).exists() and is_first():
            print(f"Continuing {folder}", flush=True)
        train(**settings)

    trainer = TorchTrainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=use_gpu,
            # the CPUs of a trial's processes are those of the trial, which Ray surely frees when it is stopped
            resources_per_worker={"memory": 1} if reports else {"CPU": 1},
            placement_strategy="SPREAD" if settings["num_nodes"] > 1 else "PACK",
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            # what other trials hold becomes free; what is gone with a machine may not
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=-1 if reports else RESTARTS),
            callbacks=reports,
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise UserError(f"the processes on the Ray cluster failed: {_cause(error)}") from error
    return json.loads((Path(folder) / "results.json").read_text())


def _cause(error: TrainingFailedError) -> str:
    """Message of the first process that says more than that another one is gone."""
    failures = [str(failure) for failure in getattr(error, "worker_failures", {}).values()]
    return next((text for text in failures if UserError.__name__ in text), str(error)).strip().splitlines()[-1]
