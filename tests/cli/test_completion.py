"""Completion as a shell uses it: bash runs the script that is printed, and `reconciler` answers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from reconciler.cli.completion import SHELLS
from reconciler.cli.main import COMMANDS, cli
from tests.support.system import need


@pytest.fixture(scope="module")
def script() -> str:
    done = CliRunner().invoke(cli, ["completion", "bash"])
    assert done.exit_code == 0
    return done.output


def completed(script: str, tmp_path: Path, *words: str) -> list[str]:
    """What bash would offer for the last word, with the command of this checkout as `reconciler`."""
    program = tmp_path / "reconciler"
    code = "import sys; sys.argv[0] = 'reconciler'; from reconciler.cli.main import main; main()"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
    program.chmod(0o755)
    asked = " ".join(f"'{word}'" for word in ("reconciler", *words))
    call = f"COMP_WORDS=({asked}); COMP_CWORD={len(words)}; _reconciler_completion reconciler"
    lines = f'{script}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [need("bash"), "-c", lines], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("pro",), ["promote"]),
        (("image", "b"), ["build", "bump"]),
        (("explain", "--kind", ""), ["device", "site", "wave"]),
        (("completion", ""), list(SHELLS)),
    ],
    ids=" ".join,
)
def test_bash_is_offered_what_fits(script: str, tmp_path: Path, words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(script, tmp_path, *words) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("promote", "v1."), ["v1.4.1", "v1.4.2"]),
        (("image", "build", "v1.4.2"), ["v1.4.2"]),
        (("pin", "SITE-2847"), ["SITE-2847"]),
        (("site", "render", "LAB"), ["LAB-0001"]),
        (("explain", "SITE-2847"), ["SITE-2847"]),
        (("explain", "--fleet", "nowhere", "SITE"), []),
    ],
    ids=" ".join,
)
def test_names_of_the_fleet_that_one_is_in_are_offered(
    words: tuple[str, ...], offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    found = ShellComplete(cli, {}, "reconciler", "_RECONCILER_COMPLETE").get_completions(list(words[:-1]), words[-1])
    assert [item.value for item in found] == offered


def test_a_tab_imports_no_command() -> None:
    code = (
        "import os, sys\n"
        "os.environ.update(_RECONCILER_COMPLETE='bash_complete', COMP_WORDS='reconciler ', COMP_CWORD='1')\n"
        "sys.argv = ['reconciler']\n"
        "from reconciler.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print(*(name for name in sys.modules if name.startswith('reconciler.')), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == {f"plain,{name}" for name in COMMANDS}
    assert set(done.stderr.split()) <= {
        "reconciler.cli",
        "reconciler.cli.main",
        "reconciler.cli.lazy",
        "reconciler.cli.guide",
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_asks_for_it(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert f"_RECONCILER_COMPLETE={shell}_complete" in done.output


def test_fish_shows_descriptions_that_have_a_comma() -> None:
    # click's own script splits an answer at every comma, and shows what stands before the second.
    assert 'string split -m 1 "," $completion' in CliRunner().invoke(cli, ["completion", "fish"]).output
