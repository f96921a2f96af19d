"""Exported models as programs: compiled, fed with inputs, read back."""

import re
import shutil
import subprocess

import numpy as np

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")

# Reads records (reset, dt, inputs) and writes (outputs, states) after each step.
_RUN = """
static int run_{name}(void)
{{
    float record[2 + {upper}_INPUT_SIZE], output[{upper}_OUTPUT_SIZE];
    {name}_state state;
    {name}_reset(&state);
    while (fread(record, sizeof record, 1, stdin) == 1) {{
        if (record[0] != 0.0f)
            {name}_reset(&state);
        {name}_step(&state, {dt}record + 2, output);
        fwrite(output, sizeof output, 1, stdout);
        fwrite(&state, sizeof state, 1, stdout);
    }}
    return 0;
}}
"""


def build(folder, names, compiler, *flags):
    """Compile the exported models `names` of a folder into one program."""
    texts = ["#include <stdio.h>\n#include <string.h>\n"]
    for name in names:
        header = (folder / f"{name}.h").read_text()
        dt = "record[1], " if "float dt" in header else ""
        texts.append(f'#include "{name}.h"\n')
        texts.append(_RUN.format(name=name, upper=name.upper(), dt=dt))
    texts.append("int main(int count, char **words)\n{\n    if (count < 2)\n        return 2;\n")
    for name in names:
        texts.append(f'    if (!strcmp(words[1], "{name}"))\n        return run_{name}();\n')
    texts.append("    return 2;\n}\n")
    (folder / "main.c").write_text("".join(texts))
    program = folder / f"program-{compiler}"
    sources = [f"{name}.c" for name in [*names, "main"]]
    command = [compiler, *STRICT, *flags, *sources, "-o", program, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return program


def run(program, name, inputs, resets, dt, *before):
    """Return (outputs, states) of a model, each (T, n); before: an emulator's command."""
    header = (program.parent / f"{name}.h").read_text()
    size, states = (
        int(re.search(rf"_{kind}_SIZE (\d+)", header)[1]) for kind in ("OUTPUT", "STATE")
    )
    records = np.column_stack([resets, dt, inputs]).astype(np.float32)
    done = subprocess.run(
        [*before, program, name], input=records.tobytes(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = np.frombuffer(done.stdout, np.float32).reshape(len(inputs), size + states)
    return found[:, :size], found[:, size:]


def missing(*commands):
    """Return which of these commands is not installed, "" if all are."""
    return next((c for c in commands if not shutil.which(c)), "")
