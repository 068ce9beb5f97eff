"""The study of a search: Optuna keeps each proposal, validation and end in search.db before the search acts on it.

A trial's "state" is "started", and at the end "finished", "stopped" (by the scheduler) or "failed". Its value is that
of its best validation, whose checkpoint counts.
"""

import math
import shutil
import warnings
from ast import literal_eval
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from common.errors import UserError, check, one_line
from common.training.fit import mode_of

DATABASE = "search.db"
TESTED = 3  # best trials, whose checkpoints are kept and tested at the end
ENDED = ("finished", "stopped", "failed")
SHOWN = 10  # trials in the table on the terminal


def open_study(folder: Path, metric: str) -> optuna.Study:
    """The study in a folder, created if there is none; metric: that compares trials. UserError if it is damaged."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = f"sqlite:///{folder / DATABASE}"  # under the name that OptunaSearch gives a study
        direction = StudyDirection.MAXIMIZE if mode_of(metric) == "max" else StudyDirection.MINIMIZE
        study = optuna.create_study(storage=storage, study_name="optuna", direction=direction, load_if_exists=True)
        study.set_user_attr("metric", metric)
        return study
    except Exception as error:  # the database, or what reads it, may raise many kinds
        again = f"Restore it, or remove {folder} to start again."
        raise UserError(f"{folder / DATABASE} is damaged ({one_line(error)}). {again}") from error


def distributions(space: dict[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's distributions for a Ray Tune search space. Raises: UserError if Optuna lacks one."""
    found: dict[str, BaseDistribution] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tuples, which become texts below
        for name, values in space.items():
            with suppress(ValueError):
                found |= OptunaSearch.convert_search_space({name: values})
            known = "tune.choice, tune.uniform, tune.loguniform, tune.randint or tune.lograndint"
            check(name in found, f"SPACE[{name!r}] must be {known}. For a single value, use FIXED.")
            if isinstance(choices := found[name], CategoricalDistribution):
                found[name] = CategoricalDistribution([in_database(choice) for choice in choices.choices])
    return found


def in_database(value: Any) -> Any:
    """Widths as a text, because Optuna cannot store tuples."""
    return str(tuple(value)) if isinstance(value, list | tuple) else value


def settings_of(params: dict[str, Any]) -> dict[str, Any]:
    """A trial's settings; the inverse of in_database."""
    return {
        name: literal_eval(value) if isinstance(value, str) and value.startswith("(") else value
        for name, value in params.items()
    }


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "trials" / f"trial_{number:03d}"


def in_state(study: optuna.Study, *states: str) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("state") in states]


def best_value(study: optuna.Study, trial: FrozenTrial) -> float:
    """nan without a validation."""
    best = max if study.direction == StudyDirection.MAXIMIZE else min
    return best(trial.intermediate_values.values(), default=math.nan)


def by_value(study: optuna.Study, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have a validation, the best first."""
    validated = [trial for trial in trials if trial.intermediate_values]
    maximize = study.direction == StudyDirection.MAXIMIZE
    return sorted(validated, key=lambda trial: best_value(study, trial), reverse=maximize)


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best TESTED finished trials, the best first; if none is finished, the best one with a validation."""
    finished = in_state(study, "finished")
    return by_value(study, finished)[:TESTED] or by_value(study, study.get_trials(deepcopy=False))[:1]


def end_trial(study: optuna.Study, folder: Path, number: int, state: str, cause: str = "") -> None:
    """Record how a trial ended. Of the trials that have ended, only the best TESTED keep their checkpoints."""
    trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    trial.set_user_attr("state", state)
    trial.set_user_attr("cause", cause)
    if state in ENDED:
        value = best_value(study, study.get_trials(deepcopy=False)[number])
        study.tell(number, None if state == "failed" else value, TrialState.FAIL if state == "failed" else None)
        kept = {each.number for each in best_trials(study)}
        for other in in_state(study, *ENDED):
            if other.number not in kept:
                shutil.rmtree(trial_folder(folder, other.number) / "checkpoints", ignore_errors=True)


def write_table(study: optuna.Study, folder: Path, tested: dict[int, float]) -> str:
    """Write all trials to trials.csv, the best first; return the best ones as text. tested: test metric by trial."""
    metric, ended = study.user_attrs["metric"], in_state(study, *ENDED)
    rows = [
        {"trial": trial.number, "state": trial.user_attrs["state"], "validations": len(trial.intermediate_values)}
        | {metric: best_value(study, trial), metric.replace("val_", "test_"): tested.get(trial.number)}
        | {**trial.params, "cause": trial.user_attrs["cause"]}
        for trial in by_value(study, ended) + [trial for trial in ended if not trial.intermediate_values]
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "trials.csv", index=False)
    return table.head(SHOWN).drop(columns="cause").to_string(index=False, float_format="{:.4g}".format, na_rep="")


def setting_importance(study: optuna.Study) -> "pd.Series[float]":
    """Share of the metric's variance that each setting explains alone (fANOVA, Hutter et al. 2014), largest first.

    Empty if fewer than four trials have been validated, or all with the same result."""
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    if len(values) < 4 or len(set(values)) == 1:
        return pd.Series(dtype=float)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return pd.Series(optuna.importance.get_param_importances(study, evaluator=evaluator))


def plot_search(study: optuna.Study, folder: Path, title: str) -> None:
    """search.png: the metric of all trials by validation; settings.png: its best value by each setting."""
    values = [best_value(study, trial) for trial in by_value(study, study.get_trials())]
    if not values:
        return
    end = np.median(values) - 1.1 * (values[0] - np.median(values))  # the better half takes half of the axis
    beyond = sum((value - end) * (values[0] - end) < 0 for value in values)
    with matplotlib.rc_context(), warnings.catch_warnings():  # Optuna changes the style of all figures
        warnings.simplefilter("ignore")  # the functions are experimental
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as optuna_plots

        for name, plot in ("search", optuna_plots.plot_intermediate_values), ("settings", optuna_plots.plot_slice):
            axes = np.atleast_1d(np.asarray(plot(study)))
            axes[0].set_ylim(*sorted([end, values[0] + 0.05 * (values[0] - end)]))
            axes[0].set(ylabel=study.user_attrs["metric"], title="")
            axes[0].figure.suptitle(f"{title}; {beyond} of {len(values)} trials lie outside", fontsize="small")
            axes[0].figure.autofmt_xdate(rotation=90)  # otherwise widths overlap
            axes[0].figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            pyplot.close(axes[0].figure)
