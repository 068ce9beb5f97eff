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

Setting = str | Logger | list[Logger] | Callable[[Path], Logger]


class Trackers:
    """The loggers of a run, on rank zero. One that fails costs a warning, and is told nothing more."""

    def __init__(self, setting: Setting, folder: Path):
        made: Any = setting(folder) if callable(setting) and is_rank_zero() else setting
        made = _tensorboard(folder) if made == TENSORBOARD else made
        self.loggers: list[Logger] = list(made) if isinstance(made, list | tuple) else [made]
        if setting == "csv" or not is_rank_zero():
            self.loggers = []
        check(
            all(isinstance(each, Logger) for each in self.loggers),
            f"logger is {shown(setting)}; it must be 'csv', 'tensorboard', a Lightning logger, a list of them, or a "
            "function of the run's folder that makes one.",
        )

    def _tell(self, what: Callable[[Any], object]) -> None:
        for logger in list(self.loggers):
            try:
                what(logger)
            except Exception as error:  # of any tracker, or its server
                name = type(logger).__name__
                print(f"warning: {name} failed, and is told nothing more: {one_line(error)}", flush=True)
                self.loggers.remove(logger)

    def log_settings(self, settings: dict[str, Any]) -> None:
        # TensorBoard gets them at the end, because its page of settings shows them beside the results
        self._tell(lambda logger: isinstance(logger, TensorBoardLogger) or logger.log_hyperparams(settings))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._tell(lambda logger: (logger.log_metrics(metrics, step), logger.save()))

    def log_results(self, settings: dict[str, Any], results: dict[str, Any], folder: Path, step: int) -> None:
        """Log the metrics of the tested checkpoint and the figures."""
        metrics = {f"test_{name}": value for name, value in results.get("test", {}).items()}
        metrics |= {f"best_val_{name}": value for name, value in results["validation"].items()}
        figures = sorted(folder.glob("*.png"))

        def log(logger: Any) -> None:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, metrics, step)
                for path in figures:
                    pixels = image.imread(path)[..., :3]
                    logger.experiment.add_image(path.stem, pixels, step, dataformats="HWC")
            else:
                logger.log_metrics(metrics, step)
            for path in figures:
                if hasattr(logger, "log_image"):  # Weights & Biases
                    logger.log_image(path.stem, [str(path)], step)
                elif hasattr(logger.experiment, "log_artifact"):  # MLflow
                    logger.experiment.log_artifact(logger.run_id, str(path))

        self._tell(log)
        self.end("success")

    def end(self, status: str) -> None:
        """End the run of each tracker; status: "success" or "failed"."""

        def end(logger: Any) -> None:
            logger.finalize(status)
            if hasattr(
                logger.experiment, "finish"
            ):  # otherwise W&B would go on in it with the next run of this process
                logger.experiment.finish()

        self._tell(end)


def _tensorboard(folder: Path) -> TensorBoardLogger:
    last = folder / LAST_CHECKPOINT  # a resumed run repeats the steps after it
    purge = {"purge_step": load_checkpoint(last)["global_step"] + 1} if last.exists() else {}
    return TensorBoardLogger(folder, "", TENSORBOARD, default_hp_metric=False, **purge)
