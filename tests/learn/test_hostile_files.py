"""Files of parameters from somewhere else: refused by name, nothing in them is executed."""

import json
import os
import pickle
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import parnl
from parnl.learn import checkpoints

CELL = parnl.get_cell("gru", input_size=3, hidden_size=4)

PARAMS = CELL.init(0)

NAMES = list(PARAMS)

GOOD = save(PARAMS, {"parnl": "{}"})

SIZE = int.from_bytes(GOOD[:8], "little")

HEADER, BODY = json.loads(GOOD[8 : 8 + SIZE]), GOOD[8 + SIZE :]


def built(header, body=BODY, size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(name="a_n", **changes):
    """The good file with one array described otherwise."""
    return built(HEADER | {name: HEADER[name] | changes})


def renamed(name):
    changed = {name if n == "a_n" else n: value for n, value in HEADER.items()}
    return built(changed)


class Trap:
    def __reduce__(self):
        return os.system, ("touch executed",)


HERE = HEADER["a_n"]["data_offsets"]

OTHER = HEADER["b_r"]["data_offsets"]

NO_CHECKPOINT = "is not a parnl checkpoint"

# (bytes, what the message says)
HOSTILE = {
    "empty": (b"", NO_CHECKPOINT),
    "short": (GOOD[:5], NO_CHECKPOINT),
    "the header cut": (GOOD[:100], NO_CHECKPOINT),
    "the numbers cut": (GOOD[:-4], NO_CHECKPOINT),
    "numbers too many": (GOOD + b"\0" * 4, NO_CHECKPOINT),
    "a pickle": (pickle.dumps(Trap()), NO_CHECKPOINT),
    "a pickle of arrays": (pickle.dumps(PARAMS), NO_CHECKPOINT),
    "a zip": (b"PK\3\4" + bytes(200), NO_CHECKPOINT),
    "header of 2^64 - 1 bytes": (built(HEADER, size=2**64 - 1), "18446744073709551615 bytes"),
    "header of 2^40 bytes": (built(HEADER, size=2**40), "bytes, expected at most"),
    "header of 2^24 bytes, of which few are there": (built(HEADER, size=2**24), NO_CHECKPOINT),
    "header of 0 bytes": (built(b""), NO_CHECKPOINT),
    "header of 40 MB": (built(b" " * 40_000_000), "40000000 bytes, expected at most"),
    "nested": (built(b'{"a":' * 100_000), NO_CHECKPOINT),
    "nested, in brackets": (built(b"[" * 100_000 + b"]" * 100_000), NO_CHECKPOINT),
    "a list": (built(b"[1, 2]"), NO_CHECKPOINT),
    "a number": (built(b"1e400"), NO_CHECKPOINT),
    "null": (built(b"null"), NO_CHECKPOINT),
    "no JSON": (built(b"__import__('os').system('touch executed')"), NO_CHECKPOINT),
    "no UTF-8": (built(b'{"\xff": 1}'), NO_CHECKPOINT),
    "no arrays": (built({}, b""), r"missing \['W_r', .* and 7 more\]"),
    "100000 arrays": (
        save({f"{i}": np.zeros(0, np.float32) for i in range(10**5)}),
        "unknown .* and 99997 more",
    ),
    "out of bounds": (entry(data_offsets=[HERE[0], HERE[0] + 2**40]), NO_CHECKPOINT),
    "offsets beyond 64 bits": (entry(data_offsets=[2**64, 2**65]), NO_CHECKPOINT),
    "negative offsets": (entry(data_offsets=[-16, 0]), NO_CHECKPOINT),
    "offsets turned": (entry(data_offsets=HERE[::-1]), NO_CHECKPOINT),
    "overlapping": (entry(data_offsets=OTHER), NO_CHECKPOINT),
    "a shape beyond 64 bits": (entry(shape=[2**40, 2**40]), NO_CHECKPOINT),
    "a shape that needs 2^60 bytes": (entry(shape=[2**58]), NO_CHECKPOINT),
    "100 dimensions": (entry(shape=[1] * 99 + [4]), r"a_n: expected shape \(4,\), got \(1, 1,"),
    "a shape of empty arrays": (entry(shape=[0, 2**50], data_offsets=[0, 0]), NO_CHECKPOINT),
    "transposed": (entry("W_r", shape=[4, 3]), r"W_r: expected shape \(3, 4\), got \(4, 3\)"),
    "flat": (entry("W_r", shape=[12]), r"W_r: expected shape \(3, 4\), got \(12,\)"),
    "integers": (entry(dtype="I32"), "a_n: expected bfloat16, float16, float32, float64, got I32"),
    "half as many doubles": (entry(dtype="F64", shape=[2]), r"expected shape \(4,\), got \(2,\)"),
    "eight bits": (entry(dtype="F8_E4M3", shape=[16]), "a_n: .*, got F8_E4M3"),
    "bytes": (entry(dtype="U8", shape=[16]), "a_n: .*, got U8"),
    "truth values": (entry(dtype="BOOL", shape=[16]), "a_n: .*, got BOOL"),
    "a dtype there is not": (entry(dtype="object"), NO_CHECKPOINT),
    "a dtype that is no string": (entry(dtype={"a": 1}), NO_CHECKPOINT),
    "one array fewer": (save({n: PARAMS[n] for n in NAMES[1:]}), r"missing \['W_r'\]"),
    "one array more": (save(PARAMS | {"z": np.zeros(2)}), r"missing \[\], unknown \['z'\]"),
    "two dtypes": (save(PARAMS | {"a_n": np.zeros(4)}), "one dtype, got .* a_n float64"),
    "a name of a path": (renamed("../../../tmp/executed"), "unknown .*/executed"),
    "an absolute name": (renamed("/etc/passwd"), "unknown .*/etc/passwd"),
    "a name of another case": (renamed("A_N"), r"missing \['a_n'\], unknown \['A_N'\]"),
    "a name with a zero": (renamed("a_n\0"), r"missing \['a_n'\], unknown \['a_n\?'\]"),
    "a name that moves the cursor": (renamed("\x1b[2Ja_n"), r"unknown \['\?\[2Ja_n'\]"),
    "a name of 100000 letters": (renamed("a" * 100_000), r"unknown \['a{60}\.\.\.'\]"),
    "Python's own": (renamed("__class__"), r"unknown \['__class__'\]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def executed():
    """Return a list that gets the name of whatever is executed while it is watched."""
    found, watched = [], {"exec", "compile", "os.exec", "os.system", "subprocess.Popen"}

    def hook(event, arguments):
        if found and (event in watched or event.startswith("pickle")):
            found.append(event)

    sys.addaudithook(hook)  # which stays until Python ends, idle while the list is empty
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path, monkeypatch, executed, name):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    path = tmp_path / "given.safetensors"
    path.write_bytes(GOOD)
    parnl.load_params(path, CELL)  # whatever is imported, is by now
    path.write_bytes(content)
    executed.append("watched")
    try:
        with pytest.raises(ValueError, match=message) as caught:
            parnl.load_params(path, CELL)
        assert executed == ["watched"]
    finally:
        executed.clear()
    text = str(caught.value)
    assert str(path) in text
    assert len(text) < 1000
    assert text.isprintable()
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_that_hostile_ones_are_made_from_is_good(tmp_path):
    (tmp_path / "p").write_bytes(built(HEADER))
    for name, value in parnl.load_params(tmp_path / "p", CELL).items():
        np.testing.assert_array_equal(value, PARAMS[name])


def test_hostile_files_take_no_memory(tmp_path):
    """All of them under a limit of 200 MB above what the imports need."""
    for number, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    text = f"""
import pathlib, resource, parnl, safetensors.numpy
cell = parnl.get_cell("gru", 3, 4)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
    try:
        parnl.load_params(path, cell)
    except ValueError:
        print(path.name)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(HOSTILE)


@pytest.mark.long
def test_files_with_bytes_changed_load_as_what_they_are_or_not_at_all(tmp_path):
    rng, path = random.Random(0), tmp_path / "p"
    refused = 0
    for _ in range(1500):
        content = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(8 + SIZE)
            digits = at >= 8 and rng.random() < 0.7
            content[at] = rng.choice(b'0123456789"{}[],:FIUB') if digits else rng.randrange(256)
        path.write_bytes(content)
        try:
            found = parnl.load_params(path, CELL)
        except ValueError:
            refused += 1
            continue
        assert {n: a.shape for n, a in found.items()} == CELL.parameter_shapes
        # whatever is said of them, they are the file's own numbers
        assert all(a.tobytes() in bytes(content) for a in found.values())
    assert refused > 1000


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000 + "]" * 100_000, "[1]", "null", "{", "1" * 10_000, '"text"', None],
    ids=range(7),
)
def test_a_header_that_is_no_object_of_json_is_refused(tmp_path, header):
    save_file(PARAMS, tmp_path / "c", None if header is None else {"parnl": header})
    with pytest.raises(ValueError, match="c is not a parnl checkpoint"):
        checkpoints.read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_a_checkpoint_of_types_that_numpy_lacks_is_refused(tmp_path, dtype):
    size = 2 if dtype == "BF16" else 1
    header = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * size]}}
    (tmp_path / "c").write_bytes(built(header, bytes(4 * size)))
    with pytest.raises(ValueError, match="c is not a parnl checkpoint"):
        checkpoints.read_checkpoint(tmp_path / "c")
