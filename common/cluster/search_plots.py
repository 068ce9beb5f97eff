"""A search as a picture and a table."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from common.cluster.search_record import METRIC, SearchRecord, Trial, best_row, best_trial, format_config

COLORS = {"finished": "tab:blue", "stopped": "tab:orange", "failed": "tab:red", "started": "tab:gray"}
SHOWN = 10  # trials of the table on the terminal


def write_table(record: SearchRecord) -> str:
    """All trials in trials.csv, the best first; returns the best ones as text."""
    rows = [
        {
            "trial": trial["number"],
            "state": trial["state"],
            "validations": len(trial["rows"]),
            METRIC: best_row(trial)[METRIC] if trial["rows"] else None,
            "val_log_loss": best_row(trial)["val_log_loss"] if trial["rows"] else None,
            **trial["config"],
            "cause": trial["cause"],
        }
        for trial in record.trials
    ]
    table = pd.DataFrame(rows).sort_values(METRIC, ascending=False)
    table.to_csv(record.path.with_name("trials.csv"), index=False)
    best = table.head(SHOWN).drop(columns="cause")
    settings = list(record.trials[0]["config"])
    best[settings] = best[settings].map(lambda value: format_config({"": value}).strip())
    return best.to_string(index=False, float_format="{:.4f}".format, na_rep="")


def plot_search(record: SearchRecord) -> None:
    """search.png: the metric by epoch of all trials; settings.png: its best value by each setting."""
    folder = record.path.parent
    trials = [trial for trial in record.trials if trial["rows"]]
    best = best_trial(trials)
    if best is not None:
        _plot_curves(trials, best, folder / "search.png")
        _plot_settings(trials, folder / "settings.png")


def _plot_curves(trials: list[Trial], best: Trial, path: Path) -> None:
    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    labelled = set()
    for trial in trials:
        state = trial["state"]
        epochs = [row["epoch"] for row in trial["rows"]]
        values = [row[METRIC] for row in trial["rows"]]
        axes.plot(epochs, values, color=COLORS[state], linewidth=2.5 if trial is best else 1, alpha=0.8)
        label = None if state in labelled else state
        axes.plot(epochs[-1], values[-1], "x" if state != "finished" else "o", color=COLORS[state], label=label)
        labelled.add(state)
    value = best_row(best)[METRIC]
    axes.axhline(value, linestyle=":", color="gray", label=f"best: trial {best['number']}, {value:.4f}")
    axes.set(xlabel="epoch", ylabel=METRIC, title=f"{len(trials)} trials")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _plot_settings(trials: list[Trial], path: Path) -> None:
    names = list(trials[0]["config"])
    columns = min(3, len(names))
    figure = Figure((4 * columns, 3.2 * -(-len(names) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        values = [trial["config"][name] for trial in trials]
        continuous = all(isinstance(value, float) for value in values) and len(set(values)) > len(values) / 2
        if continuous:
            positions = values
            axes.set_xscale("log" if max(values) > 5 * min(values) > 0 else "linear")
            axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axes.tick_params(axis="x", labelrotation=30)
        else:
            choices = sorted(set(map(_hashable, values)))
            positions = [choices.index(_hashable(value)) for value in values]
            axes.set_xticks(range(len(choices)), [format_config({"": choice}).strip() for choice in choices])
        for position, trial in zip(positions, trials, strict=True):
            axes.plot(position, best_row(trial)[METRIC], "o", color=COLORS[trial["state"]], alpha=0.7)
        axes.set(xlabel=name, ylabel=METRIC)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.suptitle("best validation of each trial (orange: stopped early)")
    figure.savefig(path, dpi=120)


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value
