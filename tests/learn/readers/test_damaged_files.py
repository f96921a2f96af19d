"""Files with bytes changed, cut or added: read as what they are, or refused by name."""

import os
import random

import numpy as np
import pandas
import pytest

from parnl.learn.readers import read

ROWS = "id,time,x,mood,label\na,2020-01-01,1.5,good,u\na,2020-01-02,,bad,u\nb,2020-01-01,3,bad,v\n"
FRAME = pandas.DataFrame(
    dict(id=["a", "a", "b"], x=[1.5, None, 3], mood=["good", "bad", "bad"], label=[0, 0, 1])
)
TEXT = {
    "t.csv": ROWS,
    "t.tsv": ROWS.replace(",", "\t"),
    "t.ts": "@timeStamps true\n@classLabel true u v\n@data\n(0,1),(1,2):(0,3),(1,4):u\n"
    "(0,1):(0,2):v\n",
    "p.ts": "@classLabel true u v\n@data\n1,2,?:3,4,5:u\n6:7:v\n",
    "t.arff": "@relation r\n@attribute a numeric\n@attribute b numeric\n"
    "@attribute c {u,v}\n@data\n1,2,u\n",
    "r.arff": "@relation r\n@attribute a relational\n@attribute b numeric\n@end a\n"
    "@attribute c {u,v}\n@data\n'1,2\\n3,4',u\n",
}  # fmt: skip
X = np.arange(24.0).reshape(4, 3, 2)
ARRAYS = dict(X=X, y=np.array(["u", "v"] * 2), val_0=np.array([1]), test_0=np.array([2]))


def make(path):
    if path.name in TEXT:
        path.write_text(TEXT[path.name])
    elif path.suffix == ".npz":
        (np.savez_compressed if path.stem == "c" else np.savez)(path, **ARRAYS)
    elif path.suffix == ".npy":
        np.save(path, X)
    else:
        getattr(FRAME, f"to_{path.suffix[1:]}")(path)
    return path.read_bytes()


NAMES = [*TEXT, "t.npz", "c.npz", "t.npy", "t.parquet", "t.feather", "mapped.npz", "mapped.npy"]
TURNS = 3000 if "PARNL_EVERY" in os.environ else 200


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy takes some for files of Python 2
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, monkeypatch, name):
    limit = 0 if name.startswith("mapped") else 2**28
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", limit)
    path = tmp_path / name
    good, rng = make(path), random.Random(0)
    read(path)
    refused = 0
    for turn in range(TURNS):
        content = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            if turn % 5 == 0:
                del content[at : at + rng.randint(1, 9)]
            elif turn % 5 == 1:
                content[at:at] = rng.choice((b",", b"\n", b":", b'"', b"'", b"(", b"1e999", b"\0"))
            elif turn % 5 == 2:
                del content[at + 1 :]
            else:
                content[at] = rng.randrange(256)
        path.write_bytes(content)
        try:
            found = read(path)
            for one in found.series:
                assert one.shape == (len(one) or 1, len(found.channels))
                assert limit == 0 or not (np.abs(one) > 1e39).any()  # mapped: when they are used
        except ValueError as error:
            refused += 1
            text = str(error)
            assert text.startswith(f"data: {path}")
            assert text.isprintable(), text
            assert len(text) < 700
    assert refused > 40
