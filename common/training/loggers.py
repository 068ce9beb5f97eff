"""The TRAINING setting "logger": metrics.csv is always written; a Lightning logger gets the same metrics and more."""

import time
from pathlib import Path
from typing import Any

from matplotlib import image
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from common.checkpoint import load_checkpoint
from common.settings import Settings
from common.training.run_folder import LAST_CHECKPOINT

TENSORBOARD = "tensorboard"  # the setting, and the folder of its files within the run's folder


def make_logger(setting: str | Logger, folder: Path, resumes: bool) -> Logger | None:
    """The logger of a run. resumes: whether the run continues from last.ckpt and so repeats the steps after it."""
    if isinstance(setting, Logger):
        return setting
    if setting != TENSORBOARD:
        return None
    purge = {"purge_step": load_checkpoint(folder / LAST_CHECKPOINT)["global_step"] + 1} if resumes else {}
    return TensorBoardLogger(folder, "", TENSORBOARD, default_hp_metric=False, **purge)


def log_results(logger: Logger, results: dict[str, Any], settings: Settings, folder: Path, step: int) -> None:
    """Log the settings, the metrics of the tested checkpoint and, if the logger takes images, the figures."""
    metrics = {f"test_{name}": value for name, value in results.get("test", {}).items()}
    metrics |= {f"best_val_{name}": value for name, value in results["validation"].items()}
    hyperparameters = {name: value for name, value in settings.flat().items() if name != "logger"}
    if isinstance(logger, TensorBoardLogger):
        time.sleep(1)  # a new file is named by the second, and would replace that of a fit within the same second
        logger.log_hyperparams(hyperparameters, metrics, step)  # TensorBoard's HParams page shows both
    else:
        logger.log_hyperparams(hyperparameters)
        logger.log_metrics(metrics, step)
    for path in sorted(folder.glob("*.png")):
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(path.stem, [str(path)], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, image.imread(path)[..., :3], step, dataformats="HWC")
    logger.finalize("success")
