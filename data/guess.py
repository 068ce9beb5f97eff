"""Guesses the role of each column from its name and its first rows.

N: rows.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from data.look import FEW, Look
from data.values import CANONICAL, canonical

REPEATS, ZEROS = 20, 0.75  # rows per value of a code; share of zeros that only amounts have
GIVES_AWAY, BINS, LEAST = 0.98, 50, 10  # AUC of a column alone, ranges of its numbers, rows of each class
SENTENCE = 40  # average characters of free text
POSITIVE = r"1|true|yes|y|t|pos|positive|>50k\.?|50000\+\.?"
NEGATIVE = r"0|false|no|n|f|neg|negative|none|(no|not|non|never)[ _-].*"

# Names of columns: words in lower case with _ between them.
USERS = r"user|customer|member|client|visitor|reviewer|rater|reader|viewer|buyer|subscriber|session|player|account|u"
ITEMS = r"item|movie|film|product|article|asin|sku|isbn|book|track|song|artist|video|game|anime|news|ad|adgroup|upc"
ITEMS += r"|ean|gtin|creative|business|place|venue|poi|listing|recipe|restaurant|hotel|course|question|offer|goods|i"
IDS = r"id|ids|key|code|cd|no|nr|hash|idx|uuid|sha1|name|title"
KEYS = {role: rf"(\w+_)?({words})(_?({IDS}))?" for role, words in (("user", USERS), ("item", ITEMS))}
OUTCOME = r"clicks?|clk|attributed|convert|conversions?|purchases?|buy|ordered"
LABEL = rf"((is|was|has|did|will)_)?({OUTCOME}|churn|label|target|y)(_(flag|label|yn))?|(\w+_)?(label|target)"
LABEL += r"|(\w+_)?(clicked|converted|purchased|bought|churned|subscribed)(_\w+)?"
WEAK_LABEL = r"(is_)?(default|income|cancel|fraud|surviv|exited|attrition|left|respon|outcome|class|install|no_show"
WEAK_LABEL += (
    r"|subscri|success|open|accept|return|deposit|bad|good|result|won|win|(loan_)?status|approved|revenue|sold)\w*"
)
FEEDBACK = r"(is_)?(liked?|follow|comment|forward|share|hate|collect|save|watched|listened|profile_enter)|long_view"
FEEDBACK += r"|add_?to_?cart|\w*(play|stay|watch|dwell)(ing)?_?(time|duration|ms|s|sec|seconds)\w*"
RATING = r"rating|rate|stars?|score|grade|vote|points|overall"
TIME = r"time|times|timestamp|date|datetime|dat|ts|at|when|day|dt|hour"
OTHER_TIME = r"birth\w*|dob|sign\w*|regist\w+|releas\w+|expir\w+|due|deliver\w*|ship\w*|return\w*|updated?|modified"
OTHER_TIME += r"|last|first|end|until|dropoff|attributed|status|joined"
TITLE, SEX = r"(\w+_)?(title|name|headline)", "sex|gender"
WEIGHT, SPLIT = r"((sample|row|instance|case)_)?weights?|fnlwgt", r"(\w+_)?(split|fold|set|partition|subset)"
CODE = r"ids?|\w*id|key|code|cd|nr|zip|zipcode|postcode|postal|ip|[ck]\d+|cat\d*"
AMOUNT = r"age|years?|price|amount|amt|counts?|cnt|num|n|total|sum|avg|mean|min|max|days|hours|minutes|sec|seconds|ms"
AMOUNT += r"|duration|length|size|width|height|distance|score|rate|ratio|pct|percent|balance|income|salary|cost|revenue"
AMOUNT += r"|fee|lat|lon|latitude|longitude|temperature|rank|position|quantity|qty|visits|time|ago|limit|value"
KIND = rf"{USERS}|{ITEMS}|os|app|channel|device|browser|zone|region|area|city|country|state|store|shop|site|page|domain"
KIND += r"|category|cate|class|type|kind|group|segment|brand|seller|publisher|advertiser|placement|slot|banner|operator"
KIND += r"|carrier|agent|company|department|job|model|version|language|genre|tag|tab|cluster"

Guess = tuple[dict[str, Any], str]  # the entry in columns.json, and why
Guesses = dict[str, Guess]  # by column


def excluded(why: str) -> Guess:
    return {"role": "excluded"}, why


def guess_roles(looks: dict[str, Look], keys: dict[str, str | None]) -> tuple[Guesses, list[str], dict[str, Any]]:
    """A guess per column, notes, and other entries of columns.json. keys: the columns of users and items, if known."""
    notes: list[str] = []
    content: dict[str, Any] = {}
    found = {role: looks.get(keys.get(role) or "") or guess_key(looks, role) for role in KEYS}
    pair = {role: look for role, look in found.items() if look}
    guesses = {look.name: key(role, look) for role, look in pair.items() if len(pair) == 2}
    if empty := [n for n, look in looks.items() if look.missing and look.named(f"{KEYS['user']}|{KEYS['item']}")]:
        notes.append(f"Empty in some rows, so neither user nor item: {', '.join(empty)}.")
    guesses |= guess_time([look for name, look in looks.items() if name not in guesses])
    guesses |= guess_labels([look for name, look in looks.items() if name not in guesses], len(pair) == 2, notes)
    targets = [looks[n].target(entry) for n, (entry, _) in guesses.items() if entry["role"] in ("label", "rating")]
    late = []
    for name, look in looks.items():
        role = guesses.setdefault(name, input_role(look))[0]["role"]
        if role in ("categorical", "dense") or (look.is_date and role == "excluded"):
            alone = max((auc_alone(look, target) for target in targets), default=0.5)
            if alone > GIVES_AWAY or (targets and look.named(FEEDBACK)):
                gives_away = f"gives the label away? AUC {alone:.3f} alone"
                guesses[name] = excluded(gives_away if alone > GIVES_AWAY else "known only after the label?")
                late.append(name)
    if late:
        notes.append(f"Left out: {', '.join(late)}. If one is known before the label, give it the role of an input.")
    if not any(entry["role"] == "time" for entry, _ in guesses.values()):
        rows = np.arange(next(iter(looks.values())).rows)
        if len(pair) == 2:
            notes.append("No column is the time: histories and a split by time take the order of the file.")
        elif any(abs(auc(rows, target) - 0.5) > 0.25 for target in targets):
            content["split"] = {"by": "random"}
            notes.append('No column is the time, and the label sorts the rows: "split" is random.')
        else:
            notes.append(
                "No column is the time: a split by time takes the order of the file. If that means nothing, set "
                '"split": {"by": "random"}. A column that orders the rows needs the role "time".'
            )
    return {name: guesses[name] for name in looks}, notes, content


def guess_key(looks: dict[str, Look], role: str) -> Look | None:
    """The column of users or items, rather one that is an id by its name."""
    named = [look for look in looks.values() if look.named(KEYS[role]) and not look.named(AMOUNT, within=True)]
    whole = [look for look in named if look.kind == "text" or (look.kind == "number" and look.is_whole)]
    found = [look for look in whole if not look.missing and 2 < len(look.values) < look.rows + (role == "item")]
    return min(found, key=lambda look: not look.named(IDS, within=True), default=None)


def key(role: str, look: Look) -> Guess:
    """An id is compared as a text, unless a number is written in several ways ("7", "7.0")."""
    is_canonical = look.kind == "text" or all(re.match(CANONICAL, value) for value in look.values)
    return {"role": role} | ({} if is_canonical else {"type": "number"}), ""


def guess_time(looks: list[Look]) -> Guesses:
    """The time that orders the rows, if there is one; other times are no inputs."""

    def order(look: Look) -> tuple:
        ranks = np.unique(look.values if look.numbers is None else look.numbers, return_inverse=True)[1]
        is_sorted = bool((np.diff(ranks[look.codes]) >= 0).mean() > 0.95)
        return look.named(OTHER_TIME, within=True), not look.named(TIME, within=True), not is_sorted, -len(look.values)

    times = [look for look in looks if look.units and len(look.values) > 1]
    named = [look for look in times if look.is_date or look.named(TIME, within=True)]
    unnamed = [look for look in times if look.is_narrow and not look.named(f"{CODE}|{KIND}", within=True)]
    guesses = {
        look.name: excluded(f"a time, empty in {look.missing:.1%}" if look.missing else "another time")
        for look in named
    }
    if time := min((look for look in named + unnamed if not look.missing), key=order, default=None):
        what = "dates" if time.is_date else f"numbers, taken for {time.units[0]} since 1970"
        sure = "?" if time.named(OTHER_TIME, within=True) else ""
        guesses[time.name] = {"role": "time", "unit": time.units[0]}, f"orders the rows{sure}, no input; {what}"
    return guesses


def guess_labels(looks: list[Look], is_interactions: bool, notes: list[str]) -> Guesses:
    """The labels, or the rating."""
    binary = [look for look in looks if len(look.values) == 2 and not look.is_list]
    numbers = [look for look in looks if look.numbers is not None and len(look.values) > 1]
    labels = [look for look in binary if look.named(LABEL)]
    ratings = [look for look in numbers if look.named(RATING, within=True) and is_interactions]
    ratings += [look for look in numbers if look.is_whole and look.named(OUTCOME) and look not in binary]
    if not labels and ratings:
        return {ratings[0].name: rating(ratings[0])}
    labels = labels or [look for look in binary if look.named(f"{FEEDBACK}|{WEAK_LABEL}")][-1:]
    if not labels and len(binary) == 1 and not is_interactions and not binary[0].named(SEX):
        entry, why = label(binary[0])
        if binary[0].words or binary[0].numbers is not None:
            return {binary[0].name: (entry, f"the only one with two values; {why}")}
    if len(labels) > 1:
        names = ", ".join(look.name for look in labels)
        notes.append(f"Labels: {names}. multitask/train.py trains all; for the other models, exclude all but one.")
    elif is_interactions and not labels:
        notes.append("No column is a label or a rating: for BST, every row is a click.")
    elif not labels:
        two = f" Two values: {', '.join(look.name for look in binary)}." if binary else ""
        notes.append(f'No column is the label: give one the role "label" and "positive", a list of its values.{two}')
        others = [look for look in looks if look.named(LABEL)]
        return {o.name: excluded(f"the label? It has {len(o.values):,} values, not two") for o in others}
    return {look.name: label(look) for look in labels}


def label(look: Look) -> Guess:
    """The larger number is positive; of texts, the one that says so, or the rarer one."""
    yes, no = ([bool(re.fullmatch(pattern, v, re.I)) for v in look.values] for pattern in (POSITIVE, NEGATIVE))
    if look.numbers is not None:
        positive, why = int(look.numbers.argmax()), "" if 0 in look.numbers else ", the larger number"
    elif sum(yes) == 1 or sum(no) == 1:
        positive, why = yes.index(True) if sum(yes) == 1 else no.index(False), ""
    else:
        positive, why = int(look.counts.argmin()), ", the rarer value"
    entry = {"role": "label", "positive": [look.values[positive]], "negative": [look.values[1 - positive]]}
    return entry, f"positive: {look.values[positive]!r}{why}, {look.counts[positive] / look.known:.1%}"


def rating(look: Look) -> Guess:
    """A click is a rating from the median on, or above the least."""
    numbers = np.sort(np.append(np.array(look.numbers), np.nan)[look.codes])[: look.known]
    click_from = float(max(numbers[look.known // 2], numbers[numbers > numbers[0]][0]))
    return {"role": "rating", "click_from": click_from}, f"a click from {click_from:g} on"


def input_role(look: Look) -> Guess:
    """The role of a column that is no label, time or key."""
    distinct, numbers, each = len(look.values), look.numbers, look.known / max(1, len(look.values))
    dense, text = {"role": "dense"}, {"role": "categorical"}
    number = text | {"type": "number"}
    if distinct <= 1:
        return excluded("constant" if distinct else "empty")
    if look.is_list:
        return text, "several values"
    if look.is_date or look.conversion:
        return excluded(f"{look.conversion[0]}, not converted" if look.conversion else "dates")
    if look.named(SPLIT) and distinct <= 10:
        return excluded('a split? see "split" in docs/your_data.md')
    if look.named(WEIGHT) and numbers is not None and numbers.min() >= 0:
        return {"role": "weight"}, "of the row in the loss, with weighted=True; no input"
    if distinct == look.known > FEW and (numbers is None or look.is_whole):
        return excluded("unique per row")
    if look.separator:
        return text | {"separator": look.separator}, f"several values, {look.separator!r}"
    if numbers is None and sum(map(len, look.values)) > SENTENCE * distinct and each < 2:
        return excluded("free text")
    if {value.lower() for value in look.values} == {"true", "false"}:
        return text | {"type": "boolean"}, ""
    if numbers is None or look.is_code:
        return text, ""
    if distinct <= 10:
        return number, "few numbers"
    is_code = look.is_whole and numbers.min() >= -1
    if is_code and look.named(CODE, within=True):
        return number, "a code, by its name"
    if look.named(AMOUNT, within=True):
        return dense, "an amount, by its name"
    if is_code and look.named(KIND, within=True):
        return number, "a code, by its name"
    if look.counts[numbers == 0].sum() > ZEROS * look.known:
        return dense, "mostly 0"
    frequency = np.log(look.counts[np.argsort(numbers)])  # smooth over the values of an amount, but not of codes
    is_smooth = frequency.std() > 0 and np.corrcoef(frequency[:-1], frequency[1:])[0, 1] > 0.5
    if each >= REPEATS and (distinct <= FEW or (is_code and not is_smooth)):
        return number, f"numbers that repeat, {each:.0f} rows each: codes?"
    return dense, "many numbers" if look.is_whole else "fractions"


def guess_attributes(looks: dict[str, Look], role: str, ids: Look, taken: Collection[str]) -> Guesses:
    """The roles in a file with a row per item or user; none is the key if no column holds the ids. taken: names that
    columns of other files have."""

    def held(look: Look, change: Callable[[str], str]) -> tuple:
        values = {change(value) for value in look.values}
        share = sum(change(value) in values for value in ids.values)
        return share * (len(look.values) == look.rows), share, look.name == ids.name

    guesses = {name: input_role(look) for name, look in looks.items()}
    for name, (entry, _) in guesses.items():
        if name in taken:
            guesses[name] = excluded("another file has a column of this name")
        elif entry["role"] == "weight":
            guesses[name] = {"role": "dense"}, ""
    best = max(looks.values(), key=lambda look: max(held(look, str), held(look, canonical)))
    if held(best, canonical)[1]:
        guesses[best.name] = key(role, ids)[0] if held(best, str)[1] else {"role": role, "type": "number"}, "the key"
    texts = [look for look in looks.values() if look.kind == "text" and len(look.values) > look.rows / 2]
    title = min((t for t in texts if t is not best), key=lambda look: not look.named(TITLE), default=None)
    if title and role == "item":
        guesses[title.name] = {"role": "kept"}, "the title"
    return guesses


def auc_alone(look: Look, target: np.ndarray) -> float:
    """AUC of the target's mean per value (of many numbers: per range), taken from a random half of the rows, on the
    others; missing is a value. 0.5 for lists."""
    if look.is_list:
        return 0.5
    codes = look.codes + 1
    if look.numbers is not None and len(look.values) > BINS:
        edges = np.quantile(look.numbers[look.codes[look.codes >= 0]], np.linspace(0, 1, BINS + 1)[1:-1])
        codes = np.append(np.searchsorted(np.unique(edges), look.numbers, "right") + 1, 0)[look.codes]
    codes, target = codes[~np.isnan(target)], target[~np.isnan(target)]
    half = np.random.default_rng(7).random(len(target)) < 0.5
    rows, positive = (np.bincount(codes[half], of, len(look.values) + 1) for of in (None, target[half]))
    return auc(((positive + target.mean()) / (rows + 1))[codes[~half]], target[~half])


def auc(score: np.ndarray, target: np.ndarray) -> float:
    """0.5 if there are few rows of a class; rows with a target of nan are left out."""
    known = ~np.isnan(target)
    is_few = min((target == 0).sum(), (target == 1).sum()) < LEAST
    return 0.5 if is_few else float(roc_auc_score(target[known], score[known]))
