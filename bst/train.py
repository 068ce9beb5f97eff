"""Train BST on MovieLens: `python bst/train.py`.

With the real ratings below DATA_ROOT (python data/movie_rating_seq.py) it trains on them, else on the built-in sample.
Expected on ml-1m: test RMSE 0.900 (0.906 without the sequence), mean of 3 seeds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pytorch_lightning as pl

from bst.baselines import rating_baselines
from bst.bst import BST
from bst.figures import draw
from common.errors import run_script
from common.processes import on_ray
from common.run import claim_folder
from common.training import train_and_test
from data.movie_rating_seq import MovieRatingDataModule

DATASET = "ml-1m"  # folder below DATA_ROOT; 1M, 100K and the CSV releases are recognised from their files
SPLIT = "leave_last"  # "leave_last", "time" (a cut through all users), or "random" (leaks; as in published figures)
TARGET = "rating"  # "rating" (RMSE, MAE), or "click": a rating of at least 4 (AUC)
HISTORY = 40  # past ratings that the model sees (the paper: 20)
HISTORY_RATINGS = True  # whether it sees their values
START_FROM_BIASES = True  # whether predictions and histories start from movie biases and the user's past mean
USES_SEQUENCE = True  # False leaves out the transformer
EMBEDDING_DIM = 32
HEADS = 4  # the paper: 8
BLOCKS = 1  # best in the paper
FACTORS = 32  # of the factorization beside the MLP
HIDDEN = (128, 64)  # widths of the MLP (the paper: 1024, 512, 256)
DROPOUT = 0.1  # of blocks and MLP
EMBEDDING_L2 = 1.6e-4  # on the factors of a batch
LEARNING_RATE = 3e-3  # of Adam
EMBEDDING_LEARNING_RATE = 6e-3  # of the factors: a row of theirs is in few batches
SCHEDULE = "linear"  # of the learning rate: "linear" to 0 at the last epoch's end, or "plateau": x 0.1 at each stall
BATCH_SIZE = 1024  # ratings
MAX_EPOCHS = 4
VALIDATIONS_PER_EPOCH = 1
PATIENCE = 2  # validations without a better result before the run ends
SEED = 1
PRECISION = "auto"  # "auto" (bf16 where the processor has it), "32-true", "bf16-mixed"
NUM_WORKERS = 0  # loader processes; windows into mapped arrays need none
DEVICES = 1  # processes on this machine that train together, one per GPU or CPU; BATCH_SIZE is that of all
NUM_NODES = 1  # machines; the script is started on each (README, More than one process)
STRATEGY = "auto"  # "auto" is "ddp" for several processes; "ray": processes of a Ray cluster
RESUME = False  # True continues the newest unfinished run


@on_ray
def train(
    dataset=DATASET,
    data_root=None,
    split=SPLIT,
    target=TARGET,
    history=HISTORY,
    history_ratings=HISTORY_RATINGS,
    start_from_biases=START_FROM_BIASES,
    uses_sequence=USES_SEQUENCE,
    embedding_dim=EMBEDDING_DIM,
    heads=HEADS,
    blocks=BLOCKS,
    factors=FACTORS,
    hidden=HIDDEN,
    dropout=DROPOUT,
    embedding_l2=EMBEDDING_L2,
    learning_rate=LEARNING_RATE,
    embedding_learning_rate=EMBEDDING_LEARNING_RATE,
    schedule=SCHEDULE,
    batch_size=BATCH_SIZE,
    max_epochs=MAX_EPOCHS,
    validations_per_epoch=VALIDATIONS_PER_EPOCH,
    patience=PATIENCE,
    seed=SEED,
    precision=PRECISION,
    num_workers=NUM_WORKERS,
    devices=DEVICES,
    num_nodes=NUM_NODES,
    strategy=STRATEGY,
    resume=RESUME,
) -> dict:
    """Fit, test the best checkpoint, return the content of results.json.

    The baselines hold the same model without its sequence, trained in the same way in a folder within this run's.
    """
    settings = dict(locals())
    with claim_folder("bst", settings) as folder:
        data = MovieRatingDataModule(
            dataset,
            data_root,
            split,
            target,
            history,
            history_ratings,
            start_from_biases,
            batch_size,
            seed,
            num_workers,
        )
        data.setup()

        def fit(folder: Path, uses_sequence: bool, baselines) -> dict:
            pl.seed_everything(seed, verbose=False)
            model = BST(
                data.encoder.num_movies,
                len(data.encoder.genres),
                data.encoder.user_sizes,
                history,
                embedding_dim,
                heads,
                blocks,
                factors,
                hidden,
                dropout,
                target,
                data.scale,
                uses_sequence,
                learning_rate,
                embedding_learning_rate,
                embedding_l2,
            )
            model.genre_shares.copy_(data.encoder.genre_shares(data.movies))
            return train_and_test(
                model,
                data,
                folder,
                settings | {"uses_sequence": uses_sequence},
                monitor="val_auc" if target == "click" else "val_rmse",
                mode="max" if target == "click" else "min",
                baselines=baselines,
                best_possible=data.best_possible,
                draw=lambda model, folder: draw(model, data, folder),
            )

        def baselines() -> dict[str, dict[str, float]]:
            if not uses_sequence:
                return rating_baselines(data)
            with claim_folder("bst", settings, folder / "without_sequence") as inner:
                without = fit(inner, False, dict)
            return {without["model"]: without["test"]} | rating_baselines(data)

        return fit(folder, uses_sequence, baselines)


if __name__ == "__main__":
    run_script(train)
