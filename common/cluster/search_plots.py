"""Table and figures of a search."""

import warnings
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure

from common.cluster.search_record import METRIC, SearchRecord, Trial, best_row, best_trials, format_config

COLORS = {"finished": "tab:blue", "stopped": "tab:orange", "failed": "tab:red", "started": "tab:gray"}
LABEL_ROOM = 24  # characters of tick labels that fit side by side below an axis
SHOWN = 10  # trials in the table on the terminal


def write_table(record: SearchRecord) -> str:
    """Write all trials to trials.csv, the best first; return the best ones as text."""
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


def setting_importance(
    record: SearchRecord, space: dict[str, optuna.distributions.BaseDistribution]
) -> "pd.Series[float]":
    """Share of the variance of METRIC that each setting explains alone (fANOVA, Hutter et al. 2014), largest first.

    A stopped trial counts with its best validation. Empty if fewer than four trials have been validated.
    """
    study = optuna.create_study(direction="maximize")
    trials = [trial for trial in record.trials if trial["rows"]]
    varied = {name for name in space if len({str(trial["config"][name]) for trial in trials}) > 1}
    if len(trials) < 4 or not varied:
        return pd.Series(dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tuples as choices, which Optuna could not store in a database
        for trial in trials:
            params = {name: _hashable(trial["config"][name]) for name in varied}
            spaces = {name: space[name] for name in varied}
            value = best_row(trial)[METRIC]
            study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator))


def plot_search(record: SearchRecord, title: str) -> None:
    """search.png: the metric of all trials by epoch; settings.png: its best value by each setting."""
    folder = record.path.parent
    trials = [trial for trial in record.trials if trial["rows"]]
    if trials:
        _plot_curves(trials, best_trials(trials)[0], title, folder / "search.png")
        _plot_settings(trials, title, folder / "settings.png")


def _plot_curves(trials: list[Trial], best: Trial, title: str, path: Path) -> None:
    figure = Figure((7, 4.8), layout="constrained")
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
    axes.set_ylim(*_zoom([best_row(trial)[METRIC] for trial in trials]))
    axes.set(xlabel="epoch", ylabel="validation AUC", title=f"{len(trials)} trials (axis limited to the better ones)")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=120)


def _zoom(values: list[float]) -> tuple[float, float]:
    """Axis limits such that the better half of the trials takes up at least half of the axis."""
    middle, most = float(np.median(values)), max(values)
    least = max(min(values), middle - (most - middle) - 1e-4)
    room = 0.08 * (most - least) + 1e-4
    return least - room, most + room


def _plot_settings(trials: list[Trial], title: str, path: Path) -> None:
    names = list(trials[0]["config"])
    columns = min(3, len(names))
    figure = Figure((4 * columns, 0.5 + 3.2 * -(-len(names) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    limits = _zoom([best_row(trial)[METRIC] for trial in trials])
    for axes, name in zip(grid, names, strict=False):
        values = [trial["config"][name] for trial in trials]
        continuous = all(isinstance(value, float) for value in values) and len(set(values)) > len(values) / 2
        if continuous:
            positions = values
            if max(values) > 5 * min(values) > 0:
                axes.set_xscale("log")
                ticks = [digit * 10.0**power for power in range(-12, 5) for digit in (1, 2, 5)]
                ticks = [tick for tick in ticks if min(values) / 1.3 <= tick <= max(values) * 1.3]
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
                axes.minorticks_off()
        else:
            choices = sorted(set(map(_hashable, values)))
            positions = [choices.index(_hashable(value)) for value in values]
            labels = [format_config({"": choice}).strip() for choice in choices]
            axes.set_xticks(range(len(choices)), labels)
            axes.set_xlim(-0.5, len(choices) - 0.5)
            if sum(map(len, labels)) > LABEL_ROOM:
                axes.tick_params(axis="x", labelrotation=20)
        for position, trial in zip(positions, trials, strict=True):
            value = best_row(trial)[METRIC]
            # values below the limits are drawn at the lower edge
            marker = "o" if value >= limits[0] else "v"
            axes.plot(position, max(value, limits[0]), marker, color=COLORS[trial["state"]], alpha=0.7, clip_on=False)
        axes.set(xlabel=name, ylabel="validation AUC", ylim=limits)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"{title}\nbest validation of each trial (orange: stopped early; triangle: below the axis)", fontsize="medium"
    )
    figure.savefig(path, dpi=120)


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value
