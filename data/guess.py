"""Guesses the role of each column from its name and its first rows.

N: rows.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from data.sniff import FEW, Look

OFTEN, MANY = 20, 100  # rows per value of a code, and values, if its name does not say what it is
GIVES_AWAY, BINS, LEAST = 0.98, 50, 10  # AUC of a column alone, ranges of its numbers, rows of each class
YES = r"1|true|yes|y|t|pos|positive|>50k\.?|50000\+\.?"
NO = r"0|false|no|n|f|neg|negative|none|(no|not|non|never)[ _-].*"
IDS = "(id|ids|key|code|cd|no|nr|hash|idx|uuid|sha1|name|title)"
USERS = "user|customer|member|client|visitor|reviewer|rater|reader|viewer|buyer|subscriber|session|player|account|u"
ITEMS = (
    "item|movie|film|product|article|asin|sku|isbn|book|track|song|artist|video|game|anime|news|ad|adgroup|upc|ean|gtin"
    "|creative|business|place|venue|poi|listing|recipe|restaurant|hotel|course|question|offer|goods|i"
)
OUTCOME = "clicks?|clk|attributed|convert|conversions?|purchases?|buy|ordered"
FEEDBACK = (
    r"(is_)?(liked?|follow|comment|forward|share|hate|collect|save|watched|listened|profile_enter)|long_view"
    r"|add_?to_?cart|\w*(play|stay|watch|dwell)(ing)?_?(time|duration|ms|s|sec|seconds)\w*"
)
WORDS = {  # of which a name has one
    "rating": "rating|rate|stars?|score|grade|vote|points|overall",
    "time": "time|times|timestamp|date|datetime|dat|ts|at|when|day|dt|hour",
    "other time": r"birth\w*|sign\w*|regist\w+|releas\w+|expir\w+|due|deliver\w*|ship\w*|return\w*|updated?|modified"
    "|dob|last|first|end|until|dropoff|attributed|status|joined",
    "title": "title|name|headline",
    "code": r"ids?|\w*id|key|code|cd|nr|zip|zipcode|postcode|postal|ip|[ck]\d+|cat\d*",
    "amount": "age|years?|price|amount|amt|count|cnt|num|n|total|sum|avg|mean|min|max|days|hours|minutes|sec|seconds|ms"
    "|time|duration|length|size|width|height|distance|score|rate|ratio|pct|percent|balance|income|salary|cost|revenue"
    "|fee|lat|lon|latitude|longitude|temperature|rank|position|quantity|qty|visits|ago|limit|value|gain|loss|counts",
    "kind": f"{USERS}|{ITEMS}|os|app|channel|device|browser|zone|region|area|city|country|state|store|shop|site|page"
    "|domain|category|cate|class|type|kind|group|segment|brand|seller|publisher|advertiser|placement|slot|banner"
    "|operator|carrier|agent|company|department|job|model|version|language|genre|tag|tab|cluster",
}
NAMES = {kind: rf"(\w+_)?({words})(_\w+)?" for kind, words in WORDS.items()} | {
    "user": rf"(\w+_)?({USERS})(_?{IDS})?",
    "item": rf"(\w+_)?({ITEMS})(_?{IDS})?",
    "outcome": OUTCOME,
    "label": rf"((is|was|has|did|will)_)?({OUTCOME}|churn|label|target|y)(_(flag|label|yn))?|(\w+_)?(label|target)"
    r"|(\w+_)?(clicked|converted|purchased|bought|churned|subscribed)(_\w+)?",
    "feedback": FEEDBACK,
    "weak label": rf"{FEEDBACK}|(is_)?(default|income|cancel|fraud|surviv|exited|attrition|left|respon|outcome|class"
    r"|install|no_show|subscri|success|open|accept|return|deposit|bad|good|result|won|win|(loan_)?status|approved"
    r"|revenue|sold)\w*",
}

EXCLUDED, DENSE, TEXT = {"role": "excluded"}, {"role": "dense"}, {"role": "categorical"}
NUMBER, BOOLEAN, LIST = TEXT | {"type": "number"}, TEXT | {"type": "boolean"}, TEXT | {"separator": "{c.separator}"}
INPUTS: list[tuple[Callable[[Look], object], dict[str, str], str]] = [  # the first that holds, its entry, and why
    (lambda c: not c.values, EXCLUDED, "empty"),
    (lambda c: len(c.values) == 1, EXCLUDED, "constant"),
    (lambda c: c.kind == "list", TEXT, "several values"),
    (lambda c: c.kind == "date", EXCLUDED, "dates"),
    (lambda c: c.conversion[0], EXCLUDED, "{c.conversion[0]}, not converted"),
    (lambda c: len(c.values) == c.known > FEW and (c.kind == "text" or c.is_whole), EXCLUDED, "unique per row"),
    (lambda c: c.kind == "text" and c.separator, LIST, "several values, {c.separator!r}"),
    (lambda c: {value.lower() for value in c.values} == {"true", "false"}, BOOLEAN, ""),
    (lambda c: c.kind == "text", TEXT, ""),
    (lambda c: len(c.values) <= 10, NUMBER, "few numbers"),
    (lambda c: named(c, "amount") and not (c.is_code and named(c, "code")), DENSE, "an amount, by its name"),
    (lambda c: c.is_code and named(c, "code", "kind"), NUMBER, "a code, by its name"),
    (lambda c: c.is_code and len(c.values) <= MANY and c.repeats >= OFTEN, NUMBER, "{c.repeats:.0f} rows each: codes?"),
    (lambda c: c.is_whole, DENSE, "many numbers"),
    (lambda c: True, DENSE, "fractions"),
]


def named(look: Look, *kinds: str) -> bool:
    return any(re.fullmatch(NAMES[kind], look.words) for kind in kinds)


def guess_roles(looks: list[Look], keys: dict[str, Look | None], notes: list[str]) -> dict[str, Any]:
    """Guess each column; other entries of columns.json. keys: the columns of users and items, if known; notes: gets
    more."""
    found = {role: keys.get(role) or guess_key(looks, role) for role in ("user", "item")}
    is_interactions = all(found.values())
    for role, key in found.items():
        if key and is_interactions:
            key.guess({"role": role})
    guess_time([look for look in looks if not look.entry])
    guess_labels([look for look in looks if not look.entry], is_interactions, notes)
    targets = [look.target for look in looks if look.target is not None]
    for look in looks:
        if not look.entry:
            guess_input(look)
        if targets and (look.role in ("categorical", "dense") or (look.kind == "date" and look.role == "excluded")):
            if (alone := max(auc_alone(look, target) for target in targets)) > GIVES_AWAY:
                look.guess(EXCLUDED, f"gives the label away? AUC {alone:.3f} alone")
            elif named(look, "feedback"):
                look.guess(EXCLUDED, "known only after the label?")
    if late := [look.name for look in looks if look.why.startswith(("gives", "known"))]:
        notes.append(f"Left out: {', '.join(late)}. If one is known before the label, give it the role of an input.")
    if any(look.role == "time" for look in looks):
        return {}
    if not is_interactions and any(abs(auc(np.arange(len(target)), target) - 0.5) > 0.25 for target in targets):
        notes.append('No column is the time, and the label sorts the rows: "split" is random.')
        return {"split": {"by": "random"}}
    notes.append("No column is the time: histories and a split by time take the order of the file.")
    notes[-1] += ' If that means nothing, set "split": {"by": "random"}.'
    return {}


def guess_key(looks: list[Look], role: str) -> Look | None:
    """The column of users or items, rather one that is an id by its name."""
    found = [look for look in looks if named(look, role) and not named(look, "amount") and not look.missing]
    found = [look for look in found if look.kind == "text" or look.is_whole]
    found = [look for look in found if 2 < len(look.values) < look.rows + (role == "item")]
    return min(found, key=lambda look: not named(look, "code"), default=None)


def guess_time(looks: list[Look]) -> None:
    """The time that orders the rows, if there is one; other times are no inputs."""
    times = [look for look in looks if len(look.values) > 1 and look.unit]
    dated = [look for look in times if look.kind == "date" or named(look, "time")]
    narrow = [look for look in times if look.numbers.max() < 1.5 * look.numbers.min() and len(look.values) > FEW]
    narrow = [look for look in narrow if look.unit in ("s", "ms") and not named(look, "code", "kind")]
    for look in dated:
        look.guess(EXCLUDED, "another time, or empty in some rows")
    found = [look for look in dated + narrow if not look.missing]
    found.sort(key=lambda look: (named(look, "other time"), not named(look, "time"), -len(look.values)))
    for time in found[:1]:
        what = "dates" if time.kind == "date" else f"numbers, taken for {time.unit} since 1970"
        time.guess({"role": "time", "unit": time.unit}, f"orders the rows, no input; {what}")


def guess_labels(looks: list[Look], is_interactions: bool, notes: list[str]) -> None:
    """The labels, or the rating."""
    binary = [look for look in looks if len(look.values) == 2 and look.kind != "list"]
    numbers = [look for look in looks if look.kind == "number" and len(look.values) > 1]
    labels = [look for look in binary if named(look, "label")]
    ratings = [look for look in numbers if named(look, "rating") and is_interactions]
    ratings += [look for look in numbers if look.is_whole and named(look, "outcome") and look not in binary]
    if ratings and not labels:
        return guess_rating(ratings[0])
    labels = labels or [look for look in binary if named(look, "weak label")][-1:]
    if not labels and len(binary) == 1 and not is_interactions and binary[0].words not in ("sex", "gender"):
        labels = [look for look in binary if look.words or look.kind == "number"]
    for look in labels:
        guess_label(look)
    if len(labels) > 1:
        names = ", ".join(look.name for look in labels)
        notes.append(f"Labels: {names}. multitask/train.py trains all; for the other models, exclude all but one.")
    elif is_interactions and not labels:
        notes.append("No column is a label or a rating: for BST, every row is a click.")
    elif not labels:
        two = f" Two values: {', '.join(look.name for look in binary)}." if binary else ""
        notes.append(f'No column is the label: give one the role "label" and "positive", a list of its values.{two}')
        for look in looks:
            if named(look, "label"):
                look.guess(EXCLUDED, f"the label? It has {len(look.values):,} values, not two")


def guess_label(look: Look) -> None:
    """The larger number is positive; of texts, the one that says so, or the rarer one."""
    says = [bool(re.fullmatch(YES, text, re.I)) - bool(re.fullmatch(NO, text, re.I)) for text in look.values]
    order = look.numbers if look.kind == "number" else says if says[0] != says[1] else -look.counts
    one = int(np.argmax(order))
    entry = {"role": "label", "positive": [look.values[one]], "negative": [look.values[1 - one]]}
    look.guess(entry, f"positive: {look.values[one]!r}, {look.counts[one] / look.known:.1%}")
    look.target = look.per_row(np.arange(2) == one)


def guess_rating(look: Look) -> None:
    """A click is a rating from the median on, or above the least."""
    median = np.nanquantile(look.per_row(look.numbers), 0.5, method="higher")
    click_from = float(max(median, np.unique(look.numbers)[1]))
    look.guess({"role": "rating", "click_from": click_from}, f"a click from {click_from:g} on")
    look.target = look.per_row(look.numbers >= click_from)


def guess_input(look: Look) -> None:
    """The role of a column that is no label, time or key."""
    entry, why = next((entry, why) for holds, entry, why in INPUTS if holds(look))
    look.guess({name: text.format(c=look) for name, text in entry.items()}, why.format(c=look))


def guess_attributes(looks: list[Look], role: str, ids: Look, taken: set[str]) -> bool:
    """The roles in a file with a row per item or user; whether one is the key, which holds the ids. taken: names that
    columns of other files have."""
    shared = [len(set(ids.values) & set(look.values)) for look in looks]
    unique = [len(look.values) == look.rows for look in looks]
    key = max(range(len(looks)), key=lambda i: (shared[i] * unique[i], looks[i].name == ids.name))
    for look in looks:
        if look is looks[key] and shared[key]:
            look.guess({"role": role}, "the key")
        elif look.name in taken:
            look.guess(EXCLUDED, "another file has a column of this name")
        elif role == "item" and named(look, "title") and len(look.values) > look.rows / 2:
            look.guess({"role": "kept"}, "a title")
        else:
            guess_input(look)
    return shared[key] > 0


def auc_alone(look: Look, target: np.ndarray) -> float:
    """AUC of the target's mean per value (of many numbers: per range), taken from a random half of the rows, on the
    others; missing is a value. 0.5 for lists."""
    if look.kind == "list":
        return 0.5
    codes = look.codes
    if look.kind != "text" and len(look.values) > BINS:
        codes = pd.qcut(look.per_row(look.numbers), BINS, labels=False, duplicates="drop")
    rows = pd.DataFrame({"code": codes, "target": target}).fillna({"code": -1}).dropna()
    half = np.random.default_rng(7).random(len(rows)) < 0.5
    seen, mean = rows[half].groupby("code")["target"].agg(["sum", "count"]), rows["target"].mean()
    score = rows["code"].map((seen["sum"] + mean) / (seen["count"] + 1)).fillna(mean)
    return auc(score[~half].to_numpy(), rows["target"][~half].to_numpy())


def auc(score: np.ndarray, target: np.ndarray) -> float:
    """0.5 if there are few rows of a class; rows with a target of nan are left out."""
    known = ~np.isnan(target)
    is_few = min((target == 0).sum(), (target == 1).sum()) < LEAST
    return 0.5 if is_few else float(roc_auc_score(target[known], score[known]))
