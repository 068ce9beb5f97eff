"""The TRAINING setting "logger": metrics.csv is always written; trackers get the same metrics and more.

Lightning's Trainer has no logger: it would log a model's cardinalities as settings, and fail with its tracker.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import image
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from common.checkpoint import load_checkpoint
from common.errors import check, one_line, shown
from common.process_group import is_rank_zero
from common.training.run_folder import LAST_CHECKPOINT

TENSORBOARD = "tensorboard"  # the setting, and the folder of its files within the run's folder


class Trackers:
    """The loggers of a run, on rank zero. One that fails costs a warning, and is told nothing more."""

    def __init__(self, setting: str | Logger | list[Logger] | Callable[[Path], Logger], folder: Path):
        made: Any = setting
        if callable(setting) and is_rank_zero():
            made = setting(folder)
        elif setting == TENSORBOARD:
            last = folder / LAST_CHECKPOINT  # a resumed run repeats the steps after it
            purge = {"purge_step": load_checkpoint(last)["global_step"] + 1} if last.exists() else {}
            made = TensorBoardLogger(folder, "", TENSORBOARD, default_hp_metric=False, **purge)
        made = list(made) if isinstance(made, list | tuple) else [made]
        self.loggers: list[Any] = made if setting != "csv" and is_rank_zero() else []
        allowed = "'csv', 'tensorboard', a Lightning logger, a list of them, or a function of the run's folder"
        known = all(isinstance(each, Logger) for each in self.loggers)
        check(known, f"logger is {shown(setting)}; it must be {allowed} that makes one.")

    def _tell(self, what: Callable[[Any], object]) -> None:
        for logger in list(self.loggers):
            try:
                what(logger)
            except Exception as error:  # of any tracker, or its server
                name = type(logger).__name__
                print(f"warning: {name} failed, and is told nothing more: {one_line(error)}", flush=True)
                self.loggers.remove(logger)

    def log_settings(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._tell(lambda logger: logger.log_hyperparams(settings))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._tell(lambda logger: (logger.log_metrics(metrics, step), logger.save()))

    def log_results(self, results: dict[str, Any], folder: Path, step: int) -> None:
        """Log the metrics of the tested checkpoint and the figures, and end the runs of the trackers."""
        metrics = {f"test_{name}": value for name, value in results.get("test", {}).items()}
        metrics |= {f"best_val_{name}": value for name, value in results["validation"].items()}

        def log(logger: Any) -> None:
            if isinstance(logger, TensorBoardLogger):  # it shows settings beside results, if it gets both at once
                logger.log_hyperparams(self.settings, metrics, step)
            else:
                logger.log_metrics(metrics, step)
            for path in sorted(folder.glob("*.png")):
                if isinstance(logger, TensorBoardLogger):
                    figure = image.imread(path)[..., :3]
                    logger.experiment.add_image(path.stem, figure, step, dataformats="HWC")
                elif hasattr(logger, "log_image"):  # Weights & Biases
                    logger.log_image(path.stem, [str(path)], step)
                elif hasattr(logger.experiment, "log_artifact"):  # MLflow
                    logger.experiment.log_artifact(logger.run_id, str(path))

        self._tell(log)
        self.end("success")

    def end(self, status: str) -> None:
        """status: "success" or "failed"."""
        self._tell(lambda logger: logger.finalize(status))
        # otherwise Weights & Biases would go on in this run with the next one of this process
        self._tell(lambda logger: getattr(logger.experiment, "finish", lambda: None)())
