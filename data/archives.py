"""Where the raw datasets are, and how to know them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file to download. urls: the official one, then mirrors. size: bytes. checksum: "md5:<hex>" or "sha256:<hex>".
    files: those to unpack, each with its checksum; None where only the archive has one."""

    urls: tuple[str, ...]
    name: str
    files: dict[str, str | None]
    size: int | None = None
    checksum: str | None = None


ARCHIVES = {  # by folder below DATA_ROOT
    "criteo": Archive(
        urls=(
            "https://go.criteo.net/criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
            "https://ndownloader.figshare.com/files/10082655",
        ),
        name="criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
        files={"train.txt": "md5:4dcfe6c4b7783585d4ae3c714994f26a", "test.txt": None},
        size=4_576_820_670,
        checksum="md5:df9b1b3766d9ff91d5ca3eb3d23bed27",
    ),
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
    "ml-1m": Archive(
        urls=("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
        name="ml-1m.zip",
        files=dict.fromkeys(["ratings.dat", "movies.dat", "users.dat"]),
        size=5_917_549,
        checksum="md5:c4d9eecfca2ab87c1945afe126590906",
    ),
    "ml-100k": Archive(
        urls=("https://files.grouplens.org/datasets/movielens/ml-100k.zip",),
        name="ml-100k.zip",
        files=dict.fromkeys(["u.data", "u.item", "u.user"]),
        size=4_924_029,
        checksum="md5:0e33842e24a9c977be4e0107933c0723",
    ),
}
