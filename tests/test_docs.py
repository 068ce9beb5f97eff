"""The pages: files that they name exist, and the letters of shapes are those of the legend."""

import ast
import re

import pytest

from common.paths import REPO
from models import MODELS

PAGES = [*sorted(REPO.glob("docs/*.md")), REPO / "CONTRIBUTING.md", REPO / "README.md"]
PLANNED = {"dcn", "events", "label_smoothing"}  # made by following docs/extending.md
LEGEND = set(re.findall(r"^\| ([A-Z]) \|", (REPO / "docs" / "legend.md").read_text(), re.MULTILINE))
PACKAGES = ("common", "data", *(model.script.partition(".")[0] for model in MODELS.values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page):
    text = page.read_text()
    assert "TODO" not in text  # a number that is not measured yet
    for link in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"[\w/]+\.py\b", text):
        if "/" in name and not any(planned in name for planned in PLANNED):
            assert (REPO / name).exists(), name


def test_letters_of_docstrings_are_in_the_legend():
    """A file explains its letters as `B: rows of a batch, L: ...`."""
    used = {}
    for package in PACKAGES:
        for path in (REPO / package).rglob("*.py"):
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            used |= dict.fromkeys(re.findall(r"(?:^|[,;.] |[,;.]\n|\n)([A-Z]): ", docstring), path.name)
    assert len(used) > 10
    assert used.keys() <= LEGEND, {letter: used[letter] for letter in used.keys() - LEGEND}
