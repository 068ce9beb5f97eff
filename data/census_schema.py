"""Columns and tasks of Census-Income (KDD) and Adult.

Both: separated by ", ", no header, "?" for missing. Adult's test file begins with a comment line ("|"), its labels end
with a dot like those of Census-Income, and both of Adult's files end with a blank line.
"""

from dataclasses import dataclass

from data.table_schema import Column, Schema, Task


@dataclass(frozen=True)
class Release:
    """One of the two datasets: its files and their columns."""

    name: str
    train_file: str
    test_file: str
    schema: Schema


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


def _task(column: str, positive: str, negative: str) -> Task:
    return Task(column, _names(positive), _names(negative))


def _schema(columns: str, dense: str, coded: str, excluded: str, tasks: dict[str, Task]) -> Schema:
    """coded: categories written as numbers. excluded: columns that give away a task's label."""
    labels = {task.column for task in tasks.values()}

    def column(name: str) -> Column:
        if name in labels:
            return Column(name, "label")
        if name == "instance weight":
            return Column(name, "weight")
        if name in _names(excluded):
            return Column(name, "excluded")
        if name in _names(dense):
            return Column(name, "dense", type="number")
        return Column(name, "categorical", type="number" if name in _names(coded) else "text")

    return Schema(
        tuple(map(column, _names(columns))), tasks, header=False, quoted=False, strip=True, comment="|", missing=("?",)
    )


CENSUS_INCOME_KDD = Release(
    "census-income-kdd",
    "census-income.data",
    "census-income.test",
    _schema(
        "age; class of worker; industry code; occupation code; education; wage per hour; enrolled last week; "
        "marital status; industry; occupation; race; hispanic origin; sex; labor union; reason for unemployment; "
        "employment status; capital gains; capital losses; dividends; tax filer status; previous region; "
        "previous state; household detail; household summary; instance weight; migration in msa; migration in region; "
        "migration within region; same house a year ago; migration in sunbelt; persons worked for employer; "
        "family members under 18; country of father; country of mother; country of birth; citizenship; own business; "
        "veteran questionnaire; veterans benefits; weeks worked; year; income",
        dense="age; wage per hour; capital gains; capital losses; dividends; persons worked for employer; weeks worked",
        coded="industry code; occupation code; own business; veterans benefits; year",
        excluded="",
        tasks={
            "income": _task("income", "50000+", "- 50000"),
            "never_married": _task(
                "marital status",
                "Never married",
                "Married-civilian spouse present; Divorced; Widowed; Separated; Married-spouse absent; "
                "Married-A F spouse present",
            ),
            # the paper does not define "at least college"; from associate degree up, its correlation is reproduced
            "education": _task(
                "education",
                "Associates degree-academic program; Associates degree-occup /vocational; Bachelors degree(BA AB BS); "
                "Masters degree(MA MS MEng MEd MSW MBA); Prof school degree (MD DDS DVM LLB JD); "
                "Doctorate degree(PhD EdD)",
                "Children; Less than 1st grade; 1st 2nd 3rd or 4th grade; 5th or 6th grade; 7th and 8th grade; "
                "9th grade; 10th grade; 11th grade; 12th grade no diploma; High school graduate; "
                "Some college but no degree",
            ),
        },
    ),
)

ADULT = Release(
    "adult",
    "adult.data",
    "adult.test",
    _schema(
        "age; class of worker; instance weight; education; years of education; marital status; occupation; "
        "relationship; race; sex; capital gains; capital losses; hours per week; country of birth; income",
        dense="age; capital gains; capital losses; hours per week",
        coded="",
        excluded="years of education",
        tasks={
            "income": _task("income", ">50K", "<=50K"),
            "never_married": _task(
                "marital status",
                "Never-married",
                "Married-civ-spouse; Divorced; Separated; Widowed; Married-spouse-absent; Married-AF-spouse",
            ),
            "education": _task(
                "education",
                "Assoc-acdm; Assoc-voc; Bachelors; Masters; Prof-school; Doctorate",
                "Preschool; 1st-4th; 5th-6th; 7th-8th; 9th; 10th; 11th; 12th; HS-grad; Some-college",
            ),
        },
    ),
)

RELEASES = (CENSUS_INCOME_KDD, ADULT)
