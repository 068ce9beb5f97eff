"""Write the README's results from results.json files: `python benchmarks/results.py [RUNS]` (default: runs/).

One table per dataset and protocol: for each model and its settings the mean and spread of the test metrics over the
seeds, the metrics of the averaged predictions, and the first seed's difference from the strongest baseline; then the
baselines, and below the table the commands. Tables of datasets without a run in RUNS stay as they are. The only numbers
typed by hand are those from elsewhere.
"""

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.errors import check, run_script
from common.files import read_json
from common.paths import REPO, output_root
from common.training.fit import LOSSES
from common.training.results import with_interval
from common.training.seeds import averaged_metrics, markdown_table, values, with_sd

BEGIN, END = "<!-- results: python benchmarks/results.py -->\n", "<!-- end of results -->"
HEADING = "#### "
# by dataset and first word of the protocol: published figures, or those of others' code on these rows
ELSEWHERE = {
    ("ml-1m", "random"): (
        "DeepFM of FuxiCTR .9016 ± .0006 (best of eight settings on validation rows), of DeepCTR-Torch .8918 ± .0013 "
        "(of two), each with 8 epochs (`benchmarks/studies/peers_accuracy.py`). On another random 8:1:1 split of these "
        "rows LightGBM .8890, logistic regression .8737."
    ),
    ("ml-1m", "leave_last"): "an untuned port of BST has RMSE .9437 to .9484.",
    ("census-income-kdd", "published"): "the paper's MMoE (mean) has income .9359, never married .9927.",
    ("criteo", "time"): (
        "FuxiCTR on these rows: DeepFM .7478 to .7484, DLRM .7485. On other rows and splits, of the full "
        "dataset: BARS x4_001 DeepFM .8143; x1 DeepFM .8138, DLRM .8138."
    ),
}
FIRST, LAST = "ml-1m, random", "criteo"  # what any reader can reproduce leads; a sample that is not public comes last
NOT_OF_THE_COMMAND = ("seed", "data_root", "resume")
MAIN = ("auc", "rmse")  # metrics that rank the baselines; an AUC of a task starts with auc_
SHOWN = (*MAIN, "gauc", "log_loss", "mae")  # metrics of the table, besides those of tasks
LABEL = {"adult": "income", "census-income-kdd": "income"}  # the one that models of one label learn

Results = dict[str, Any]  # the contents of a results.json, with the run's folder


def main(folder: str | None = None) -> None:
    """Replace the tables between the two markers of the README."""
    sections = results_sections(Path(folder) if folder else output_root() / "runs")
    readme = REPO / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    old, after = rest.split(END)
    kept = {heading: text for heading, _, text in (part.partition("\n") for part in old.split(HEADING)[1:])}
    merged = kept | sections
    order = sorted(merged, key=lambda heading: (not heading.startswith(FIRST), heading.startswith(LAST), heading))
    table = "".join(f"{HEADING}{heading}\n{merged[heading]}" for heading in order)
    readme.write_text(before + BEGIN + table + END + after)
    print(table)


def results_sections(runs: Path) -> dict[str, str]:
    """Table and commands in Markdown of all finished runs on real data below `runs`, by dataset and protocol.

    Raises: UserError if there are none.
    """
    sections: dict[tuple[str, str], dict] = defaultdict(lambda: defaultdict(list))
    paths = [*runs.glob("*/version_*/results.json"), *runs.glob("*_seeds/version_*/*/seed_*/results.json")]
    for path in sorted(paths):
        result = read_json(path) | {"run_folder": str(path.parent)}
        if not result["is_sample"] and "test" in result:
            settings = {k: v for k, v in result["settings"].items() if k not in NOT_OF_THE_COMMAND}
            script = path.relative_to(runs).parts[0].removesuffix("_seeds")
            key = (script, result["model"], json.dumps(settings))
            sections[result["dataset"], result["protocol"]][key].append(result)
    check(sections, f"{runs} has no finished runs on real data; run a train.py with DATA_ROOT set first.")
    return {
        f"{dataset}, {protocol}": _section(dataset, protocol, found) for (dataset, protocol), found in sections.items()
    }


def _section(dataset: str, protocol: str, found: dict[tuple[str, str, str], list[Results]]) -> str:
    rows: list[tuple[str, dict[str, str]]] = []
    baselines: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)  # cells by name and number of the run
    commands = []
    for number, ((script, model, settings), results) in enumerate(sorted(found.items()), 1):
        results.sort(key=lambda result: result["seed"])
        columns = columns_of(results[0])
        seeds = f"{len(results)} seeds" if len(results) > 1 else "1 seed"
        cells = {column: with_sd(values(results, name)) for name, column in columns.items()}
        rows.append((f"**{model}** ({number}), {seeds}", cells))
        if len(results) > 1:
            averaged = averaged_metrics(results)
            cells = {column: f"{averaged[name]:.4f}" for name, column in columns.items() if name in averaged}
            rows.append((f"({number}) averaged predictions", cells))
        first = results[0]
        best = _strongest(first["baselines"])
        for baseline, differences in first["differences"].items():
            if baseline == best or baseline.startswith(model):  # the strongest one, and BST without its sequence
                cells = {c: with_interval(differences[name]) for name, c in columns.items() if name in differences}
                rows.append((f"({number}) minus {baseline}, 95 %", cells))
        for baseline, tested in first["baselines"].items():
            cells = {c: with_sd(values(results, name, baseline)) for name, c in columns.items() if name in tested}
            baselines[baseline][number] = cells
        seconds = np.median([result["wall_seconds"] for result in results])
        commands.append(f"{number}. `{script}/train.py`{_changes(script, json.loads(settings))}: {seconds:.0f} s\n")
    for baseline, by_number in baselines.items():
        texts = {json.dumps(cells): cells for cells in by_number.values()}
        for text, cells in texts.items():
            numbers = ", ".join(str(number) for number, other in by_number.items() if json.dumps(other) == text)
            rows.append((baseline if len(texts) == 1 else f"{baseline} ({numbers})", cells))
    names = list(dict.fromkeys(name for _, cells in rows for name in cells))
    table = markdown_table(
        ["", *map(_title, names)], [[label, *(cells.get(name, "") for name in names)] for label, cells in rows]
    )
    elsewhere = ELSEWHERE.get((dataset, protocol.split()[0].rstrip(",")))
    return f"\n{table}\n" + (f"Elsewhere: {elsewhere}\n\n" if elsewhere else "") + "".join(commands) + "\n"


def columns_of(result: Results) -> dict[str, str]:
    """The metrics of the table, and the names of their columns: of tasks no mean loss, of one task no mean AUC."""
    names = [name for name in result["test"] if name in SHOWN or name.startswith("auc_")]
    tasks = sum(name.startswith("auc_") for name in names) - 1
    names = [name for name in names if name != ("log_loss" if tasks > 1 else "auc_mean")]
    label = LABEL.get(result["dataset"])
    return {name: f"auc_{label}" if name == "auc" and label else name for name in names}


def _strongest(baselines: dict[str, dict[str, float]]) -> str | None:
    """The baseline with the best main metric."""

    def quality(name: str) -> float:
        metric = next(metric for metric in baselines[name] if metric in MAIN or metric.startswith("auc_"))
        return baselines[name][metric] * (-1 if metric in LOSSES else 1)

    return max(baselines, key=quality, default=None)


def _title(metric: str) -> str:
    """AUC of auc, AUC of income of auc_income."""
    first, _, rest = metric.replace("log_loss", "log loss").partition("_")
    name = first if first == "log loss" else first.upper()
    return f"{name} {rest.replace('_', ' ')}".strip()


def _changes(script: str, settings: dict[str, Any]) -> str:
    """What differs from the settings at the top of the script, as arguments of its train()."""
    module = importlib.import_module(f"{script}.train")
    defaults = module.DATA | module.MODEL | module.OPTIMIZER | module.TRAINING
    settings = {name: tuple(value) if type(value) is list else value for name, value in settings.items()}
    changes = [f"{name}={value!r}" for name, value in settings.items() if value != defaults.get(name, defaults)]
    return f" with `train({', '.join(changes)})`" if changes else ""


if __name__ == "__main__":
    run_script(main, "[RUNS]")
