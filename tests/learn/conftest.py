"""The command `parnl`, run within the tests' process."""

import sys

import pytest

from parnl.learn import commands


@pytest.fixture
def parnl(monkeypatch, capsys):
    """Run the command in this process: (exit status, what it printed)."""

    def run(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["parnl", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            commands.main()
        out, err = capsys.readouterr()
        code = end.value.code
        # The interpreter prints a message given to sys.exit, and then the status is 1.
        return (1, out + err + code) if isinstance(code, str) else (code or 0, out + err)

    return run
