"""What `make sanitize` runs, with a compute-sanitizer that only writes down what it is asked."""

import subprocess

import pytest
import sanitize
from cases import CASES


@pytest.fixture
def asked(monkeypatch):
    """Commands that would have been run; all of them end well."""
    commands = []
    monkeypatch.setattr(sanitize, "run", lambda command: commands.append(command) or 0)
    return commands


def test_every_tool_runs_the_tests_on_a_gpu(asked, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "count_gpus", lambda: (1, ""))
    monkeypatch.setattr(sanitize, "sanitizer", lambda: "compute-sanitizer")
    assert sanitize.main(["-x"]) == 0
    assert [command[2] for command in asked] == ["memcheck", "racecheck", "initcheck", "synccheck"]
    for command in asked:
        assert command[3:5] == ["--error-exitcode", str(sanitize.FOUND)]
        assert command[command.index("-k") + 1] == "[cupy or -cupy"
        assert "no_pool" in command
        assert "-x" in command
    assert capsys.readouterr().out.count("nothing found") == 4


@pytest.mark.parametrize(("status", "said"), [(sanitize.FOUND, "FOUND"), (1, "FAILED: status 1")])
def test_a_finding_of_one_tool_fails(monkeypatch, capsys, status, said):
    monkeypatch.setattr(sanitize, "count_gpus", lambda: (1, ""))
    monkeypatch.setattr(sanitize, "sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(sanitize, "run", lambda command: status if "racecheck" in command else 0)
    assert sanitize.main([]) == 1
    assert f"racecheck: {said}" in capsys.readouterr().out


def test_without_a_gpu_the_emulator_checks_instead(asked, monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "count_gpus", lambda: (0, "no driver"))
    monkeypatch.setattr(sanitize, "has_nvrtc", lambda: True)
    assert sanitize.main([]) == 0
    assert [command[command.index("-k") + 1] for command in asked] == ["[emulated or -emulated"]
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("gpus", [0, 1])
def test_what_cannot_be_run_is_no_success(asked, monkeypatch, capsys, gpus):
    monkeypatch.setattr(sanitize, "count_gpus", lambda: (gpus, "no driver"))
    monkeypatch.setattr(sanitize, "has_nvrtc", lambda: False)
    monkeypatch.setattr(sanitize, "sanitizer", lambda: None)
    assert sanitize.main([]) == 1
    assert asked == []
    assert "nothing was checked" in capsys.readouterr().out


def test_the_choice_is_of_the_whole_case_table():
    # Turns have the names by which they are chosen.
    choice = sanitize.pytest_on("numpy")[: -len(sanitize.FILES)]
    [stages] = [file for file in sanitize.FILES if file.endswith("test_stages.py")]
    command = [*choice, "--collect-only", stages]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    chosen = [line for line in listed.splitlines() if "::" in line]
    assert len(chosen) > 50
    assert all("[numpy" in line or "-numpy" in line for line in chosen)
    assert sum("test_im2col_matches_the_oracle" in line for line in chosen) == len(CASES)
