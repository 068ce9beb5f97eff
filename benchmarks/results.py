"""Write the README's results table from results.json files: `python benchmarks/results.py [RUNS]` (default: runs/).

One row per model, dataset, protocol and settings: mean and spread of the test metrics over the seeds, those of their
averaged predictions, baselines and figures from elsewhere beside them. No number is typed by hand but the latter.
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
from common.files import markdown_table, read_json
from common.paths import REPO, output_root
from common.training.results import with_interval
from common.training.seeds import averaged_metrics, values, with_sd

BEGIN, END = "<!-- results: python benchmarks/results.py -->\n", "<!-- end of results -->"
# (model, dataset): what others publish, or what their code gives on these rows
ELSEWHERE = {
    (
        "DeepFM",
        "criteo",
    ): "FuxiCTR on these rows: .7478 to .7484. On other rows and splits (full set): BARS x4_001 .8143, x1 .8138",
    ("DLRM", "criteo"): "FuxiCTR on these rows: .7485. On other rows and splits (full set): BARS x1 .8138",
    **dict.fromkeys(
        (("DeepFM", "ml-1m"), ("DLRM", "ml-1m")),
        "another random 8:1:1 split of these rows: LightGBM .8890, logistic regression .8737",
    ),
    (
        "MMoE",
        "census-income-kdd",
    ): "paper (mean): income .9359, never married .9927; education .8826, never married .9924",
    ("BST", "ml-1m"): "untuned port: rmse .9437 to .9484",
}
NOT_PUBLIC = ("criteo",)  # datasets of which only a sample was at hand: last in the table
NOT_OF_THE_COMMAND = ("seed", "data_root", "resume")
MAIN = ("auc", "rmse")  # metrics shown of the baselines
SHOWN = (*MAIN, "gauc", "log_loss", "mae")  # metrics of the table; an AUC of a task starts with auc_


def main(folder: str | None = None) -> None:
    """Replace the table between the two markers of the README."""
    runs = Path(folder) if folder else output_root() / "runs"
    table = results_table(runs)
    readme = REPO / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(before + BEGIN + table + END + after)
    print(table)


def results_table(runs: Path) -> str:
    """Markdown table of all finished runs on real data below `runs`.

    Raises: UserError where there are none.
    """
    groups = defaultdict(list)
    paths = [*runs.glob("*/version_*/results.json"), *runs.glob("*_seeds/version_*/*/seed_*/results.json")]
    for path in sorted(paths):
        result = read_json(path) | {"run_folder": str(path.parent)}
        if not result["is_sample"] and "test" in result:
            settings = {k: v for k, v in result["settings"].items() if k not in NOT_OF_THE_COMMAND}
            script = path.relative_to(runs).parts[0].removesuffix("_seeds")
            key = (script, result["model"], result["dataset"], result["protocol"], json.dumps(settings))
            groups[key].append(result)
    check(groups, f"{runs} has no finished runs on real data; run a train.py with DATA_ROOT set first.")
    header = ["model", "data", "test metrics, mean ± sd over seeds", "baselines (model minus it, first seed, 95 %)"]
    header += ["elsewhere", "command, seconds"]
    rows = []
    for (script, model, dataset, protocol, settings), results in sorted(
        groups.items(), key=lambda group: (group[0][2] in NOT_PUBLIC, group[0])
    ):
        results.sort(key=lambda result: result["seed"])
        seconds = np.median([result["wall_seconds"] for result in results])
        metrics = [name for name in results[0]["test"] if name in SHOWN or name.startswith("auc_")]
        tested = [f"{name} {with_sd(values(results, name))}" for name in metrics]
        if len(results) > 1:
            averaged = averaged_metrics(results)
            shown = [f"{name} {averaged[name]:.4f}" for name in metrics]
            tested.append(f"averaged predictions: {', '.join(shown)}")
        main = [name for name in metrics if name in MAIN or name.startswith("auc_")]
        differences = results[0]["differences"]
        baselines = [
            f"{baseline}: {'<br>'.join(_beside(results, baseline, name, differences[baseline]) for name in main)}"
            for baseline in results[0]["baselines"]
        ]
        command = f"`{script}/train.py`{_changes(script, json.loads(settings))}, {seconds:.0f}"
        cells = f"{'<br>'.join(tested)} ({len(results)} seeds)", "<br>".join(baselines)
        rows.append([model, f"{dataset}, {protocol}", *cells, ELSEWHERE.get((model, dataset), ""), command])
    return markdown_table(header, rows)


def _beside(results: list[dict[str, Any]], baseline: str, name: str, differences: dict[str, dict[str, float]]) -> str:
    """A baseline's metric, and how far the model is from it."""
    difference = f" ({with_interval(differences[name])})" if name in differences else ""
    return f"{name} {with_sd(values(results, name, baseline))}{difference}"


def _changes(script: str, settings: dict[str, Any]) -> str:
    """What differs from the settings at the top of the script, as arguments of its train()."""
    module = importlib.import_module(f"{script}.train")
    defaults = module.DATA | module.MODEL | module.OPTIMIZER | module.TRAINING
    settings = {name: tuple(value) if type(value) is list else value for name, value in settings.items()}
    changes = [f"{name}={value!r}" for name, value in settings.items() if value != defaults.get(name, defaults)]
    return f", `train({', '.join(changes)})`" if changes else ""


if __name__ == "__main__":
    run_script(main, "[RUNS]")
