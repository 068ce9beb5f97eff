"""The paper's table with ours beside it: all models x both task groups x seeds: `python multitask/compare.py`.

Stopped at any point, the same command goes on: finished runs are kept. Every model has MMoE's number of parameters
(Single-Task: over all its models) and is tuned on the validation rows with the same tries, on the first seed.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pandas as pd
from matplotlib.figure import Figure

from common.errors import run_script
from common.files import markdown_table, write_json
from common.paths import output_root
from data.census_income import CensusIncomeDataModule
from multitask.baselines import logistic_regression
from multitask.mmoe import TITLES, MMoE
from multitask.train import train

GROUPS = {"group 1": ("income", "never_married"), "group 2": ("education", "never_married")}  # main task first
SEEDS = (1, 2, 3, 4, 5)
TRIES = ({"dropout": 0.1}, {"dropout": 0.3})  # settings that differ from train.py's
# AUC of each task (in the run that is best on the main task, mean over runs), Ma et al. 2018
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


def compare(settings: dict, groups=GROUPS, seeds: Sequence[int] = SEEDS, tries: Sequence[dict] = TRIES) -> pd.DataFrame:
    """One row per group, model and task, also written as compare.csv, compare.md and compare.png.

    settings: of train.py, where they differ from its constants.
    """
    constants = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    settings = {name: value for name, value in constants.items() if name not in ("run_folder", "baselines")} | settings
    runs = []  # one dict per group, model, seed and task
    for seed in seeds:
        for group, tasks in groups.items():
            data = CensusIncomeDataModule(
                settings["dataset"], settings["data_root"], tasks, settings["min_count"], settings["num_bins"]
            )
            data.setup()
            folder = output_root() / "runs" / "multitask_compare" / ("sample" if data.is_sample else data.dataset)
            tested = {}
            if seed == seeds[0]:  # it has no randomness
                linear = folder / f"linear-{'-'.join(tasks)}.json"
                tested["logistic regression"] = kept(linear, logistic_regression, data)
            for model in TITLES:
                tested[TITLES[model]] = {}
                for part in [(task,) for task in tasks] if model == "single_task" else [tasks]:
                    units = fair_units(model, part, len(tasks), data, settings)
                    cell = {"model": model, "tasks": part, "task_weights": [1.0] * len(part), "expert_units": units}
                    tried = [run(folder, settings | cell | one | {"seed": seeds[0]}) for one in tries]
                    best = max(tried, key=lambda results: results["validation"]["auc_mean"])
                    results = run(folder, best["settings"] | {"seed": seed})
                    tested[TITLES[model]] |= results["test"]
            runs += [
                {"group": group, "model": model, "task": task, "seed": seed, "auc": metrics[f"auc_{task}"]}
                for model, metrics in tested.items()
                for task in tasks
            ]
        table = summarise(pd.DataFrame(runs), groups)
        write_table(table, folder)
    print(table.to_string(index=False, float_format="{:.4f}".format, na_rep=""))
    print(f"Runs, table and figure: {folder}", flush=True)
    return table


def run(folder: Path, settings: dict) -> dict:
    """The results of a training run; trained now if it is not finished."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    home = folder / f"{settings['model']}-{'-'.join(settings['tasks'])}-seed{settings['seed']}-{digest}"
    if not (home / "results.json").exists():
        train(**settings, run_folder=home, baselines=lambda data: {})
    return json.loads((home / "results.json").read_text())


def kept(path: Path, measure: Callable[[CensusIncomeDataModule], dict], data: CensusIncomeDataModule) -> dict:
    """Test metrics of the one baseline that `measure(data)` returns; measured now if they are not in the file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (metrics,) = measure(data).values()
        write_json(path, metrics)
    return json.loads(path.read_text())


def fair_units(model: str, tasks: Sequence[str], group_size: int, data: CensusIncomeDataModule, settings: dict) -> list:
    """Widths of an expert with which `model` has as many parameters as MMoE: the first one makes up the difference."""

    def parameters(model: str, tasks: Sequence[str], first: int) -> int:
        sizes = data.encoder.bin_edges, data.encoder.field_sizes, tasks, [1.0] * len(tasks), settings["num_experts"]
        units = [first, *settings["expert_units"][1:]]
        network = MMoE(model, *sizes, units, settings["tower_units"], settings["embedding_dim"], 0.0, 1e-3, 0.0)
        return sum(parameter.numel() for parameter in network.parameters())

    # Single-Task: the models of all tasks share the budget
    budget = parameters("mmoe", data.tasks, settings["expert_units"][0]) * len(tasks) / group_size
    one, two = parameters(model, tasks, 1), parameters(model, tasks, 2)  # linear in the first width
    return [round(1 + (budget - one) / (two - one)), *settings["expert_units"][1:]]


def summarise(runs: pd.DataFrame, groups: dict) -> pd.DataFrame:
    """Mean and standard deviation over seeds, and both tasks in the run that is best on the main one."""
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


def write_table(table: pd.DataFrame, folder: Path) -> None:
    table.to_csv(folder / "compare.csv", index=False)
    cells = table.map(lambda value: f"{value:.4f}" if isinstance(value, float) else str(value)).replace("nan", "")
    (folder / "compare.md").write_text(markdown_table(list(table.columns), cells.values))
    parts = list(table.groupby(["group", "task"], sort=False))
    figure = Figure((8, 1 + 1.6 * len(parts)), layout="constrained")
    for axes, ((group, task), part) in zip(figure.subplots(len(parts), squeeze=False).flat, parts, strict=True):
        axes.errorbar(
            part["mean"], part["model"], xerr=part["std"], fmt="o", capsize=3, label="mean and std of our runs"
        )
        axes.plot(part["paper mean"], part["model"], "x", color="gray", label="mean in the paper")
        axes.set_title(f"{group}: AUC of {task}, test rows", fontsize="medium")
        axes.invert_yaxis()
    figure.axes[0].legend(fontsize="small")
    figure.savefig(folder / "compare.png", dpi=120)


if __name__ == "__main__":
    run_script(lambda: compare({}))
