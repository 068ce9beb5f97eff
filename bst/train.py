"""Train BST on MovieLens, or on your own interactions: `python bst/train.py`.

Trains on the real ratings if DATA_ROOT has them (`python data/movie_rating_seq.py` downloads them), otherwise on the
built-in sample. On ml-1m the test RMSE should reach 0.893 (0.904 without the sequence; means of 3 seeds), and with
train(target="item", dropout=0.0) the NDCG of lists 0.152 (0.043 without the sequence).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import answer_help, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from bst.baselines import baselines_of
from bst.bst import BST
from bst.plots import plot_history_length_and_attention
from common.cluster.launch import on_ray
from common.settings import Settings
from common.training.fit import fit_and_test
from common.training.predictions import saved_predictions
from common.training.run_folder import claim_run_folder
from data.movie_rating_seq import HistoryDataModule

DATA = dict(
    dataset="ml-1m",  # folder in data_root: 1M, 100K, a CSV release, or your own interactions (docs/your_data.md)
    data_root=None,  # None: the environment variable DATA_ROOT, otherwise data/raw
    split="leave_last",  # or "time" (the same cut-off times for all users), or "random" (leaks; common in publications)
    target="auto",  # "rating" (RMSE) if there are ratings, otherwise "item" (NDCG of a list); or "click" (AUC)
    negatives=32,  # for "item": sampled for each row anew in each epoch, from the items that its user has in no row
    negatives_power=0.0,  # drawn in proportion to popularity ^ this; 0: uniformly
    history_length=40,  # past items that the model sees; paper: 20
    history_ratings=True,  # whether it sees their ratings
    start_from_biases=True,  # predictions start from item and user biases, histories hold residuals from item biases
    batch_size="auto",  # rows, over all processes; "auto": by the number of rows, see AUTO
    num_workers=0,  # loader processes; windows into memory-mapped arrays need none
)
MODEL = dict(
    embedding_dim=32,
    num_heads=4,  # paper: 8
    num_blocks=1,  # the best number in the paper
    num_factors=32,  # of the factorization beside the MLP
    hidden_units=(128, 64),  # of the MLP; paper: (1024, 512, 256)
    dropout=0.1,  # of blocks and MLP
    loss="softmax",  # for "item": over an item and its negatives, or "bce"
    use_sequence=True,  # False: leave out the transformer
)
OPTIMIZER = dict(
    optimizer="dense_adam",  # steps all factors; "adam", those in a batch: faster with millions; or "adagrad", "sgd"
    learning_rate=3e-3,
    embedding_learning_rate=6e-3,  # of the factors, of which each row is in few batches
    embedding_l2=2e-5,  # on the factors that are stepped; 1.6e-4 with "adam", 0 with "adagrad" and "sgd"
    schedule="linear",  # or "cosine", both to 0 at the end of max_epochs; or "plateau": x 0.1 without improvement
    warmup_steps=0,  # in which the rate rises linearly, before the schedule
)
TRAINING = dict(
    max_epochs="auto",
    validations_per_epoch=1,
    monitor="auto",  # what chooses the checkpoint and stops the run: a metric of metrics.csv such as "val_log_loss"
    patience=2,  # validations without a better one before the run stops; None: it does not
    seed=1,  # of initial weights, dropout and the order of rows
    precision="auto",  # bf16 if that is faster, otherwise float32; or "32-true", "bf16-mixed"
    devices=1,  # processes on this machine, one per GPU or CPU
    num_nodes=1,  # machines; start the script on each (docs/processes.md)
    strategy="auto",  # DDP if there are several processes; or "ray": processes of a Ray cluster
    logger="csv",  # metrics.csv alone; or "tensorboard"; or Lightning's, or a function that makes one (docs/day.md)
    resume=False,  # True: continue the newest unfinished run
)
# "auto" with many training rows; with few, batches are smaller and epochs more (by_rows in common/settings.py)
AUTO = dict(batch_size=1024, max_epochs=4)
AUTO_ITEM = dict(batch_size=256, max_epochs=2)  # for "item", where each row has its negatives


@on_ray("bst", TRAINING)
def train(*, run_folder: str | Path | None = None, **changes: Any) -> dict[str, Any]:
    """Train BST, test its best checkpoint and return the contents of results.json.

    changes: settings above to change, by name: train(seed=2, dropout=0.2). One of the baselines is the same model
    without its sequence, trained in the same way in without_sequence/ of the run's folder."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes)
    with claim_run_folder("bst", settings.flat(), run_folder) as folder:
        data = HistoryDataModule(**settings.data, seed=settings.training["seed"])
        data.setup()
        settings = settings.for_rows(len(data.rows["train"]), AUTO_ITEM if data.target == "item" else AUTO)
        data.batch_size = settings.data["batch_size"]
        return fit(settings, data, folder)


def fit(settings: Settings, data: HistoryDataModule, folder: Path) -> dict[str, Any]:
    """Fit and test one model; if it has the sequence, also the model without it, as a baseline."""
    pl.seed_everything(settings.training["seed"], verbose=False)
    model = BST(
        data.encoder.num_items,
        data.encoder.num_attributes,
        data.encoder.user_cardinalities,
        history_length=data.history_length,
        target=data.target,
        rating_range=data.encoder.scale.range,
        rating_units=data.encoder.scale.units,
        **settings.model,
        optimizer=settings.optimizer,
    )
    model.attribute_shares.copy_(data.attribute_shares())

    def baselines(data: HistoryDataModule) -> dict[str, Tensor]:
        if not settings.model["use_sequence"]:
            return baselines_of(data)
        print("\nTraining one of the baselines, the same model without its sequence", flush=True)
        without = settings.changed({"use_sequence": False, "logger": "csv"})
        with claim_run_folder("bst", without.flat(), folder / "without_sequence") as inner:
            ablation = fit(without, data, inner)
        predictions = saved_predictions(inner)  # including those of the baselines
        return {ablation["model"]: predictions.pop("prediction")} | predictions if predictions else {}

    monitor = {"rating": "val_rmse", "click": "val_auc", "item": "val_ndcg"}[data.target]
    return fit_and_test(model, data, folder, settings, monitor, baselines, plot_history_length_and_attention)


if __name__ == "__main__":
    run_script(train)
