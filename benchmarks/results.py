"""Write the README's results table from results.json files: `python benchmarks/results.py [RUNS]` (default: runs/).

One row per model, dataset and protocol: mean and spread of the test metrics over the seeds, those of their averaged
predictions, baselines and figures from elsewhere beside them. No number is typed by hand but the latter, below.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.errors import check, run_script
from common.files import markdown_table, read_json
from common.paths import REPO, output_root
from common.training.seeds import averaged_metrics, values, with_sd

BEGIN, END = "<!-- results: python benchmarks/results.py -->\n", "<!-- end of results -->"
# (model, dataset): what others publish, or what their code gives on these rows
ELSEWHERE = {
    ("DeepFM", "criteo"): "FuxiCTR on these rows: .7478 to .7484; full set, random split: .8138 (BARS)",
    ("DLRM", "criteo"): "FuxiCTR on these rows: .7485; full set, random split: .8138 (BARS)",
    (
        "MMoE",
        "census-income-kdd",
    ): "paper (mean): income .9359, never married .9927; education .8826, never married .9924",
    ("BST", "ml-1m"): "untuned port: rmse .9437 to .9484",
}
MAIN = ("auc", "rmse")  # metrics shown of the baselines
SHOWN = (*MAIN, "log_loss", "mae")  # metrics of the table; an AUC of a task starts with auc_


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
            settings = {k: v for k, v in result["settings"].items() if k not in ("seed", "data_root", "resume")}
            script = path.relative_to(runs).parts[0].removesuffix("_seeds")
            key = (script, result["model"], result["dataset"], result["protocol"], json.dumps(settings))
            groups[key].append(result)
    check(groups, f"{runs} has no finished runs on real data; run a train.py with DATA_ROOT set first.")
    header = ["model", "data", "test metrics, mean ± sd over seeds", "baselines", "elsewhere", "command, seconds"]
    rows = []
    for (script, model, dataset, protocol, _), results in sorted(groups.items()):
        seconds = np.median([result["wall_seconds"] for result in results])
        metrics = [name for name in results[0]["test"] if name in SHOWN or name.startswith("auc_")]
        tested = [f"{name} {with_sd(values(results, name))}" for name in metrics]
        if len(results) > 1:
            averaged = averaged_metrics(results)
            tested.append("averaged predictions: " + ", ".join(f"{name} {averaged[name]:.4f}" for name in metrics))
        main = [name for name in metrics if name in MAIN or name.startswith("auc_")]
        baselines = [
            f"{baseline}: {'<br>'.join(f'{name} {with_sd(values(results, name, baseline))}' for name in main)}"
            for baseline in results[0]["baselines"]
        ]
        command = f"`{script}/train.py`, {seconds:.0f}"
        cells = f"{'<br>'.join(tested)} ({len(results)} seeds)", "<br>".join(baselines)
        rows.append([model, f"{dataset}, {protocol}", *cells, ELSEWHERE.get((model, dataset), ""), command])
    return markdown_table(header, rows)


if __name__ == "__main__":
    run_script(main, "[RUNS]")
