"""Census-Income (KDD) and Adult: columns, tasks and archives; MultiTaskDataModule also reads any other table.

`python data/census_income.py` downloads the raw files of DATASET, reads them and prints a summary.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Published, find_file, missing_file, raw_file
from common.errors import run_script
from common.paths import data_root
from data import movie_rating_seq
from data.samples.census import census_sample
from data.schema import Categorical, Column, Dataset, Dense, Description, Label, Plain
from data.table.module import TableDataModule, summary

DATASET = "census-income-kdd"  # what this script downloads: this or "adult"
ARCHIVES = {  # by folder below DATA_ROOT
    "census-income-kdd": Archive(
        urls=("https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",),
        name="census+income+kdd.zip",
        files={
            "census-income.data": "sha256:3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
            "census-income.test": "sha256:98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
        },
    ),
    "adult": Archive(
        urls=("https://archive.ics.uci.edu/static/public/2/adult.zip",),
        name="adult.zip",
        files={
            "adult.data": "md5:5d7c39d7b8804f071cdd1f2a7c460872",
            "adult.test": "md5:35238206dfdf7f1fe215bbb874adecdc",
        },
    ),
}


def _description(name: str, columns: str, special: dict[str, Column]) -> Description:
    """name: of the files; columns: in their order; those without a special role are categories."""
    return Description(
        files={"train": f"{name}.data", "test": f"{name}.test"},
        separator=", ",
        header=False,
        quoted=False,
        comment="|",  # Adult's test file begins with one
        missing=("?",),
        columns={name: special.get(name, Categorical()) for name in _split(columns)},
    )


def _task(task: str, positive: str, negative: str) -> Label:
    return Label(task=task, positive=_split(positive), negative=_split(negative))


def _all(names: str, column: Column) -> dict[str, Column]:
    return dict.fromkeys(_split(names), column)


def _split(texts: str) -> tuple[str, ...]:
    return tuple(texts.split("; "))


CENSUS_INCOME_KDD = _description(
    "census-income",
    "age; class of worker; industry code; occupation code; education; wage per hour; enrolled last week; "
    "marital status; industry; occupation; race; hispanic origin; sex; labor union; reason for unemployment; "
    "employment status; capital gains; capital losses; dividends; tax filer status; previous region; "
    "previous state; household detail; household summary; instance weight; migration in msa; migration in region; "
    "migration within region; same house a year ago; migration in sunbelt; persons worked for employer; "
    "family members under 18; country of father; country of mother; country of birth; citizenship; own business; "
    "veteran questionnaire; veterans benefits; weeks worked; year; income",
    {
        "instance weight": Plain(role="weight"),
        **_all(
            "age; wage per hour; capital gains; capital losses; dividends; persons worked for employer; weeks worked",
            Dense(),
        ),
        # categories written as numbers
        **_all("industry code; occupation code; own business; veterans benefits; year", Categorical(type="number")),
        "income": _task("income", "50000+.", "- 50000."),
        "marital status": _task(
            "never_married",
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
)

ADULT = _description(
    "adult",
    "age; class of worker; instance weight; education; years of education; marital status; occupation; "
    "relationship; race; sex; capital gains; capital losses; hours per week; country of birth; income",
    {
        "instance weight": Plain(role="weight"),
        "years of education": Plain(role="excluded"),  # gives away the education
        **_all("age; capital gains; capital losses; hours per week", Dense()),
        "income": _task("income", ">50K; >50K.", "<=50K; <=50K."),  # with a dot in the test file
        "marital status": _task(
            "never_married",
            "Never-married",
            "Married-civ-spouse; Divorced; Separated; Widowed; Married-spouse-absent; Married-AF-spouse",
        ),
        "education": _task(
            "education",
            "Assoc-acdm; Assoc-voc; Bachelors; Masters; Prof-school; Doctorate",
            "Preschool; 1st-4th; 5th-6th; 7th-8th; 9th; 10th; 11th; 12th; HS-grad; Some-college",
        ),
    },
)

DESCRIPTIONS = {"census-income-kdd": CENSUS_INCOME_KDD, "adult": ADULT}
PUBLISHED = {
    name: Published("python data/census_income.py", partial(census_sample, CENSUS_INCOME_KDD), setting)
    for name, setting in (("census-income-kdd", ""), ("adult", 'DATASET = "adult"'))
}


class MultiTaskDataModule(TableDataModule):
    """A table with one or more labels: batches (dense (B, I) float32, ids (B, S) int32, label (B, K) float32).

    Dense values are as in the file, nan if missing, with `bin_edges`; each is encoded as a category too, because some
    amounts (of capital gains, say) carry a meaning of their own. tasks: names of the labels.
    """

    published = PUBLISHED | movie_rating_seq.PUBLISHED
    raw_files = "census-income.data, adult.data, ratings.dat"

    def described(self, folder: Path) -> Dataset | None:
        return described(folder) or movie_rating_seq.described(folder, clicks=True)


def described(folder: Path) -> Dataset | None:
    """Census-Income (KDD) or Adult, whichever is in the folder. Raises: UserError if its test file is missing."""
    for name, description in DESCRIPTIONS.items():
        train, test = (description.files or {}).values()
        if path := find_file(folder, train):
            files = {"train": path.name, "test": raw_file(folder, test).name}
            return Dataset(name, description.model_copy(update={"files": files}), folder, str(path))
    return None


def with_income(census: Dataset) -> Dataset:
    """With the income as the only label; the columns of the others are inputs."""
    others = {name: Categorical() for name in census.description.of_role("label") if name != "income"}
    return replace(census, description=census.description.with_columns(others))


def main() -> None:
    """Download the raw files if there is no folder, read them and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    if (table := described(data_root() / DATASET)) is None:
        raise missing_file(data_root() / DATASET, "neither census-income.data nor adult.data", PUBLISHED)
    print(summary(table))


if __name__ == "__main__":
    run_script(main)
