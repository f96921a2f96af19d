"""Folders with one series a file, and labels that stand in a file."""

import numpy as np
import pytest

from parnl.learn.readers import Options, is_file, read


@pytest.fixture
def folder(tmp_path):
    def make(**files):
        root = tmp_path / "walks"
        for name, content in files.items():
            path = root / name.replace("__", "/").replace("_csv", ".csv").replace("_npy", ".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            else:
                np.save(path, content)
        return root

    return make


A, B = "t,x\n0,1\n1,2\n", "t,x\n0,3\n2,4\n4,5\n"


def test_folders_are_classes(folder):
    found = read(folder(run__a_csv=A, rest__b_csv=B, **{".hidden": "x"}))
    assert (found.labels.tolist(), found.channels) == (["rest", "run"], ("x",))
    assert [one[:, 0].tolist() for one in found.series] == [[3, 4, 5], [1, 2]]
    assert [own.tolist() for own in found.times] == [[0, 2, 4], [0, 1]]
    assert found.label_place(0) == "the file rest/b.csv"
    assert found.notes[:2] == (
        "a file is a series (2 files)", f"labels are the names of the folders in {found.source}"
    )  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        "name,kind\nb.csv,rest\na.csv,run\n",
        "name,kind\nb,rest\na,run\nc,none\n",
        "kind\nrun\nrest\n",
    ],
)
def test_labels_in_a_file(folder, labels):
    root = folder(a_csv=A, b_csv=B, labels_csv=labels)
    found = read(root, Options(label="labels.csv"))
    assert (found.ids, found.labels.tolist()) == (["a.csv", "b.csv"], ["run", "rest"])
    assert found.label_place(1).startswith("line ")
    assert found.label_place(1).endswith(f"of {root / 'labels.csv'}")


def test_arrays(folder):
    found = read(folder(u__a_npy=np.ones((3, 2)), v__b_npy=np.zeros((4, 2))))
    assert [one.shape for one in found.series] == [(3, 2), (4, 2)]


def test_names_are_counted_over_all_files(folder):
    found = read(folder(u__a_csv="m,x\ngood,1\n", v__b_csv="m,x\nbad,2\ngood,3\n"))
    assert found.categories == {"m": ("bad", "good")}
    assert [one[:, 0].tolist() for one in found.series] == [[1], [0, 1]]


BROKEN = [
    (dict(a_csv=A, b_npy=np.ones(3)), {}, "holds 'a.csv', 'b.npy', expected files of one kind"),
    ({"a.exe": "x"}, {}, "holds 'a.exe', expected files of one kind"),
    (dict(a_csv=A, u__b_csv=B), {}, "holds files at several depths"),
    (dict(u__v__a_csv=A), {}, "holds files at several depths"),
    (dict(a_csv=A, b_csv="t,y\n0,1\n"), {}, "b.csv has the channels 'y', expected 'x' as in"),
    (dict(a_csv=A, b_csv="date,x\n2020-01-01,1\n"), {}, "b.csv has other times .dates or numbers"),
    (dict(a_csv=A, b_csv="id,x\nu,1\nv,2\nu,3\n"), {}, "b.csv holds 2 series, expected one a file"),
    (dict(a_csv=A, b_csv="t,x\n0,1\n1,z\n2,3\n"), {}, "b.csv: line 3, column 'x': got 'z'"),
    (dict(a_csv=A, b_csv="t,x\n0,u\n"), {}, "a.csv: column 'x' holds numbers, expected names"),
    (dict(a_csv=A), dict(label="l.csv"), "label: there is no file l.csv"),
    (dict(a_csv=A, l_csv="k\nu\nv\n"), dict(label="l.csv"), "l.csv: got 2 labels, expected 1, one"),
    (dict(a_csv=A, l_csv="n,k\nb,u\n"), dict(label="l.csv"), "no label for the series 'a.csv'"),
    (dict(a_csv=A, l_csv="n,k\na,u\na,v\n"), dict(label="l.csv"), "line 3, column 'n': got 'a'"),
    (dict(a_csv=A, l_csv="n,k\na,\n"), dict(label="l.csv"), "line 2, column 'k': got an empty"),
    (dict(a_csv=A, l_csv="n,k,z\na,u,1\n"), dict(label="l.csv"), "line 1: got 3 columns, expected"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "options", "message"), BROKEN)
def test_what_is_wrong_is_named(folder, files, options, message):
    root = folder(**files)
    with pytest.raises((ValueError, FileNotFoundError), match=f"data: .*{message}"):
        read(root, Options(**options))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no files, expected one a series"):
        read(tmp_path)


def test_what_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GunPoint", "walks", "a.dat"):
        (tmp_path / name).mkdir()
    assert [is_file(n) for n in ("a.csv", "A.NPZ", "x/y", "walks", "a.dat")] == [True] * 5
    assert [is_file(n) for n in ("GunPoint", "Walks")] == [False, False]
    (tmp_path / "b.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"data: b.xlsx: expected a file of the kind .csv, .tsv"):
        read("b.xlsx")
