"""What type checkers read is a program that runs."""

import pytest


@pytest.mark.long
def test_the_typed_program_runs(capsys):
    for framework in ("torch", "jax"):
        pytest.importorskip(framework)
    import typed_program

    typed_program.main()
    assert "torch.Size([2, 4])" in capsys.readouterr().out
