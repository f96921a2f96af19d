"""Cells are trusted code; files of parameters are not, and names and numbers are never code.

What is generated (Python, C, Triton) holds numbers from the graph and names of its own making.
"""

import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save, save_file

import parnl
from parnl import ops
from parnl.backends.c import text as c_text
from parnl.backends.c.text import Lanes
from parnl.backends.triton import text as triton_text
from parnl.frameworks import get_backend
from parnl.graph.flatcode import source
from parnl.graph.nodes import Graph
from parnl.graph.program import Program
from parnl.learn import checkpoints
from parnl.params import matrix, vector

CELL = parnl.get_cell("gru", input_size=3, hidden_size=4)
PARAMS = CELL.init(0)
NAMES = list(PARAMS)


# -- parameters in files --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_come_back_bit_for_bit_on_every_backend(tmp_path, dtype):
    path = tmp_path / "deep" / "gru.safetensors"
    values = CELL.init(3, dtype=dtype)
    # not numbers of any use, but what was saved is what is loaded: a NaN with its payload, too
    values["a_r"][:] = np.array([np.nan, -np.inf, -0.0, 5e-324]).astype(dtype)
    values["a_z"].view(f"u{values['a_z'].itemsize}")[:] |= 0x7F800001 if dtype == "float32" else 1
    for backend in ("numpy", "torch", "jax"):
        target = get_backend(backend)
        given = {name: target.asarray(value, dtype) for name, value in values.items()}
        parnl.save_params(path, CELL, given)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        # an independent reader
        for name, value in load_file(path).items():
            assert value.tobytes() == values[name].tobytes()
        found = parnl.load_params(str(path), CELL, backend=backend)
        assert list(found) == NAMES
        for name, value in found.items():
            assert type(value) is type(given[name])
            assert target.to_numpy(value).tobytes() == values[name].tobytes()


def test_parameters_that_are_being_trained_are_saved(tmp_path):
    params = {n: p.requires_grad_() for n, p in CELL.init(0, "torch").items()}
    params["W_r"] = params["W_r"].t().contiguous().t()  # strides of its own
    parnl.save_params(tmp_path / "p", CELL, params)
    found = parnl.load_params(tmp_path / "p", CELL, "torch")
    assert all(torch.equal(found[n], params[n]) for n in NAMES)


def test_nan_in_a_file_does_not_stop_a_solve(tmp_path):
    values = {n: p.copy() for n, p in PARAMS.items()}
    values["a_r"][1] = np.nan
    parnl.save_params(tmp_path / "p", CELL, values)
    u = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32)
    found = parnl.solve(CELL, parnl.load_params(tmp_path / "p", CELL), u, chunks=7).outputs
    expected = parnl.solve(CELL, PARAMS, u, chunks=1).outputs
    assert np.isnan(found[..., 1]).all()
    np.testing.assert_allclose(found[..., [0, 2, 3]], expected[..., [0, 2, 3]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("a_n"), r"params: missing \['a_n'\], unknown \[\]; .* GRU are: W_r"),
        (lambda p: p.update(extra=p["a_n"]), r"params: missing \[\], unknown \['extra'\]"),
        (lambda p: p.update(W_r=p["W_r"].T), r"parameter W_r: expected shape \(3, 4\), got \(4, 3"),
        (lambda p: p.update(a_n=p["a_n"].astype(int)), "parameter a_n: .*, got int64"),
        (lambda p: p.update(a_n=torch.zeros(4, dtype=torch.int8)), "a_n: .* got int8"),
        (lambda p: p.update(a_n=[0.0] * 4), "parameter a_n: .*, got list"),
        (lambda p: p.update(a_n=p["a_n"].astype("f8")), "one dtype, got .*, a_n float64"),
    ],
)
def test_parameters_that_do_not_fit_are_not_saved(tmp_path, change, message):
    params = dict(PARAMS)
    change(params)
    with pytest.raises(ValueError, match=message):
        parnl.save_params(tmp_path / "p", CELL, params)
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_wrong_kind(tmp_path):
    with pytest.raises(TypeError, match=r"cell: expected a parnl\.Cell"):
        parnl.save_params(tmp_path / "p", "gru", PARAMS)
    with pytest.raises(TypeError, match="params: expected a mapping name -> array, got list"):
        parnl.save_params(tmp_path / "p", CELL, list(PARAMS))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        parnl.load_params(tmp_path / "nothing", CELL)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        parnl.load_params(tmp_path, CELL)


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    parnl.save_params(tmp_path / "p", CELL, PARAMS)
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    for call in (
        lambda: parnl.save_params(tmp_path / "p", CELL, PARAMS),
        lambda: parnl.load_params(tmp_path / "p", CELL),
    ):
        with pytest.raises(ImportError, match=r"pip install 'parnl\[checkpoint\]'"):
            call()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p"
    parnl.save_params(path, CELL, PARAMS)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        parnl.save_params(path, CELL, CELL.init(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_once_leave_one_of_their_files(tmp_path):
    path = tmp_path / "p"
    many = [CELL.init(seed) for seed in range(4)]

    def write(params):
        for _ in range(20):
            parnl.save_params(path, CELL, params)

    threads = [threading.Thread(target=write, args=(params,)) for params in many]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            found = parnl.load_params(path, CELL)
            assert any((found["W_r"] == params["W_r"]).all() for params in many)
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [path]


# -- hostile files --------------------------------------------------------------------------------

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


# -- names ----------------------------------------------------------------------------------------

REFUSED = [
    "", " ", "a b", "a-b", "1a", "a'b", 'a"b', "a\nb", "a\0b", '"); system("touch executed'  "",
    "a); }\n#error", "a.b", "a/b", "x[0]", "lambda", "class", "None", "_kind", "__class__", "_a", 7,
]  # fmt: skip


def cell_of(state="x", parameter="a", feature="u", matrix_name="W"):
    """x' = tanh(a x + u), with names as given."""

    class Named(parnl.Cell):
        states = (state,)
        parameters = {matrix_name: matrix("input", "hidden"), parameter: vector("hidden")}

        def features(self, p, u):
            return {feature: u @ getattr(p, matrix_name)}

        def step(self, p, x, f):
            return ops.tanh(getattr(p, parameter) * x + getattr(f, feature))

    return Named


@pytest.mark.parametrize("name", REFUSED, ids=repr)
def test_names_that_are_no_identifiers_are_refused_where_the_cell_is_registered(name):
    for kind in ("state", "parameter", "feature", "matrix_name"):
        if kind == "feature" and not isinstance(name, str):
            continue
        if kind == "feature" and name.startswith("__"):
            with pytest.raises((AttributeError, parnl.StepError)):
                parnl.register("untrusted-name")(cell_of(feature=name))
            continue
        with pytest.raises(ValueError, match="expected Python identifiers") as caught:
            parnl.register("untrusted-name")(cell_of(**{kind: name}))
        assert repr(name) in str(caught.value)
        assert "untrusted-name" not in parnl.list_cells()


@pytest.mark.parametrize("states", [(), ("x", "x")], ids=repr)
def test_states_without_a_name_of_their_own_are_refused(states):
    class Twice(parnl.Cell):
        def features(self, p, u):
            return {}

        def step(self, p, *x):
            return x[:-1]

    Twice.states = states
    with pytest.raises(ValueError, match="states: expected one name or more, each once"):
        Twice(1, 1)


def texts(program):
    """The Python, C and Triton that is made of a program."""
    found = [source("step", *program.signature("step_jacobian"))]
    found.append(source("step", *program.signature("vjp", (0, 1)), program.fused(program.outputs)))
    lanes = Lanes(32, 8, True, True)
    for kind in ("trajectory", "advance", "adjoint", "backward"):
        wanted = (0, 1) if kind == "backward" else ()
        for dtype in ("float32", "float64"):
            kernel = c_text.Kernel(program, kind, dtype, "cf", lanes, wanted)
            found.append(c_text.source(kernel, ffi=True))
    for kind in ("solve", "gradients"):
        wanted = (0, 1) if kind == "gradients" else ()
        kernel = triton_text.Kernel(program, kind, "float32", "cf", True, False, wanted)
        found.append(triton_text.source(kernel))
    return found


# Identifiers all, so they are taken: names of C, of what is generated, of Python, of other letters.
TAKEN = [
    "float", "double", "int64_t", "main", "system", "INFINITY_", "NAN_", "R", "W", "V", "STAGE",
    "a0", "t0", "t", "a", "B", "T", "D", "C", "L", "x0", "q0", "m0", "v7", "op0", "kernel", "where",
    "tl", "exp", "print", "self", "dt", "keys", "größe", "步", "mask", "step", "number", "inf",
]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_names_stay_out_of_what_is_generated(name):
    plain, named = cell_of("x", "p", "f")(3, 5), cell_of(name, name, name, "matrix_of")(3, 5)
    assert texts(named.program) == texts(plain.program)


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("name", ["float", "t", "a0", "keys", "größe", "dt"])
def test_a_cell_of_such_names_is_solved_and_differentiated(monkeypatch, name, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    rng = np.random.default_rng(0)
    w, a, u = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(2, 20, 3))
    cell = cell_of(name, name, name, "matrix_of")(3, 5)
    params = {
        "matrix_of": torch.tensor(w, requires_grad=True),
        name: torch.tensor(a, requires_grad=True),
    }
    outputs = parnl.solve(cell, params, torch.tensor(u), chunks=4).outputs
    x, exact = torch.zeros(2, 5, dtype=torch.float64), []
    a_, w_ = torch.tensor(a, requires_grad=True), torch.tensor(w, requires_grad=True)
    for t in range(20):
        x = torch.tanh(a_ * x + torch.tensor(u[:, t]) @ w_)
        exact.append(x)
    exact = torch.stack(exact, 1)
    torch.testing.assert_close(outputs, exact, rtol=0, atol=1e-12)
    found = torch.autograd.grad(outputs.square().sum(), [params[name], params["matrix_of"]])
    expected = torch.autograd.grad(exact.square().sum(), [a_, w_])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_names_that_no_cell_can_have_stay_out_of_what_is_generated():
    """Even of a graph that was made by hand: nothing rests on the check of a cell's names."""

    def program(*names):
        g = Graph()
        x, a, u = (
            g.leaf(k, n) for k, n in zip(("state", "parameter", "feature"), names, strict=True)
        )
        return Program(g, [x], [a, u], [g.apply("tanh", a * x + u)])

    hostile = program('"); system("touch executed', "*/ #error /*", "'''\nimport os\n")
    assert texts(hostile) == texts(program("x", "a", "u"))


# -- numbers --------------------------------------------------------------------------------------

NUMBERS = [
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1e400, -1e400, 5e-324, 2.2250738585072014e-308,
    1.7976931348623157e308, -1.7976931348623157e308, 0.1, 1 / 3, -1 / 3, 1e22, 2**53 + 1, 10**300,
    123456789012345678, 3.4028234663852886e38, 3.4028235677973366e38, 1e39, 1.4e-45, 7e-46,
    np.float32(0.1), np.int64(-7), 0.24999999999999997,
]  # fmt: skip


# Each form that a constant takes in generated code; u and c of one dtype.
FORMS = {
    "chosen": (lambda u, c: ops.where(u > 0, c, u), lambda u, c: np.where(u > 0, c, u)),
    "less": (lambda u, c: c - u, lambda u, c: c - u),
    "times": (lambda u, c: c * u, lambda u, c: c * u),
    "least": (
        lambda u, c: ops.minimum(c, u),
        lambda u, c: np.where(np.isnan(c), c, np.where(u < c, u, c)),
    ),
    "two numbers": (
        lambda u, c: ops.where(u > 0, c, -float(c)),
        lambda u, c: np.where(u > 0, c, -c),
    ),
    "compared": (lambda u, c: ops.where(u == c, 1.0, u), lambda u, c: np.where(u == c, 1.0, u)),
}


class Numbers(parnl.Cell):
    """One state for each number."""

    states = tuple(f"x{i}" for i in range(len(NUMBERS)))
    options = {"form": "chosen"}

    def features(self, p, u):
        return {"u": u}

    def step(self, p, *arguments):
        return tuple(FORMS[self.form][0](arguments[-1].u, c) for c in NUMBERS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("backend", "kernels"),
    [
        ("numpy", "off"), ("numpy", "c"), ("torch", "off"), ("torch", "c"), ("torch", "triton"),
        ("jax", "off"), ("jax", "c"), ("jax", "pallas"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_are_exact_in_each_generator(monkeypatch, backend, kernels, dtype):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    if kernels == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    target, real = get_backend(backend), np.dtype(dtype).type
    u = np.array([1.5, -2.0, 0.25, -1e-3, 3.0, -0.5], dtype)
    inputs = target.asarray(u[:, None, None], dtype)
    for form, (_, exact) in FORMS.items():
        found = parnl.solve(Numbers(1, 1, form=form), {}, inputs, chunks=1).final_state
        for c, state in zip(NUMBERS, found, strict=True):
            rounded, got = real(float(c)), target.to_numpy(state)[:, 0]
            expected = exact(u, rounded)
            sizes, tiny = np.abs([rounded, *expected]), np.finfo(dtype).tiny
            if backend == "jax":  # XLA takes denormals for zeros on a CPU, and zeros for denormals:
                # where a step has the constants 0.0 and 5e-324, it may write one for the other
                if np.any((sizes > 0) & (sizes < tiny)):
                    continue
                got = np.where(np.abs(got) < tiny, np.copysign(real(0), got), got)
            np.testing.assert_array_equal(got, expected, err_msg=f"{c!r} {form}")
            number = ~np.isnan(expected)  # the sign of a NaN tells nothing
            signs = np.signbit(got[number]), np.signbit(expected[number])
            np.testing.assert_array_equal(*signs, err_msg=f"{c!r} {form}")


@pytest.mark.parametrize("exponent", [math.inf, -math.inf, math.nan])
def test_an_exponent_that_is_no_number_is_refused(exponent):
    class Power(parnl.Cell):
        def step(self, p, x, f):
            return x**exponent

    with pytest.raises(parnl.StepError, match=r"\*\*: expected a finite exponent, got"):
        Power(1, 1)


def test_an_integer_that_is_no_float64_is_refused():
    class Large(parnl.Cell):
        def step(self, p, x, f):
            return x * 10**400

    with pytest.raises(parnl.StepError, match="an integer beyond the range of float64"):
        Large(1, 1)


def test_a_step_without_any_operation_is_solved():
    class Plain(parnl.Cell):
        def features(self, p, u):
            return {"u": u}

        def step(self, p, x, f):
            return f.u

    for steps in (1, 15, 200):
        u = np.random.default_rng(0).normal(size=(1, steps, 1))
        np.testing.assert_array_equal(parnl.solve(Plain(1, 1), {}, u).outputs, u)
