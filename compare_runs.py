"""Compare runs: `python compare_runs.py [FOLDER...]`.

Prints all tested runs below the folders (default: runs/), and writes them to runs/compare_runs.csv: the model, its
data, the settings that differ between runs of the same model, and the test metrics. A run is also compared with the
first one on the same test rows: the difference of the main metrics, with a 95 % interval over rows.
"""

import re
from pathlib import Path
from typing import Any

from common.errors import answer_help, check, run_script

USAGE = "[FOLDER...]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

import pandas as pd
import torch

from common.files import read_json
from common.paths import output_root
from common.training.predictions import read_predictions
from common.training.results import with_interval
from common.training.run_folder import NOT_COMPARED
from common.training.seeds import metrics_of


def compare_runs(*folders: str | Path) -> pd.DataFrame:
    """The table, with the ends of the intervals in columns of their own."""
    runs = find_runs([Path(folder) for folder in folders] or [output_root() / "runs"])
    settings = pd.DataFrame.from_dict({name: run["settings"] for name, run in runs.items()}, "index").map(str)
    compared = settings.drop(columns=[*NOT_COMPARED], errors="ignore")
    models = compared.groupby({name: run["model"] for name, run in runs.items()})
    differing = {model: part.columns[part.nunique() > 1] for model, part in models}
    first: dict[Any, tuple[str, torch.Tensor]] = {}  # name and predictions of the first run, by what was predicted
    rows: list[dict[str, Any]] = []
    shown: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # by data and metrics
    for name, run in runs.items():
        about = {"run": name, "model": run["model"]}
        about |= settings.loc[name, differing[run["model"]]].to_dict() | run["test"]
        columns, groups = read_predictions(run["run_folder"], ["row", "target", "prediction"])
        target, prediction = torch.tensor(columns["target"]), torch.tensor(columns["prediction"])
        sample = ", built-in sample" if run["is_sample"] else ""
        group = f"{run['dataset']}{sample}, {run['protocol']}", *run["test"]
        of_rows = *group, columns["row"].tobytes(), columns["target"].tobytes()
        other, others = first.setdefault(of_rows, (name, prediction))
        found = {} if other == name else metrics_of(run["test"]).compare(prediction, others, target, groups)
        about |= {"compared with": other} if found else {}
        ends = {f"{metric}: {end}": value for metric, parts in found.items() for end, value in parts.items()}
        rows.append({"data": group[0]} | about | ends)
        texts = {f"{metric}: difference": with_interval(parts) for metric, parts in found.items()}
        shown.setdefault(group, []).append(about | texts)
    for (data, *_), part in shown.items():
        print(f"\n{data}\n{pd.DataFrame(part).to_string(index=False, float_format='{:.4f}'.format, na_rep='')}")
    table, path = pd.DataFrame(rows), output_root() / "runs" / "compare_runs.csv"
    table.to_csv(path, index=False)
    print(f"\nAll in one table: {path}", flush=True)
    return table


def find_runs(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Results of tested runs by the path of their folder, in natural order (version_10 after version_9)."""
    runs, home = {}, output_root() / "runs"
    for folder in folders:
        found = {path.parent: read_json(path) for path in folder.rglob("results.json")}
        tested = {path: results | {"run_folder": str(path)} for path, results in found.items() if "test" in results}
        check(bool(tested), f"{folder} has no tested run; expected a folder of runs, such as runs/deepfm.")
        for path in sorted(tested, key=lambda path: re.sub(r"\d+", lambda digits: digits[0].zfill(9), str(path))):
            runs[str(path.relative_to(home) if path.is_relative_to(home) else path)] = tested[path]
    return runs


if __name__ == "__main__":
    run_script(compare_runs, USAGE)
