"""Imports go one way, and there are no cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import models
from common.paths import REPO

MODELS = tuple(model.script.partition(".")[0] for model in models.MODELS.values())
PACKAGES = ("common", "data", *MODELS, "benchmarks")
FILES = [*REPO.glob("*.py"), *(path for package in PACKAGES for path in (REPO / package).rglob("*.py"))]
FILES = [path for path in FILES if not {"raw", "cache"} & set(path.relative_to(REPO).parts)]
ROOMS = ["common", "common.data", "common.model", "common.training", "common.cluster"]  # each may import those before


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of this repo that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & NAMES


IMPORTS = {name_of(path): imports(path) for path in FILES}


def room(name: str) -> str:
    return name.rsplit(".", 1)[0]


def test_there_is_no_circle():
    # launch imports ray_cluster only when train() is called, so this is not a cycle of modules
    graph = IMPORTS | {"common.cluster.launch": IMPORTS["common.cluster.launch"] - {"common.cluster.ray_cluster"}}
    list(TopologicalSorter(graph).static_order())


def test_arrows_go_one_way():
    for name, other in ((name, other) for name, others in IMPORTS.items() for other in others):
        where = f"{name} imports {other}"
        assert not other.startswith("benchmarks") or name.startswith("benchmarks"), where
        if name.startswith("common."):
            assert other.startswith("common"), where
            assert ROOMS.index(room(other)) <= ROOMS.index(room(name)), where
        if name.startswith("data."):
            assert not other.startswith(MODELS), where
        if other.endswith(".train"):
            assert name in ("tune_dlrm", "multitask.compare") or name.startswith("benchmarks"), where


def test_the_walk_of_a_line():
    """From deepfm/train.py along imports to all code of data/ that a raw line runs through before it is a batch."""
    touched = {"data.reader", "data.text", "data.values", "data.table.rows", "data.table.encoder"}
    ways = {"deepfm.train": 0}  # files of data/ opened on the shortest way, the last one included
    for name in (queue := ["deepfm.train"]):
        for other in sorted(IMPORTS[name] - ways.keys()):
            ways[other] = ways[name] + other.startswith("data.")
            queue.append(other)
    assert max(ways[name] for name in touched) <= 5 and len(touched) <= 5
    # what else works on columns of rows would have to be opened too
    others = {
        name
        for name in ways
        if name.startswith("data.") and "pyarrow" in (REPO / f"{name.replace('.', '/')}.py").read_text()
    }
    others = {name for name in others if not name.startswith("data.history")} - touched
    rest = {"data.attributes", "data.schema", "data.table.module", "data.table.splits", "data.movie_rating_seq"}
    assert others <= rest, others
