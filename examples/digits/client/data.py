"""The data: scikit-learn's handwritten digits, split so that no two clients share an image.

    python data.py                 on a client: check its file, or make it (partition STUDIO_PARTITION, default 1/3)
    python data.py all FOLDER      for trying out: client-1.npz, client-2.npz, client-3.npz and test.npz

One image in five goes to test.npz, which no client sees.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

TEST_SHARE = 5  # one in so many
SPLIT_SEED = 20
LOCAL_TEST_SHARE = 5  # of a client's own images, for its validation


def data_file() -> Path:
    """This client's images: STUDIO_DATA_PATH (`studio client start --data-path`), else digits.npz beside the code."""
    return Path(os.environ.get("STUDIO_DATA_PATH") or Path(__file__).parent / "digits.npz")


def load(path: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(images as float32 (n, 64) in 0 to 1, digits as int64 (n,))."""
    path = path or data_file()
    if not path.is_file():
        raise SystemExit(f"There is no data file {path}. Start the client with --data-path FILE.")
    with np.load(path, allow_pickle=False) as content:
        return content["x"], content["y"]


def local_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x to train, y to train, x to validate, y to validate) of this client."""
    x, y = load()
    held_out = np.arange(len(y)) % LOCAL_TEST_SHARE == 0
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def split(partitions: int) -> tuple[list[np.ndarray], np.ndarray]:
    """(row numbers of each client, row numbers of the test set): disjoint, together everything."""
    _, y = digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    test, rest = order[: len(y) // TEST_SHARE], order[len(y) // TEST_SHARE :]
    return [rest[i::partitions] for i in range(partitions)], test


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1797 images and their digits."""
    from sklearn.datasets import load_digits  # its import takes a second, and training needs none of it

    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target.astype(np.int64)


def write(path: Path, rows: np.ndarray) -> None:
    """Write these rows as one data file."""
    x, y = digits()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, x=x[rows], y=y[rows])


def write_all(folder: Path, partitions: int = 3) -> None:
    """Write every client's file and the test set."""
    clients, test = split(partitions)
    for number, rows in enumerate(clients, start=1):
        write(folder / f"client-{number}.npz", rows)
    write(folder / "test.npz", test)


def main() -> None:
    """See the module's first lines."""
    if sys.argv[1:2] == ["all"]:
        write_all(Path(sys.argv[2] if len(sys.argv) > 2 else "data"))
        return
    path = data_file()
    if not path.is_file():
        if "STUDIO_DATA_PATH" in os.environ:
            raise SystemExit(f"There is no data file {path}.")
        number, _, partitions = os.environ.get("STUDIO_PARTITION", "1/3").partition("/")
        clients, _test = split(int(partitions or 3))
        write(path, clients[int(number) - 1])
    x, _y = load(path)
    print(f"{len(x)} images in {path.name}")


if __name__ == "__main__":
    main()
