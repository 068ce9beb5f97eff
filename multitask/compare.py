"""The paper's table beside ours, for all models, both task groups and several seeds: `python multitask/compare.py`.

With the defaults it trains 54 models, one at a time; on the real rows each takes about a minute and a half on one core.
If it is interrupted, the same command continues; finished runs are kept. Every model has as many parameters as MMoE
(Single-Task: all its models together), and is tuned on validation rows over the same candidates, with the first seed.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import answer_help, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

import pandas as pd

from common.files import read_json
from common.model.metrics import TaskMetrics
from common.paths import output_root
from common.settings import Settings
from data.census_income import MultiTaskDataModule
from multitask.baselines import logistic_regression
from multitask.mmoe import DISPLAY_NAMES, MMoE
from multitask.train import DATA, MODEL, OPTIMIZER, TRAINING, train

GROUPS = {"group 1": ("income", "never_married"), "group 2": ("education", "never_married")}  # main task first
SEEDS = (1, 2, 3, 4, 5)
CANDIDATES = ({"dropout": 0.1}, {"dropout": 0.3})  # changes to the settings of train.py
# Ma et al. 2018: for each task, AUC in the run that is best on the main task, and mean AUC over runs
PAPER = {
    "group 1": {
        "Single-Task": [(0.9398, 0.9337), (0.9933, 0.9922)],
        "Shared-Bottom": [(0.9361, 0.9295), (0.9915, 0.9921)],
        "OMoE": [(0.9387, 0.9319), (0.9928, 0.9923)],
        "MMoE": [(0.9410, 0.9359), (0.9926, 0.9927)],
    },
    "group 2": {
        "Single-Task": [(0.8843, 0.8792), (0.9933, 0.9922)],
        "Shared-Bottom": [(0.8836, 0.8813), (0.9927, 0.9917)],
        "OMoE": [(0.8852, 0.8813), (0.9915, 0.9912)],
        "MMoE": [(0.8860, 0.8826), (0.9932, 0.9924)],
    },
}


def compare(
    *, groups: dict = GROUPS, seeds: Sequence[int] = SEEDS, candidates: Sequence[dict] = CANDIDATES, **changes: Any
) -> pd.DataFrame:
    """One row per group, model and task, also written as compare.csv.

    changes: settings of multitask/train.py to change, by name."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes)
    runs = []  # one dict per group, model, seed and task
    for seed in seeds:
        for group, tasks in groups.items():
            data = MultiTaskDataModule(**settings.data | {"tasks": tasks}, seed=seed)
            data.setup()
            folder = output_root() / "runs" / "multitask_compare" / ("sample" if data.is_sample else data.dataset)
            tested = {}
            if seed == seeds[0]:  # logistic regression is deterministic
                (probability,) = logistic_regression(data).values()
                tested["logistic regression"] = TaskMetrics(tasks).measure(probability, data.targets("test"))
            for variant, name in DISPLAY_NAMES.items():
                tested[name] = {}
                for group_tasks in [(task,) for task in tasks] if variant == "single_task" else [tasks]:
                    units = parameter_matched_units(variant, group_tasks, len(tasks), data, settings)
                    weights = (1.0,) * len(group_tasks)
                    model = {"variant": variant, "tasks": group_tasks, "task_weights": weights, "expert_units": units}
                    tried = [run(folder, changes | model | each | {"seed": seeds[0]}) for each in candidates]
                    best = max(range(len(tried)), key=lambda i: tried[i]["validation"]["auc_mean"])
                    tested[name] |= run(folder, changes | model | candidates[best] | {"seed": seed})["test"]
            runs += [
                {"group": group, "model": name, "task": task, "seed": seed, "auc": metrics[f"auc_{task}"]}
                for name, metrics in tested.items()
                for task in tasks
            ]
        table = summarise(pd.DataFrame(runs), groups)
        table.to_csv(folder / "compare.csv", index=False)
    if data.is_sample:
        print("These runs are on the built-in sample, the paper's figures on the real data: they cannot be compared.")
    print(table.to_string(index=False, float_format="{:.4f}".format, na_rep=""))
    print(f"Runs and table: {folder}", flush=True)
    return table


def run(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The results of a training run, which is trained now unless it is finished."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes).flat()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    home = folder / f"{settings['variant']}-{'-'.join(settings['tasks'])}-seed{settings['seed']}-{digest}"
    if (home / "results.json").exists():
        return read_json(home / "results.json")
    return train(run_folder=home, baselines=lambda data: {}, **changes)


def parameter_matched_units(
    variant: str, tasks: Sequence[str], group_size: int, data: MultiTaskDataModule, settings: Settings
) -> tuple[int, ...]:
    """Expert widths, of which the first is adapted, with which a variant has as many parameters as MMoE."""
    first, *others = settings.model["expert_units"]

    def parameters(variant: str, tasks: Sequence[str], first: int) -> int:
        weights = {"task_weights": (1.0,) * len(tasks)}
        sizes = settings.model | {"variant": variant, "expert_units": (first, *others)} | weights
        return MMoE(data.bin_edges, data.cardinalities, tasks, **sizes, optimizer=settings.optimizer).count_parameters()

    # Single-Task: the models of all tasks share the budget
    budget = parameters("mmoe", data.tasks, first) * len(tasks) / group_size
    one, two = parameters(variant, tasks, 1), parameters(variant, tasks, 2)  # the count is linear in the first width
    return round(1 + (budget - one) / (two - one)), *others


def summarise(runs: pd.DataFrame, groups: dict) -> pd.DataFrame:
    """Mean and standard deviation over seeds, and both tasks' AUC in the run that is best on the main task."""
    rows = []
    for (group, model), part in runs.groupby(["group", "model"], sort=False):
        auc = part.pivot(index="seed", columns="task", values="auc")
        best = auc[groups[group][0]].idxmax()
        for i, task in enumerate(groups[group]):
            paper_best, paper_mean = PAPER.get(group, {}).get(model, [(None, None)] * len(groups[group]))[i]
            row = {"group": group, "model": model, "task": task, "runs": len(auc), "best on main": auc[task][best]}
            row |= {"mean": auc[task].mean(), "std": auc[task].std()}
            rows.append(row | {"paper best": paper_best, "paper mean": paper_mean})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_script(compare)
