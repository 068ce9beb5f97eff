"""The readers of MovieLens files against plain parsers, and their errors for wrong input."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from data.movie_raw import ML_1M, ML_100K, ML_CSV, detect_release, read_movies, read_ratings, read_users

from common.data.raw_files import LINE_BYTES, Source, find_dataset
from common.errors import UserError
from data import movie_raw
from data.movie_rating_seq import SOURCE

GOOD = {
    ML_1M: {
        "ratings.dat": "7::10::5::978300760\n3::20::1::978302109\n7::30::3::978301968\n",
        "movies.dat": "10::Léon (1994)::Action|Drama\n20::A::B (1995)::Comedy\n".replace("A::B", "A: B")
        + "30::Toy Story (1995)::Animation\n",
        "users.dat": "3::F::1::10::48067\n7::M::56::16::70072\n",
    },
    ML_100K: {
        "u.data": "7\t10\t5\t978300760\n3\t20\t1\t978302109\n7\t30\t3\t978301968\n",
        "u.item": "".join(
            f"{number}|{title}|01-Jan-1995||http://x/?{title}|{flags}\n"
            for number, title, flags in (
                (10, "Léon (1994)", "|".join("0100000010000000000")),
                (20, "A: B (1995)", "|".join("0000010000000000000")),
                (30, "Toy Story (1995)", "|".join("0001000000000000000")),
            )
        ),
        "u.user": "3|17|F|10|48067\n7|73|M|16|70072\n",
    },
    ML_CSV: {
        "ratings.csv": "userId,movieId,rating,timestamp\n7,10,5.0,978300760\n3,20,1.0,978302109\n7,30,3.0,978301968\n",
        "movies.csv": 'movieId,title,genres\n10,Léon (1994),Action|Drama\n20,"A: B (1995)",Comedy\n'
        "30,Toy Story (1995),Animation\n",
    },
}
FORMS = pytest.mark.parametrize("release", GOOD, ids=lambda release: release.ratings_file)
BAD_RATINGS = {
    ML_1M: [
        "1::2::3",
        "1::2::3::4::5",
        "1::2::6::4",
        "1::2::0::4",
        "1:2::3::4",
        "x::2::3::4",
        "1::2::3::-4",
        " 1::2::3::4",
    ],
    ML_100K: ["1\t2\t3", "1 2 3 4", "1\t2\t6\t4", "1\t\t3\t4", "1\t2\t3.5\t4"],
    ML_CSV: ["1,2,3.0", "1,2,3.0,4,5", "1,2,0.0,4", "1,2,5.5,4", "1,2,3.2,4", '1,2,"3.0",4', "1,2,nan,4"],
}


def write(folder: Path, release, compress: bool = False, **replaced: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in GOOD[release].items():
        content = replaced.get(name, text).encode(release.encoding)
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def path_of(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}*"))


@FORMS
@pytest.mark.parametrize("compress", [False, True])
def test_reads_every_release(tmp_path, release, compress):
    folder = write(tmp_path, release, compress)
    assert detect_release(folder, "get") is release
    ratings = read_ratings(path_of(folder, release.ratings_file), release)
    assert {name: column.tolist() for name, column in ratings.items()} == {
        "user": [7, 3, 7],
        "movie": [10, 20, 30],
        "rating": [5, 1, 3],
        "time": [978300760, 978302109, 978301968],
    }
    assert read_movies(path_of(folder, release.movies_file), release) == {
        10: ("Léon (1994)", ["Action", "Drama"]),
        20: ("A: B (1995)", ["Comedy"]),
        30: ("Toy Story (1995)", ["Animation"]),
    }
    if release.users_file:
        users = read_users(path_of(folder, release.users_file), release)
        assert users == {3: ["F", "1", "10"], 7: ["M", "56", "16"]}


@FORMS
def test_many_blocks_equal_a_plain_parser(tmp_path, release, rng, monkeypatch):
    monkeypatch.setattr(movie_raw, "BLOCK_BYTES", 97)
    separator = {ML_1M: "::", ML_100K: "\t", ML_CSV: ","}[release]
    numbers = [
        rng.integers(1, 10**9, 500),
        rng.integers(1, 10**9, 500),
        rng.integers(1, 6, 500),
        rng.integers(10**12, size=500),
    ]
    lines = [separator.join(map(str, row)) for row in zip(*(column.tolist() for column in numbers), strict=True)]
    text = release.header.decode() + "\n" * bool(release.header) + "\r\n".join(lines)  # CRLF, no last line end
    folder = write(tmp_path, release, **{release.ratings_file: text})
    ratings = read_ratings(folder / release.ratings_file, release)
    assert [list(row) for row in zip(*(column.tolist() for column in ratings.values()), strict=True)] == [
        [float(field) for field in row] for row in csv.reader(line.replace(separator, ",") for line in lines)
    ]


@pytest.mark.parametrize(
    ("release", "line"), [(release, line) for release, lines in BAD_RATINGS.items() for line in [*lines, "", "\0"]]
)
def test_a_broken_rating_is_named(tmp_path, release, line, monkeypatch):
    monkeypatch.setattr(movie_raw, "BLOCK_BYTES", 30)
    good = GOOD[release][release.ratings_file]
    folder = write(tmp_path, release, **{release.ratings_file: good + line + "\n" + good.split("\n")[-2] + "\n"})
    number = good.count("\n") + 1
    with pytest.raises(UserError, match=rf"{release.ratings_file}, line {number}: found .* expected .*1 to 5|0.5 to 5"):
        read_ratings(folder / release.ratings_file, release)


@FORMS
def test_broken_movies_and_users_are_named(tmp_path, release):
    good = GOOD[release][release.movies_file]
    repeated = good.splitlines()[-1]
    for line in ("40", "x::A::B|y", "40|A", "4_0" + repeated[2:], repeated, "4\0" + repeated[2:], repeated + "|"):
        folder = write(tmp_path, release, **{release.movies_file: good + line + "\n"})
        with pytest.raises(UserError, match=rf"{release.movies_file}, line {good.count(chr(10)) + 1}: found"):
            read_movies(folder / release.movies_file, release)
    if release.users_file:
        folder = write(tmp_path, release, **{release.users_file: GOOD[release][release.users_file] + "9\n"})
        with pytest.raises(UserError, match=rf"{release.users_file}, line 3: found '9'"):
            read_users(folder / release.users_file, release)


def test_movies_need_their_header(tmp_path):
    folder = write(tmp_path, ML_CSV, **{"movies.csv": GOOD[ML_CSV]["movies.csv"].split("\n", 1)[1]})
    with pytest.raises(UserError, match=r"movies.csv, line 1: found '10,Léon .*expected 'movieId,title,genres'"):
        read_movies(folder / "movies.csv", ML_CSV)


@FORMS
def test_empty_and_cut_files(tmp_path, release):
    folder = write(tmp_path, release, **{release.ratings_file: ""})
    with pytest.raises(UserError, match="is empty"):
        read_ratings(folder / release.ratings_file, release)
    if release.header:
        folder = write(tmp_path, release, **{release.ratings_file: release.header.decode() + "\n"})
        with pytest.raises(UserError, match="no ratings"):
            read_ratings(folder / release.ratings_file, release)
        folder = write(tmp_path, release, **{release.ratings_file: "1,2,3.0,4\n"})
        with pytest.raises(UserError, match=r"line 1: found '1,2,3.0,4', expected 'userId"):
            read_ratings(folder / release.ratings_file, release)
    cut = tmp_path / f"{release.ratings_file}.gz"
    cut.write_bytes(gzip.compress(np.random.default_rng(0).bytes(5000))[:1000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_ratings(cut, release)


@FORMS
@pytest.mark.parametrize("compress", [False, True])
def test_a_line_without_an_end(tmp_path, release, compress, monkeypatch):
    monkeypatch.setattr(movie_raw, "BLOCK_BYTES", 1000)
    endless = {name: text + "0" * 2 * LINE_BYTES for name, text in GOOD[release].items()}
    folder = write(tmp_path, release, compress, **endless)
    readers = {release.ratings_file: read_ratings, release.movies_file: read_movies, release.users_file: read_users}
    for name in release.files:
        line = GOOD[release][name].count("\n") + 1
        with pytest.raises(UserError, match=rf"{name}.*, line {line} is longer than 1,048,576 bytes"):
            readers[name](path_of(folder, name), release)


def test_no_known_files(tmp_path):
    with pytest.raises(UserError, match=r"has none of ratings.dat, u.data, ratings.csv .*; it is empty"):
        detect_release(tmp_path, SOURCE)
    write(tmp_path, ML_1M)
    (tmp_path / "users.dat").unlink()
    with pytest.raises(UserError, match=r"has no users.dat"):
        detect_release(tmp_path, SOURCE)


def test_advice_that_helps(tmp_path, capsys):
    """The error names no command for a release it does not download, or a folder it would not change."""
    source = Source("python x.py", ("ml-1m", "ml-100k"))
    for name, advised in (("ml-25m", False), ("ml-1m", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ratings.parquet").touch()
        with pytest.raises(UserError, match=r"has none of ratings.dat.* it has ratings.parquet\.") as raised:
            detect_release(tmp_path / name, source)
        assert ("Remove the folder, and `python x.py`" in str(raised.value)) == advised
    assert find_dataset("ml-100k", str(tmp_path), source, lambda: tmp_path) == (tmp_path, True)
    assert "using the built-in sample. `python x.py`" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no folder 'm1-1m' in .*it has ml-1m, ml-25m.*downloads ml-1m, ml-100k"):
        find_dataset("m1-1m", str(tmp_path), source, lambda: tmp_path)
