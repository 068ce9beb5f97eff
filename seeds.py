"""Train a script with several seeds: `python seeds.py deepfm 4` runs deepfm/train.py with seeds 1 to 4.

Each run is in runs/<script>_seeds/version_N/<variant>/seed_<seed>. At the end it prints mean and standard deviation of
the test metrics, metrics of the averaged predictions, and differences from the baselines and between VARIANTS, paired
by seed. If it is interrupted, the same command continues; a larger number adds runs. `python predict.py` scores new
rows with all checkpoints of a variant together.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from common.errors import answer_help, check, run_script

SCRIPTS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/train.py"))
USAGE = f"{'|'.join(SCRIPTS)} [NUMBER]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

from common.files import read_json, write_json
from common.paths import output_root
from common.settings import Settings
from common.training.run_folder import NOT_COMPARED, continued_folder
from common.training.seeds import CONFIDENCE, difference_table, summary_table, train_seeds

VARIANTS: dict[str, dict[str, Any]] = {  # changes to the settings in train.py; the first is compared with the others
    "as_it_is": {}
    # "more_dropout": dict(dropout=0.5),
}


def seeds(script: str, number: str | int = 3, variants: dict[str, dict[str, Any]] = VARIANTS) -> dict[str, Any]:
    """Train all variants with seeds 1 to `number`; returns the results of each, also written to seeds.json."""
    check(script in SCRIPTS, f"found {script!r}, expected one of {', '.join(SCRIPTS)}.")
    check(str(number).isdecimal() and int(number) > 0, f"found {number!r}, expected a number of seeds, such as 4.")
    count, module = int(number), import_module(f"{script}.train")
    settings = {name: settings_of(module, changes) for name, changes in variants.items()}
    home = output_root() / "runs" / f"{script}_seeds"
    folder = continued_folder(home, settings, lambda folder: is_complete(folder, count))
    print(f"Writing to {folder}", flush=True)
    write_json(folder / "settings.json", settings)
    groups = {}
    for name, changes in variants.items():
        print(f"\n{name}: {script}/train.py, {count} seeds", flush=True)
        groups[name] = train_seeds(module.train, range(1, count + 1), folder / name, **changes)
    write_json(folder / "seeds.json", groups)
    print(f"\nTest metrics, mean ± standard deviation\n{summary_table(groups).to_string()}")
    if count > 1 and not (differences := difference_table(groups)).empty:
        title = f"Differences paired by seed, with {CONFIDENCE:.0%} intervals over seeds (not over test rows)"
        print(f"\n{title}\n{differences.to_string()}")
    first = next(iter(variants))
    print(f"All runs: {folder}")
    print(f"Score new rows with all of them: python predict.py {folder / first}/seed_*/checkpoints/best.ckpt RAW_FILE")
    return groups


def settings_of(module: ModuleType, changes: dict[str, Any]) -> dict[str, Any]:
    """All settings of a script that affect its results, except the seed."""
    settings = Settings(module.DATA, module.MODEL, module.OPTIMIZER, module.TRAINING).changed(changes)
    return {name: value for name, value in settings.flat().items() if name not in (*NOT_COMPARED, "seed")}


def is_complete(folder: Path, count: int) -> bool:
    """Whether all variants were trained with at least this many seeds."""
    path = folder / "seeds.json"
    return path.exists() and all(len(results) >= count for results in read_json(path).values())


if __name__ == "__main__":
    run_script(seeds, USAGE)
