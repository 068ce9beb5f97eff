"""Training and searching on a Ray cluster, which may be just this machine."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from common.errors import UserError, check
from common.files import as_user_errors, read_json
from common.paths import REPO, data_root, output_root
from common.process_group import is_rank_zero
from common.settings import check_settings
from common.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, find_or_create_run

SHUTDOWN_SECONDS = 3  # a process cannot leave its group while it waits for a dead one; Ray would wait 30
RESTARTS = 3  # of a run after the death of a process or a machine
OBJECT_STORE = 128 * 2**20  # bytes; Ray carries only settings and results, data is read from the cache


def start_ray(address: str | None, threads: int, show_output: bool) -> None:
    """Connect to a running cluster (at `address` or $RAY_ADDRESS), or start Ray here; threads: per process."""
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE, "_temp_dir": _private_folder()}
        # otherwise Ray listens on all interfaces; its environment variable is read before the address is known
        ray_constants.ENABLE_RAY_CLUSTER = False
    variables = {"PYTHONPATH": str(REPO), "OUTPUT_ROOT": str(output_root()), "DATA_ROOT": str(data_root())}
    variables |= {"OMP_NUM_THREADS": str(threads), "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    try:
        ray.init(
            address,
            log_to_driver=show_output,
            logging_level=logging.CRITICAL,
            runtime_env={
                "env_vars": variables,
                # a lambda is passed by value; by name, each Ray process would import this module, and with it torch
                "worker_process_setup_hook": lambda: logging.getLogger("ray.train").setLevel(logging.ERROR),
            },
            **own,
        )
    except OSError as error:  # no answer, or a socket's path, which is limited to about 100 characters
        advice = "Set RAY_AUTH_MODE=token if it has authentication, or RAY_TMPDIR to a folder with a short path."
        raise UserError(f"Ray does not start, or answer at {address}: {error}. {advice}") from error


def _private_folder() -> str:
    """A folder for Ray's files that no other user can change, unlike Ray's default; removed when this process ends."""
    home = os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else None)  # a short path, see start_ray
    folder = tempfile.mkdtemp(prefix="ray-", dir=home)

    def remove() -> None:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return str(Path(folder, "ray"))  # Ray opens its folder to all users


def check_resources(settings: str, kind: str, amount: float, on_one_machine: bool = False) -> None:
    """Raise UserError if the cluster is too small for what `settings` ask for: Ray would wait forever."""
    amounts = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
    there = max(amounts, default=0) if on_one_machine else sum(amounts)
    where = "the largest machine" if on_one_machine else "all machines together"
    check(amount <= there, f"{settings}: {amount:g} {kind}s are needed, but Ray has {there:g} ({where}).")


def train_on_ray(train: Callable[..., dict], script: str, settings: dict) -> dict:
    """What `train(**settings)` returns, called in devices times num_nodes workers of a cluster. If a worker dies, all
    are restarted from the last checkpoint. Raises: UserError if that happens too often."""
    check_settings(settings)
    processes = settings["devices"] * settings["num_nodes"]
    if not ray.is_initialized():
        start_ray(None, threads=1, show_output=True)
    use_gpu = ray.cluster_resources().get("GPU", 0) > 0
    try:
        reports = [TuneReportCallback()]
    except RuntimeError:  # not a trial of a search
        reports = []
    # a trial has its CPUs already
    for kind in ([] if reports else ["CPU"]) + (["GPU"] if use_gpu else []):
        check_resources("devices times num_nodes (in a search: workers_per_trial)", kind, processes)
    folder = settings.get("run_folder")
    if folder is None:
        home = output_root() / "runs" / script
        with as_user_errors(home):
            folder, lock = find_or_create_run(home, settings["resume"])
        if lock:
            lock.release()  # so that rank zero can take it

    def work() -> None:
        os.environ["RUN_FOLDER"] = str(folder)
        if (Path(folder) / LAST_CHECKPOINT).exists() and is_rank_zero():
            print(f"Continuing {folder}", flush=True)
        train(**settings)

    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", str(SHUTDOWN_SECONDS))
    trainer = TorchTrainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=use_gpu,
            # a trial's processes use the CPUs of the trial, which Ray reliably frees when the trial is stopped
            resources_per_worker={"memory": 1} if reports else {"CPU": 1},
            placement_strategy="SPREAD" if settings["num_nodes"] > 1 else "PACK",
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # the type stub is that of Ray Train 1
            name="ray",
            storage_path=str(folder),
            # CPUs held by other trials become free again; those of a lost machine may not
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=RESTARTS, controller_failure_limit=-1 if reports else RESTARTS
            ),
            callbacks=reports,  # type: ignore[arg-type]
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = [str(failure) for failure in getattr(error, "worker_failures", {}).values()]
        first = next((text for text in failures if UserError.__name__ in text), str(error))
        raise UserError(f"the processes on the Ray cluster failed: {first.strip().splitlines()[-1]}") from error
    results = read_json(Path(folder) / "results.json")
    return results | {"run_folder": str(folder), "checkpoint": str(Path(folder) / BEST_CHECKPOINT)}
