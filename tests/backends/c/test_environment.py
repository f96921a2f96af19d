"""The environment as it is found: compilers, variables, folders, ways to start Python."""

import math
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from children import NO_CACHE, NO_KERNELS, SOLVE, run

import parnl
from parnl import kernel_cache
from parnl.backends.c import build, compiler, processors

# A kernel is compiled, and the number of files it makes is printed.
COMPILE = "from parnl.backends.c import build; print(build.available())"


@pytest.fixture
def script(tmp_path):
    """Make a program `name` that runs the shell commands `text`; return its path."""

    def make(text, name="compiler"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"#!/bin/sh\n" + (text if isinstance(text, bytes) else text.encode()))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of kernels, in this process and its children."""
    monkeypatch.setenv("PARNL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_said", {})
    return tmp_path / "cache"


def compile_by(cc, **environment):
    return run(COMPILE, CC=cc, **environment)


def said(done):
    """The one notice in what a child wrote to its standard error."""
    lines = [line for line in done.stderr.splitlines() if NO_KERNELS in line]
    assert len(lines) == 1, done.stderr
    assert done.stdout == "False\n"
    return lines[0].partition("several times slower: ")[2]


# -- the compiler ----------------------------------------------------------------------------------


@pytest.mark.long
def test_cc_may_have_arguments_and_blanks_in_its_path(cache, script, tmp_path):
    wrapper = script('exec "$@"', "ccache")
    blank = script('exec cc "$@"', "with blanks/my cc")
    wanted = ["cc -pthread", f"{wrapper} cc", f"'{blank}' -O1", blank, "  ", ""]
    for cc in wanted:
        done = compile_by(cc)
        assert (done.stdout, done.stderr) == ("True\n", ""), cc
    # arguments may change what is made: each has a library of its own
    assert len(list(cache.glob("*.so"))) == 4


def test_a_compiler_that_is_none_is_named(cache, script, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert said(compile_by("no-such-compiler -x")).startswith(
        "there is no C compiler 'no-such-compiler', which CC names. Set CC to one or unset it, or "
    )
    assert said(compile_by(str(plain))).startswith(
        f"CC names '{plain}', which cannot be executed. Set CC to a C compiler, or set "
    )
    plain.chmod(0o755)
    plain.write_bytes(b"\x7fELF and then nothing")
    assert f"{plain} cannot be run: Exec format error. Set CC" in said(compile_by(str(plain)))
    assert 'CC is "cc \'x": no closing quotation. Write a path with' in said(compile_by("cc 'x"))
    assert said(run(COMPILE, without=["CC"], PATH=str(tmp_path))).startswith(
        "there is no C compiler 'cc'. Install a C compiler, for instance gcc, or set PARNL_KERNELS"
    )
    done = compile_by("no-such-compiler", PARNL_KERNELS="c")
    assert "BuildError: there is no C compiler 'no-such-compiler'" in done.stderr


FAILING = """[ "$1" = --version ] && exec cc --version
"""


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (
            "<stdin>: In function 'f':\n<stdin>:3:1: warning: no error\n"
            "<stdin>:7:2: error: expected ';' before '}' token\n  7 | }\n    | ^\n",
            "exit 1",
            "failed: <stdin>:7:2: error: expected ';' before '}' token. Set CC to a C compiler",
        ),
        (
            "In file included from x:\n/x/stdint.h:9:16: fatal error: stdint.h: No such file or "
            "directory\ncompilation terminated.\n",
            "exit 1",
            "stdint.h: No such file or directory. Install the C library's headers (libc6-dev",
        ),
        ("/usr/bin/ld: cannot find crti.o\nerror: 1\n", "exit 1", "crti.o. Install the C library"),
        ("ld: final link failed: No space left on device\n", "exit 1", "Make room on the disk, or"),
        ("", "exit 3", "failed: exit status 3. Set CC"),
        ("", "kill -9 $$", "failed: it was ended by signal 9. Set CC"),
    ],
)
def test_the_notice_has_one_line_of_what_a_compiler_says(cache, script, output, status, reason):
    path = script(f"{FAILING}cat >/dev/null; cat >&2 <<'END'\n{output}END\n{status}\n")
    line = said(compile_by(path))
    assert reason in line
    assert len(line) < 450


def test_a_compiler_may_print_any_bytes(cache, script):
    """In the version, which is kept as a part of names; and in an error, in latin-1."""
    path = script(b'[ "$1" = --version ] && echo "\xe9t\xe9 \xff" && exit\nexec cc "$@"\n')
    for environment in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = compile_by(path, **environment)
        assert (done.stdout, done.stderr) == ("True\n", "")
    text = FAILING.encode() + b"echo 'x.c:1: erreur: \xe9chec (error)' >&2; exit 1\n"
    assert "x.c:1: erreur: " in said(compile_by(script(text)))
    version_fails = script(b"echo 'd\xe9faut' >&2; exit 1\n")
    assert "--version failed: d" in said(compile_by(version_fails))


def test_a_compiler_is_asked_to_speak_english(cache, script):
    """Its version, and with it the names of kernels, is the same for users of any language."""
    path = script('echo "$LC_ALL" >> "$0.log"; exec cc "$@"')
    assert compile_by(path, LC_ALL="de_DE.UTF-8", LANGUAGE="de").stdout == "True\n"
    assert set(Path(f"{path}.log").read_text().split()) == {"C"}


def test_a_compiler_that_knows_no_native_processor_serves(cache, script):
    path = script(
        'for a; do case "$a" in -m*=*) echo "error: unsupported option $a" >&2; exit 1;; esac; done'
        '\nexec cc "$@"'
    )
    assert compile_by(path).stdout == "True\n"


@pytest.fixture
def found(monkeypatch):
    """What `compiler.find` raises, with nothing remembered from before."""

    def find():
        compiler._find.cache_clear()
        with pytest.raises(build.BuildError) as error:
            compiler.find()
        return f"{error.value}. {error.value.remedy}"

    yield find
    monkeypatch.undo()
    compiler._find.cache_clear()


def test_windows_and_macos_are_told_what_helps_there(monkeypatch, found, script):
    monkeypatch.delenv("CC", raising=False)
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        text = found()
    assert text == "parnl compiles C on Linux and macOS only. Run it in WSL, the Linux in Windows"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    xcrun = "xcrun: error: invalid active developer path (/Library/Developer/CommandLineTools)"
    script(f"echo '{xcrun}, missing xcrun' >&2; exit 1", "bin/cc")
    monkeypatch.setenv("PATH", "/nowhere")
    apple = "Install Apple's compiler by `xcode-select --install`"
    assert found() == f"there is no C compiler 'cc'. {apple}"
    monkeypatch.setenv("PATH", f"{Path(script('', 'bin/x')).parent}:/bin:/usr/bin")
    assert found() == f"cc --version failed: {xcrun}, missing xcrun. {apple}"
    for machine in ("arm64", "aarch64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert compiler.native_flags() == ("-mcpu=native",)
    for machine in ("AMD64", "amd64", "x86_64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert "-march=native" in compiler.native_flags()


def test_a_folder_where_nothing_may_be_executed(cache, monkeypatch, tmp_path):
    """As the system says it, and as a loader says it."""
    cache.mkdir(mode=0o700)

    class Mounted:
        f_flag = os.ST_NOEXEC

    cc = compiler.Compiler(("cc",), "")
    trouble = OSError("/x/tmp.so: failed to map segment from shared object")
    assert "cannot be loaded: failed to map segment" in str(build._unloadable(cc, cache, trouble))
    monkeypatch.setattr(os, "statvfs", lambda path: Mounted)
    error = build._unloadable(cc, cache, trouble)
    assert str(error) == f"nothing in {cache} may be executed, for it is mounted noexec"
    assert error.remedy == "Set PARNL_CACHE to a folder that is not"
    assert build._unloadable(cc, tmp_path, trouble).remedy == "Set TMPDIR to a folder that is not"


# -- variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["OFF", " off ", "Off\n"])
def test_the_choice_of_kernels_in_capitals_and_with_blanks(monkeypatch, given):
    monkeypatch.setenv("PARNL_KERNELS", given)
    assert build.choice() == "off"
    monkeypatch.setenv("PARNL_KERNELS", "  ")
    assert build.choice() == ""


def test_an_unknown_choice_is_an_error(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "Fortran")
    message = "PARNL_KERNELS: expected one of off, c, triton, got 'Fortran'"
    with pytest.raises(ValueError, match=message):
        build.choice()


@pytest.mark.parametrize(
    ("given", "threads"),
    [("3", 3), (" 3 ", 3), ("+3", 3), ("4,2", 4), ("4 , 2", 4), ("", None), (" ", None)],
)
def test_the_number_of_threads_is_read_as_openmp_reads_it(monkeypatch, recwarn, given, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    default = processors.processors()
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert processors.processors() == (threads or default)
    assert not recwarn.list


@pytest.mark.parametrize("given", ["auto", "1.0", "0", "-2", "4;2", "2 3", ",2", "1e3", "0x4"])
def test_a_number_of_threads_that_is_none_is_ignored_with_one_warning(monkeypatch, given):
    monkeypatch.setattr(build, "_said", {})
    processors._asked.cache_clear()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    default = processors.processors()
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    message = f"OMP_NUM_THREADS: expected a whole number of at least 1, got {given!r}"
    with pytest.warns(RuntimeWarning, match=message.replace("+", "\\+")) as warned:
        assert [processors.processors() for _ in range(3)] == [default] * 3
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("limits", "group", "expected"),
    [
        ({"": "max 100000"}, "0::/", None),
        ({"": "150000 100000"}, "0::/", 2),
        ({"": "20000 100000"}, "0::/", 1),
        ({"a/b": "max 100000", "a": "300000 100000"}, "1:cpu:/\n0::/a/b", 3),
        ({"a/b": "200000 100000", "a": "300000 100000"}, "0::/a/b", 2),
        ({"": "100000 100000"}, "0::/not/mounted/here", 1),
        ({"": "100000 100000"}, "4:memory:/x", None),
        ({"": "nonsense"}, "0::/", None),
    ],
)
def test_processors_that_a_control_group_grants(monkeypatch, tmp_path, limits, group, expected):
    for folder, text in limits.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(f"{text}\n")
    (tmp_path / "of-process").write_text(f"{group}\n")
    monkeypatch.setattr(processors, "_GROUPS", tmp_path)
    monkeypatch.setattr(processors, "_GROUP_OF_PROCESS", tmp_path / "of-process")
    monkeypatch.setattr(processors, "_allowed", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processors._granted.cache_clear()
    try:
        assert processors.processors() == (expected or 64)
    finally:
        processors._granted.cache_clear()


def test_processors_where_the_system_tells_no_affinity(monkeypatch):
    """On macOS, which has no sched_getaffinity."""
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert processors._allowed() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors._allowed() == 1


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({0: ("1", "48K\n"), 2: ("2", "2048K\n"), 3: ("3", "491520K\n")}, 480 << 20),
        ({0: ("1", "32K\n"), 1: ("2", "4M\n")}, 4 << 20),
        ({0: ("1", "unknown\n")}, 32 << 20),
        ({}, 32 << 20),
    ],
)
def test_last_level_of_cache(monkeypatch, tmp_path, levels, expected):
    for index, (level, size) in levels.items():
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "level").write_text(level)
        (tmp_path / f"index{index}" / "size").write_text(size)
    (tmp_path / "index9").mkdir()  # no files in it
    monkeypatch.setattr(processors, "_CACHES", tmp_path)
    processors.last_cache.cache_clear()
    try:
        assert processors.last_cache() == expected
    finally:
        processors.last_cache.cache_clear()


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """Set the three variables that tell where the cache is; return its place."""

    def place(**given):
        for name in ("PARNL_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, str(value))
        return kernel_cache.location()

    return place


def test_where_the_cache_is(variables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert variables(PARNL_CACHE="~/mine", HOME=tmp_path) == tmp_path / "mine"
    assert variables(PARNL_CACHE="/x", XDG_CACHE_HOME="/y", HOME="/z") == Path("/x")
    assert variables(PARNL_CACHE=" ", XDG_CACHE_HOME="/y", HOME="/z") == Path("/y/parnl")
    assert variables(PARNL_CACHE="", XDG_CACHE_HOME="", HOME="/z") == Path("/z/.cache/parnl")
    # a relative XDG_CACHE_HOME is to be ignored
    assert variables(XDG_CACHE_HOME="y", HOME="/z") == Path("/z/.cache/parnl")
    # an empty HOME is none: ~ is then what the system knows of the user
    assert variables(HOME="") == variables() != Path("/.cache/parnl")


def test_a_relative_cache_stays_where_it_was(variables, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    name = f"kernels-{tmp_path.name}"  # not asked for before
    monkeypatch.chdir(tmp_path)
    assert variables(PARNL_CACHE=name) == tmp_path / name
    monkeypatch.chdir("elsewhere")
    assert variables(PARNL_CACHE=name) == tmp_path / name


def test_a_relative_cache_is_one_folder_for_a_program_that_moves(tmp_path):
    code = f"import os\n{COMPILE}\nos.chdir('elsewhere')\n{SOLVE}"
    (tmp_path / "elsewhere").mkdir()
    done = run(code, cwd=tmp_path, PARNL_CACHE="kernels", PYTHONPATH=os.getcwd())
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "kernels").glob("*.so"))) > 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_cache_that_is_a_file_and_one_whose_user_is_unknown(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    done = run(COMPILE, PARNL_CACHE=str(file))
    assert done.stdout == "True\n"
    assert f"in every process: {file} is a file, not a folder. Set PARNL_CACHE" in done.stderr
    done = run(COMPILE, PARNL_CACHE="~no-such-user/x")
    assert done.stdout == "True\n"
    assert done.stderr.count(NO_CACHE) == 1


def test_a_cache_that_is_removed_under_a_running_process(cache):
    code = f"import shutil, sys\n{COMPILE}\nshutil.rmtree({str(cache)!r})\n{SOLVE}"
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(cache.glob("*.so"))) > 1


def test_a_folder_for_temporary_files_that_is_not_there(cache, tmp_path):
    done = run(COMPILE, TMPDIR=str(tmp_path / "missing"))
    assert (done.stdout, done.stderr) == ("True\n", "")


# -- ways to start Python --------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("options", [["-O"], ["-OO"], ["-I"]])
def test_options_of_python(cache, options):
    done = run(SOLVE, *options, PARNL_KERNELS="c")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    first = done.stdout.split()[1]
    assert math.isfinite(float(first))


def test_an_installation_in_a_zip_file(cache, tmp_path):
    archive = tmp_path / "parnl.zip"
    root = Path(parnl.__file__).parents[1]
    with zipfile.ZipFile(archive, "w") as made:
        for folder, there in (("parnl", "parnl"), ("backends", "parnl/backends"),
                              ("cells", "parnl/cells")):  # fmt: skip
            for path in (root / folder).rglob("*"):
                if path.suffix in (".py", ".c", ".h"):
                    made.write(path, there / path.relative_to(root / folder))
    code = f"import sys; sys.path.insert(0, {str(archive)!r})\n{SOLVE}\nprint(parnl.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PARNL_KERNELS": "c"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(archive))
