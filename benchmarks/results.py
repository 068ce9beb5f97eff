"""Write the README's results table from results.json files: `python benchmarks/results.py [RUNS]` (default: runs/).

One row per model, dataset and protocol: mean and spread of the test metrics over the seeds, baselines and figures from
elsewhere beside them. No number is typed by hand but the latter, below.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.errors import check, run_script
from common.files import markdown_table
from common.paths import REPO, output_root

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
    for path in sorted(runs.glob("*/version_*/results.json")):
        result = json.loads(path.read_text())
        if not result["is_sample"] and "test" in result:
            settings = {k: v for k, v in result["settings"].items() if k not in ("seed", "data_root", "resume")}
            key = (path.parts[-3], result["model"], result["dataset"], result["protocol"], json.dumps(settings))
            groups[key].append(result)
    check(groups, f"{runs} has no finished runs on real data; run a train.py with DATA_ROOT set first.")
    header = ["model", "data", "test metrics, mean ± sd over seeds", "baselines", "elsewhere", "command, seconds"]
    rows = []
    for (folder, model, dataset, protocol, _), results in sorted(groups.items()):
        seconds = np.median([result["wall_seconds"] for result in results])
        baselines = "<br>".join(f"{name}: {_metrics([r], MAIN)}" for name, r in results[0]["baselines"].items())
        tested = f"{_metrics([r['test'] for r in results])} ({len(results)} seeds)"
        command = f"`{folder}/train.py`, {seconds:.0f}"
        rows.append([model, f"{dataset}, {protocol}", tested, baselines, ELSEWHERE.get((model, dataset), ""), command])
    return markdown_table(header, rows)


def _metrics(results: list[dict[str, float]], names: tuple[str, ...] = SHOWN) -> str:
    parts = []
    for name in results[0]:
        if name in names or name.startswith("auc_"):
            values = [result[name] for result in results]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            parts.append(f"{name} {np.mean(values):.4f}{spread}")
    return "<br>".join(parts)


if __name__ == "__main__":
    run_script(main, "[RUNS]")
