"""The README's results: `python benchmarks/results.py run [NAME...]` trains, `python benchmarks/results.py` writes.

The first trains RUNS, or those named, with all SEEDS on the real data in DATA_ROOT; if it is interrupted, the same
command continues. The second writes the tables of README.md and docs/results.md, with the runs that have been made. The
only numbers typed by hand are those from elsewhere.
"""

import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.errors import check, run_script
from common.files import read_json
from common.model.metrics import LOSSES
from common.paths import REPO, output_root
from common.training.results import with_interval
from common.training.seeds import Results, markdown_table, summary_table, train_seeds, values, with_sd


class Run(NamedTuple):
    data: str  # the heading of its table
    script: str
    changes: dict[str, Any]  # of the script's settings


SEEDS = (1, 2, 3)
ONCE = {"validations_per_epoch": 1}  # per epoch
CLICKS = ONCE | {"dataset": "ml-1m", "split": "random", "optimizer": "dense_adam", "max_epochs": 8}
INCOME = {"tasks": ("income",), "label_inputs": True, "variant": "single_task", "task_weights": (1.0,)}
INCOME |= {"expert_units": (128,), "tower_units": (128,)}
DLRM = ONCE | {"dropout": 0.3, "embedding_learning_rate": None, "embedding_l2": 1e-3}
DEEPFM = DLRM | {"on_regression": False, "learning_rate": 2e-3, "embedding_learning_rate": 3e-3, "embedding_l2": 3e-4}
ADULT, KDD = {"dataset": "adult", "split": "official"}, {"dataset": "census-income-kdd"}
WIDER = {"on_regression": False, "hidden_units": (256, 128), "embedding_learning_rate": 0.015, "embedding_l2": 5e-5}
SLOWER = {"batch_size": 256, "learning_rate": 1e-3, "max_epochs": 12}
ITEMS = {"target": "item", "dropout": 0.0}
SMALLER = {"batch_size": 1024, "embedding_dim": 16, "top_mlp_units": (256, 128), "dropout": 0.3}
SMALLER |= {"learning_rate": 1e-3, "embedding_learning_rate": 0.01, "embedding_l2": 3e-4}
RUNS = {
    "deepfm-clicks": Run("MovieLens clicks", "deepfm", CLICKS | WIDER),
    "dlrm-clicks": Run("MovieLens clicks", "dlrm", CLICKS | SMALLER),
    "bst-ratings": Run("MovieLens ratings", "bst", {}),
    "bst-items": Run("MovieLens next item", "bst", ITEMS),
    "single-task-adult": Run("Adult", "multitask", INCOME | ADULT | SLOWER),
    "deepfm-adult": Run("Adult", "deepfm", DEEPFM | ADULT | {"batch_size": 128, "max_epochs": 10}),
    "dlrm-adult": Run("Adult", "dlrm", DLRM | ADULT | {"batch_size": 256, "max_epochs": 6}),
    "mmoe-census": Run("Census-Income", "multitask", {}),
    "single-task-census": Run("Census-Income", "multitask", INCOME),
    "deepfm-census": Run("Census-Income", "deepfm", DEEPFM | KDD | {"batch_size": 512, "max_epochs": 4}),
    "dlrm-census": Run("Census-Income", "dlrm", DLRM | KDD | {"batch_size": 512, "max_epochs": 3}),
    "deepfm-criteo": Run("Criteo 0.3 % sample", "deepfm", {}),
    "dlrm-criteo": Run("Criteo 0.3 % sample", "dlrm", {}),
}
ELSEWHERE = {  # of others, on the same rows
    "deepfm-clicks": "FuxiCTR .9016 ± .0006, DeepCTR-Torch .8918 ± .0013",
    "bst-ratings": "a plain port, untuned, .9437 to .9484",
    "bst-items": "SASRec .1259 to .1341, BERT4Rec .1537, eSASRec .1772",
    "single-task-adult": "MLP .9047, FT-Transformer .9135, CatBoost .9276",
    "mmoe-census": "boosted trees .9530, the paper's mean .9359",
    "single-task-census": "boosted trees .9560",
    "deepfm-criteo": "FuxiCTR .7478 to .7484",
    "dlrm-criteo": "FuxiCTR .7485",
}
FIRST_SCREEN = ("deepfm-clicks", "dlrm-criteo", "mmoe-census", "single-task-adult", "bst-items")
# the README's is the first of these that a run has
METRICS = {"auc": "AUC", "auc_income": "AUC", "rmse": "RMSE", "ndcg": "NDCG@10"}
HEADER = ["averaged", "strongest baseline", "difference, 95 %", "elsewhere", "seconds"]


def main(command: str = "write", *names: str) -> None:
    check(command in ("run", "write"), f"found {command!r}, expected `run`, or nothing.")
    unknown = [name for name in names if name not in RUNS]
    check(not unknown, f"there is no run {', '.join(unknown)}; there are {', '.join(RUNS)}.")
    if command == "write":
        write()
        return
    for name in names or RUNS:
        print(f"\n{name}", flush=True)
        run = RUNS[name]
        train_seeds(import_module(f"{run.script}.train").train, SEEDS, folder_of(name), **run.changes)
        results_of(name)  # stops here if there is no real data


def folder_of(name: str) -> Path:
    return output_root() / "runs" / "results" / name


def results_of(name: str) -> list[Results]:
    """Of the seeds that have been trained. Raises: UserError if that was on the built-in sample."""
    found = []
    for path in (folder_of(name) / f"seed_{seed}" / "results.json" for seed in SEEDS):
        if path.exists() and "test" in (results := read_json(path)):
            check(not results["is_sample"], f"{path} is not of real data: set DATA_ROOT, and remove its folder.")
            found.append(results | {"run_folder": str(path.parent)})
    return found


def write() -> None:
    """Replace the tables of both pages by those of the runs that have been made."""
    first, tables, commands = [], defaultdict(list), ""
    made = {name: results for name in RUNS if (results := results_of(name))}
    check(bool(made), f"{folder_of('')} has no results: `python benchmarks/results.py run` first.")
    for name, results in made.items():
        run, seeds = RUNS[name], "" if len(results) == len(SEEDS) else f" ({len(results)} of {len(SEEDS)} seeds)"
        model, protocol = results[0]["model"], f"{results[0]['protocol']}, {results[0]['rows']['test']:,} test rows"
        metric = next(metric for metric in METRICS if metric in results[0]["test"])
        score, baseline = with_sd(values(results, metric)), strongest(results, metric)
        theirs = f"{baseline} {with_sd(values(results, metric, baseline))}"
        intervals = [each["differences"][baseline][metric] for each in results]
        difference = with_interval({end: float(np.mean([each[end] for each in intervals])) for end in intervals[0]})
        table = summary_table({model: results})
        averaged = table[metric].get(f"{model}, averaged predictions", "")
        seconds = f"{np.median([each['wall_seconds'] for each in results]):.0f}"
        row = [model + seeds, score, averaged, theirs, difference, ELSEWHERE.get(name, ""), seconds]
        tables[run.data, METRICS[metric], protocol].append(row)
        if name in FIRST_SCREEN:
            theirs = f"{baseline} {values(results, metric, baseline).mean():.4f}"  # must fit on the line
            first.append([model + seeds, run.data, f"{METRICS[metric]} **{score}**", theirs, seconds])
        changes = ", ".join(f"{key}={value!r}" for key, value in run.changes.items())
        commands += (
            f"## {model}: {run.data}\n\n{protocol}; all seeds: `python benchmarks/results.py run {name}`, one:\n\n"
            f'```bash\npython -c "from {run.script}.train import train; train({changes})"\n```\n\n'
            + markdown_table(["", *table], [[label, *cells] for label, *cells in table.itertuples()])
            + "\n"
        )
    sections = (
        f"### {data}\n\n{protocol}\n\n{markdown_table(['', title, *HEADER], rows)}\n"
        for (data, title, protocol), rows in tables.items()
    )
    header = ["model", "data", f"test, {len(SEEDS)} seeds", "strongest baseline", "s"]
    replace("README.md", "first", markdown_table(header, first))
    replace("README.md", "results", "\n" + "".join(sections))
    replace("docs/results.md", "results", f"\n{commands}")


def strongest(results: list[Results], metric: str) -> str:
    """The baseline with the best mean."""
    sign = -1 if metric in LOSSES else 1
    return max(results[0]["baselines"], key=lambda name: sign * values(results, metric, name).mean())


def replace(page: str, part: str, text: str) -> None:
    """Write the text between the page's two comments that name this part."""
    begin, end = f"<!-- {part}: python benchmarks/results.py -->\n", f"<!-- end of {part} -->"
    before, rest = (REPO / page).read_text().split(begin)
    text = text.replace(" ± ", "\u00a0±\u00a0")  # not to be divided over lines
    (REPO / page).write_text(before + begin + text + rest[rest.index(end) :])


if __name__ == "__main__":
    run_script(main, "[COMMAND...]")
