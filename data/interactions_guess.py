"""Guesses the roles of the columns of an interactions file, and of its files of items and users."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from data.interactions_schema import ATTRIBUTE_RULES, ATTRIBUTES
from data.table_guess import MANY_VALUES, Inspection, Look, are_dates, inspect
from data.table_values import LAST_SECOND, UNITS, parse_number

NAMES = {  # patterns of column names
    "user": re.compile(r"user|customer|member|client|visitor|reader|viewer|buyer|subscriber|session|uid", re.I),
    "item": re.compile(r"item|movie|film|product|article|asin|sku|isbn|book|track|song|artist|video|game|iid", re.I),
    "time": re.compile(r"time|date|when|day|hour|\bat\b|_at$|ts$", re.I),
    "rating": re.compile(r"rating|rate|stars?|score|grade|vote|points", re.I),
}
FIRST_SECOND, END_SECOND = 631_152_000, 2_524_608_000  # 1990 to 2050: numbers in this range are taken for times
Entries = dict[str, tuple[dict, str, int, float, str, str]]  # by column, as Look.entry returns them


def guess_interactions(path: Path, items: Path | None = None, users: Path | None = None) -> tuple[dict[str, Any], str]:
    """Content of a columns.json for a file of interactions and its files of items and users, and a report as text.

    Raises: UserError for a file that cannot be read as a table.
    """
    inspected = inspect(path)
    entries = {name: look.entry() for name, look in inspected.looks.items()}
    entries = {name: ({"role": "excluded"}, *entry[1:-1], "not used") for name, entry in entries.items()}
    notes = []
    for role in ("time", "rating", "user", "item"):
        name = _find(role, inspected, entries)
        if name is None:
            none = "every row counts as a click" if role == "rating" else f'give one the role "{role}"'
            notes.append(f"No column looks like the {role}: {none}.")
            continue
        entry, why = _entry(role, inspected.looks[name])
        entries[name] = (entry, *entries[name][1:-1], why)
    content = inspected.content | {"columns": {name: entry for name, (entry, *_) in entries.items()}}
    text = inspected.report(entries) + "".join(f"\n{note}\n" for note in notes)
    for key, file in (("item", items), ("user", users)):
        if file is not None:
            id_column = next((n for n, entry in content["columns"].items() if entry["role"] == key), None)
            content[ATTRIBUTES[key]], part = _guess_attributes(file, key, id_column)
            text += f"\n{part}"
    return content, text


def _find(role: str, inspected: Inspection, entries: Entries) -> str | None:
    """The column that fits a role best, among those without a role."""
    free = [name for name, (entry, *_) in entries.items() if entry["role"] == "excluded"]
    looks = inspected.looks
    if role == "time":
        timely = sorted(filter(lambda name: _is_time(looks[name]), free), key=lambda name: not NAMES[role].search(name))
        return next(iter(timely), None)
    named = [name for name in free if NAMES[role].search(name)]
    if role == "rating":
        return next((name for name in named if _is_number(looks[name])), None)
    # prefer "user_id" to "user_name"; otherwise the first
    return next((n for n in named if re.search(r"id\b|id$|_id|key|code|№|no$", n, re.I)), next(iter(named), None))


def _is_number(look: Look) -> bool:
    return bool(look.counts) and all(parse_number(text) is not None for text in look.counts)


def _is_time(look: Look) -> bool:
    """Whether the values are dates, numbers under a name of a time, or numbers that are recent times in some unit."""
    values = list(look.counts)
    if not _is_number(look):
        return bool(values) and are_dates(values)
    if NAMES["time"].search(look.name):
        return True
    numbers = [float(text) for text in values]
    return len(values) > MANY_VALUES and any(
        min(numbers) / count > FIRST_SECOND and max(numbers) / count < END_SECOND for count in UNITS.values()
    )


def _entry(role: str, look: Look) -> tuple[dict[str, Any], str]:
    """The entry in columns.json, and a remark for the report."""
    if role == "time":
        unit = _unit(look)
        return {"role": role, "unit": unit}, "dates" if unit == "date" else f"numbers, taken for {unit} since 1970"
    if role == "rating":
        numbers = np.repeat([float(text) for text in look.counts], list(look.counts.values()))
        click_from = float(np.quantile(numbers, 0.5, method="higher"))
        if click_from > numbers.min():
            return {"role": role, "click_from": click_from}, f"a click from {click_from:g} on (the median)"
        return {"role": role}, ""
    return {"role": role, "type": "number" if _is_number(look) else "text"}, ""


def _unit(look: Look) -> str:
    if not _is_number(look):
        return "date"
    greatest = max(map(float, look.counts))
    return next((unit for unit, count in UNITS.items() if greatest / count < LAST_SECOND), "ns")


def _guess_attributes(path: Path, key: str, id_column: str | None) -> tuple[dict[str, Any], str]:
    inspected = inspect(path)
    looks = inspected.looks
    entries = {name: look.entry() for name, look in looks.items()}
    unique = [name for name, look in looks.items() if len(look.counts) == look.rows]
    named = [name for name in looks if NAMES[key].search(name)]
    found = id_column if id_column in looks else next(iter([*named, *unique]), None)
    for name, guess in entries.items():
        entry, why = guess[0], guess[-1]
        if name == found:
            entry, why = {"role": key, "type": "number" if guess[1] == "number" else "text"}, "the key"
        elif entry["role"] not in ("categorical", "dense"):
            entry, why = {"role": "excluded"}, why or entry["role"]
        else:
            entry = {
                option: entry[option] for option in ("role", *ATTRIBUTE_RULES[key][entry["role"]]) if option in entry
            }
        entries[name] = (entry, *guess[1:-1], why)
    content = inspected.content | {"columns": {name: entry for name, (entry, *_) in entries.items()}}
    return content, inspected.report(entries)
