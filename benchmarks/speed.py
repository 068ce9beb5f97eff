"""Speed compared with other packages: `python benchmarks/speed.py [COMPARISON ...]` (see benchmarks/requirements.txt).

All contenders of a comparison have the same generated rows, fields, widths, batch size and threads. Other packages get
encoded arrays in memory and their documented training loop; ours is the whole run through Lightning with our loader,
timed without validation. Each repeat runs in its own process, and the contenders take turns. The results are medians,
spreads, and ratios to ours within each turn. Writes speed.csv (every repeat), speed.md and speed.png to OUTPUT, after
each comparison.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pandas as pd

from benchmarks import bst_plain, deepfm_peers, dlrm_reference, mmoe_rechub, ours, preparation
from benchmarks.criteo_shaped import OUTPUT, FullVocabulary, RawRows
from benchmarks.turns import TURN, Comparison, Contender, run_once, take_turns, write_tables
from common.errors import check, run_script
from common.training.processor import has_bf16

PRECISIONS = [*(["bf16-mixed"] if has_bf16() else []), "32-true"]
BEST = PRECISIONS[0]


def deepfm(batch_size: int, precision: str) -> float:
    data = RawRows(batch_size)
    return ours.speed(ours.deepfm(data), data, precision)


def deepfm_full() -> float:
    data = FullVocabulary(4096)
    return ours.speed(ours.deepfm(data), data, BEST)


def dlrm(batch_size: int, optimizer: str, learning_rate: float, precision: str) -> float:
    data = RawRows(batch_size)
    return ours.speed(ours.dlrm(data, optimizer=optimizer, learning_rate=learning_rate), data, precision)


def deepfm_contenders() -> dict[str, Contender]:
    contenders = {f"ours, {p}": Contender(lambda p=p: deepfm(4096, p)) for p in PRECISIONS}
    contenders |= {
        f"fbgemm, {p}": Contender(lambda p=p: deepfm_peers.fbgemm(RawRows(4096), p), 1.8 if p == "32-true" else 1.0)
        for p in PRECISIONS
    }
    contenders |= {
        f"floor, {p}": Contender(lambda p=p: deepfm_peers.floor(RawRows(4096), p), 0.75 if p == BEST else None)
        for p in PRECISIONS
    }
    return contenders | {
        "deepctr-torch": Contender(lambda: deepfm_peers.deepctr(RawRows(4096)), 4),
        "torch-rechub": Contender(lambda: deepfm_peers.rechub(RawRows(4096)), 5),
        "fuxictr": Contender(lambda: deepfm_peers.fuxictr(RawRows(4096)), 3),
    }


def dlrm_contenders(batch_size: int, precisions: list[str], at_least: float) -> dict[str, Contender]:
    rates = {"sgd": dlrm_reference.LEARNING_RATE, "adam": ours.ADAM["learning_rate"]}
    contenders = {
        f"ours, {name}, {p}": Contender(lambda name=name, rate=rate, p=p: dlrm(batch_size, name, rate, p))
        for p in precisions
        for name, rate in rates.items()
    }
    return contenders | {
        "the paper's step, sgd": Contender(lambda: dlrm_reference.reference(RawRows(batch_size)), at_least)
    }


COMPARISONS = {
    "deepfm": Comparison("DeepFM, 1.36 M embedding rows, batch 4096", 5, deepfm_contenders()),
    "deepfm-512": Comparison(
        "DeepFM, 1.36 M embedding rows, batch 512",
        3,
        {f"ours, {p}": Contender(lambda p=p: deepfm(512, p)) for p in PRECISIONS}
        | {"deepctr-torch": Contender(lambda: deepfm_peers.deepctr(RawRows(512, train_rows=50_000)), 5)},
    ),
    "deepfm-full": Comparison(
        f"DeepFM, 33.8 M embedding rows, batch 4096, {BEST}",
        3,
        {
            "ours": Contender(deepfm_full),
            "ours, 1.36 M rows": Contender(lambda: deepfm(4096, BEST), 0.8),
            "deepctr-torch": Contender(lambda: deepfm_peers.deepctr(FullVocabulary(4096, train_rows=3 * 4096)), 50),
        },
    ),
    "dlrm": Comparison("DLRM, 1.36 M embedding rows, batch 4096", 3, dlrm_contenders(4096, PRECISIONS, 2)),
    # bf16 does not pay off in steps this small, so float32 comes first
    "dlrm-128": Comparison("DLRM, 1.36 M embedding rows, batch 128", 3, dlrm_contenders(128, PRECISIONS[::-1], 1.3)),
    "mmoe": Comparison(
        "MMoE, Census sample, batch 1024",
        3,
        {f"ours, {p}": Contender(lambda p=p: mmoe_rechub.ours(p)) for p in PRECISIONS}
        | {"torch-rechub": Contender(mmoe_rechub.rechub, 4)},
    ),
    "bst": Comparison(
        "BST, sizes of bst/train.py",
        3,
        {f"ours, {p}": Contender(lambda p=p: bst_plain.ours(bst_plain.rows(), p)) for p in PRECISIONS}
        | {"plain port": Contender(lambda: bst_plain.plain(bst_plain.rows()), 3)},
    ),
    "preparation": Comparison(
        f"Criteo raw to cache, {preparation.ROWS:,} rows",
        3,
        {
            "ours": Contender(preparation.ours),
            "pyarrow, read only": Contender(preparation.arrow_raw, 0.5),
            "pandas, read and factorize only": Contender(preparation.pandas),
            "fuxictr": Contender(preparation.fuxictr, 10),
        },
    ),
    "preparation-own": Comparison(
        f"The same rows as a table of your own to cache, {preparation.ROWS:,} rows",
        3,
        {
            "ours, CSV": Contender(lambda: preparation.own_table("csv")),
            "ours, Parquet": Contender(lambda: preparation.own_table("parquet"), 1),
            "pyarrow, read only": Contender(preparation.arrow_csv, 0.5),
        },
    ),
}


def main(*names: str) -> None:
    """Run the named comparisons, or all."""
    names = names or tuple(COMPARISONS)
    unknown = [name for name in names if name not in COMPARISONS]
    check(not unknown, f"no comparison {', '.join(unknown)}; there are {', '.join(COMPARISONS)}.")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / "speed.csv"
    for name in names:
        turns = take_turns(__file__, name, COMPARISONS[name])
        if path.exists():
            earlier = pd.read_csv(path)
            turns = pd.concat([earlier[earlier["comparison"] != name], turns])
        turns.to_csv(path, index=False)
        write_tables(turns, COMPARISONS, OUTPUT)
    print((OUTPUT / "speed.md").read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == [TURN]:
        run_once(COMPARISONS[sys.argv[2]].contenders[sys.argv[3]])
    else:
        run_script(main, "[NAME...]")
