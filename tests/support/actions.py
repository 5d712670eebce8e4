"""Runs the `run:` steps of a workflow and of its composite actions as a runner would: bash, variables, outputs, conditions.

Knows of GitHub's expressions what our files use: names (`inputs.x`, `steps.x.outputs.y`, `needs.x.outputs.y`, `github.…`,
`vars.x`, `secrets.x`, `matrix.x`, `runner.temp`), texts, `==`, `!=`, `&&`, `||` and `!cancelled()`. Steps that `uses:` something
other than a local action are skipped, and so are those that `skip` names (they would ask the network).
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"(?:inputs|steps|needs|github|vars|secrets|matrix|runner)(?:\.[A-Za-z_][\w-]*)+")
_WORDS = re.compile(r"'[^']*'|" + _NAME.pattern + r"|&&|\|\||==|!=|!cancelled\(\)|[()]|\s+")


@dataclass
class Step:
    """What a step did."""

    name: str
    code: int
    output: str


@dataclass
class Runner:
    """One run of a workflow's jobs on a checkout. `context` holds `github`, `vars` and `secrets`, and `inputs` and
    `matrix` where the workflow has them."""

    checkout: Path
    temp: Path
    context: dict[str, Any]
    variables: dict[str, str]
    actions: Path
    skip: frozenset[str] = frozenset()
    steps: list[Step] = field(default_factory=list)
    summary: str = ""

    def job(
        self, job: dict[str, Any], needs: dict[str, dict[str, str]] | None = None
    ) -> tuple[bool, dict[str, str]] | None:
        """Run one job: whether it succeeded and its outputs; None where its condition keeps it from running."""
        scope = {
            **self.context,
            "runner": {"temp": str(self.temp)},
            "needs": {name: {"outputs": outputs} for name, outputs in (needs or {}).items()},
        }
        if "if" in job and not self.truth(str(job["if"]), scope):
            return None
        scope["steps"] = {}
        passed = self._run(job["steps"], scope)
        return passed, {name: self.text(value, scope) for name, value in job.get("outputs", {}).items()}

    def _run(self, steps: list[dict[str, Any]], scope: dict[str, Any]) -> bool:
        """Steps in order, up to the first that fails."""
        for step in steps:
            if step.get("name") in self.skip or ("if" in step and not self.truth(str(step["if"]), scope)):
                continue
            outputs: dict[str, str] = {}
            if "run" in step:
                passed, outputs = self._script(step, scope)
            elif step["uses"].startswith("./"):
                passed, outputs = self._composite(step, scope)
            else:
                continue
            if "id" in step:
                scope["steps"][step["id"]] = {"outputs": outputs}
            if not passed:
                return False
        return True

    def _composite(self, step: dict[str, Any], scope: dict[str, Any]) -> tuple[bool, dict[str, str]]:
        action = yaml.safe_load((self.actions / step["uses"] / "action.yml").read_text())
        inputs = {name: self.text(str(given.get("default", "")), scope) for name, given in action["inputs"].items()}
        given = {name: self.text(str(value), scope) for name, value in step.get("with", {}).items()}
        assert set(given) <= set(inputs), f"unknown inputs: {set(given) - set(inputs)}"
        inside = {**self.context, "inputs": inputs | given, "steps": {}}
        passed = self._run(action["runs"]["steps"], inside)
        return passed, {name: self.text(given["value"], inside) for name, given in action["outputs"].items()}

    def _script(self, step: dict[str, Any], scope: dict[str, Any]) -> tuple[bool, dict[str, str]]:
        """One script, as `shell: bash` runs it."""
        assert "${{" not in step["run"], f"{step.get('name')}: an expression in a script would be run"
        script, out, summary = (self.temp / name for name in ("step.sh", "step.out", "step.md"))
        script.write_text(step["run"])
        out.write_text("")
        summary.write_text("")
        env = {name: self.text(str(value), scope) for name, value in step.get("env", {}).items()}
        # The kernel takes no longer variable.
        assert all(len(value.encode()) < 128 * 1024 for value in env.values())
        own = {"GITHUB_OUTPUT": str(out), "GITHUB_STEP_SUMMARY": str(summary), "RUNNER_TEMP": str(self.temp)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.checkout, env=self.variables | env | own, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        self.steps.append(Step(step.get("name", ""), done.returncode, done.stdout + done.stderr))
        self.summary += summary.read_text()
        return done.returncode == 0, _outputs(out.read_text())

    # ------------------------------------------------ expressions

    def text(self, value: str, scope: dict[str, Any]) -> str:
        """A value with its expressions filled in."""
        return re.sub(r"\$\{\{(.*?)\}\}", lambda match: str(_value(match[1].strip(), scope)), value, flags=re.DOTALL)

    def truth(self, condition: str, scope: dict[str, Any]) -> bool:
        """Whether an `if:` holds."""
        bare = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", condition.strip(), flags=re.DOTALL)
        words = _WORDS.findall(bare)
        assert "".join(words) == bare, f"not understood: {bare}"
        python = {"&&": " and ", "||": " or ", "!cancelled()": "True"}
        said = (repr(str(_value(word, scope))) if _NAME.fullmatch(word) else python.get(word, word) for word in words)
        return bool(eval(" ".join("".join(said).split()), {"__builtins__": {}}))


def _value(name: str, scope: dict[str, Any]) -> Any:
    """A name's value; what is not there is empty, as on GitHub."""
    assert _NAME.fullmatch(name), f"not understood: {name}"
    found: Any = scope
    for part in name.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return found


def _outputs(text: str) -> dict[str, str]:
    """`name=value`, and `name<<MARK` … `MARK`."""
    found: dict[str, str] = {}
    lines = iter(text.split("\n"))
    for line in lines:
        if (match := re.match(r"^([\w-]+)<<(.+)$", line)) is not None:
            value = []
            for inner in lines:
                if inner == match[2]:
                    break
                value.append(inner)
            else:
                raise AssertionError(f"{match[1]} has no end")
            found[match[1]] = "\n".join(value)
        elif line:
            name, equals, value_of = line.partition("=")
            assert equals, f"not an output: {line!r}"
            found[name] = value_of
    return found
