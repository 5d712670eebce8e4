"""Imports point one way (docs/explanation/architecture.md). The table is the whole rule; a part that is not in it fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, parsed, python

# Part → parts that it may import. What stands below knows nothing of what stands above it.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "__init__": frozenset(),
    "model": frozenset(),
    "ports": frozenset({"model", "ports_events"}),
    "ports_events": frozenset({"model"}),
    "planner": frozenset({"model"}),
    "repo": frozenset({"model"}),
    "protocol": frozenset(),
    "agent": frozenset({"protocol"}),
    # The signer's recheck loads the commit itself (`repo.load`), so that it trusts nothing that the loop says.
    "image": frozenset({"model", "ports", "protocol", "repo"}),
    "adapters": frozenset({"model", "ports", "ports_events", "protocol"}),
    "controller": frozenset({"model", "repo", "planner", "ports", "ports_events", "protocol"}),
    "server": frozenset({"model", "repo", "ports", "ports_events", "protocol", "controller"}),
    "simulate": frozenset({"model", "repo", "planner", "ports", "ports_events", "protocol", "agent", "controller"}),
    # What a merge will do: two desired states and a snapshot, told by the planner and the forecast.
    "review": frozenset({"model", "repo", "planner", "ports", "protocol", "simulate"}),
    # Changes to a fleet repo as a person would write them: edits that keep comments, a branch, a pull request.
    "propose": frozenset({"model", "repo", "ports"}),
    "demo": frozenset({"model", "repo", "planner", "ports", "protocol", "agent", "controller", "simulate"}),
    "cli": frozenset(
        {"__init__", "model", "repo", "planner", "ports", "protocol", "controller", "server", "simulate"}
        | {"review", "propose", "demo"}
    ),
}
# Single modules that may import more than their part. Each says why.
BESIDES: dict[str, tuple[frozenset[str], str]] = {
    "reconciler/controller/bootstrap.py": (frozenset({"adapters", "image"}), "the one place that names adapters"),
    "reconciler/controller/signing_keys.py": (frozenset({"adapters"}), "gpg tells when the signing keys expire"),
    "reconciler/controller/notify_senders.py": (frozenset({"adapters"}), "how targets of notifications are told"),
    "reconciler/adapters/gpg_signer.py": (
        frozenset({"image"}),
        "the signer rechecks an image before it signs: the check is the image's, the key the adapter's",
    ),
    "reconciler/cli/explain_places.py": (
        frozenset({"adapters"}),
        "asks git who wrote the lines of a folder, without the loop's parts",
    ),
    "reconciler/cli/diff.py": (
        frozenset({"adapters"}),
        "the repository that the fleet folder is in, and gpg for keyrings",
    ),
    "reconciler/cli/run.py": (
        frozenset({"adapters"}),
        "what the daemon needs and the loop does not: devices' registry tokens, and the service manager",
    ),
    "reconciler/cli/token.py": (frozenset({"adapters"}), "writes the operators' file durably, as the store would"),
    "reconciler/cli/proposal.py": (frozenset({"adapters"}), "the user's clone, its work tree, and the forge"),
    "reconciler/cli/image_changed.py": (frozenset({"adapters"}), "reads commits with git alone: no loop, no settings"),
    "reconciler/cli/image_bump.py": (frozenset({"image"}), "asks for the newest versions over the recipe's sources"),
    "reconciler/cli/image_build.py": (frozenset({"adapters"}), "the commit that the fleet folder is at, from git"),
    "reconciler/cli/image_check.py": (frozenset({"image"}), "runs the sysprep gate: no loop, no settings, no adapter"),
    "reconciler/cli/image_prune.py": (frozenset({"image"}), "the rules of what may be pruned"),
    "reconciler/cli/image_store.py": (frozenset({"image"}), "gathers what these rules judge"),
    "reconciler/cli/promote.py": (frozenset({"adapters"}), "names the clone's type: a rollback reads its history"),
    "reconciler/cli/publish_review.py": (
        frozenset({"adapters"}),
        "an entry point of a workflow: it has the forge alone",
    ),
    "reconciler/cli/snapshot.py": (frozenset({"adapters"}), "writes its file durably, as the store would"),
    "reconciler/cli/simulate.py": (frozenset({"adapters"}), "writes its recording durably, as the store would"),
    "reconciler/cli/image_sign.py": (
        frozenset({"adapters", "image"}),
        "a person signs: their gpg, a mirror of the repo, and the signer's own checks",
    ),
    "reconciler/cli/builder.py": (frozenset({"adapters"}), "an entry point: the builder's own process"),
    "reconciler/cli/site.py": (
        frozenset({"adapters", "image"}),
        "for a first installation: reads a folder of secrets, writes a seed medium",
    ),
    "reconciler/cli/device.py": (frozenset({"image"}), "what an enrolment says is what install disks carry"),
    "reconciler/cli/image_disk.py": (frozenset({"image"}), "makes install disks: no loop, no settings, no adapter"),
    # The demo sets up a fleet as its operator would: tokens into the store, apps into the registry.
    "reconciler/demo/stage.py": (frozenset({"adapters", "server"}), "enrols devices, looks into the stores"),
    "reconciler/demo/ground.py": (frozenset({"adapters", "server"}), "makes tokens, pushes the app's releases"),
    "reconciler/demo/director.py": (frozenset({"adapters"}), "the other end of the stepped clock's socket"),
}
ENTRY_POINTS = ("reconciler/cli/",)
PURE = ("model", "planner", "repo")
# What would make a pure part impure: clocks, files, networks, processes, logs.
IMPURE = frozenset(
    {"socket", "subprocess", "threading", "asyncio", "http", "urllib", "requests", "httpx", "boto3", "botocore", "git",
     "sqlalchemy", "fastapi", "structlog", "logging", "random", "time", "tempfile", "shutil"}
)  # fmt: skip
HEAVY = (
    "boto3",
    "botocore",
    "sqlalchemy",
    "git",
    "fastapi",
    "uvicorn",
    "rich",
    "structlog",
    "httpx",
    "alembic",
    "gnupg",
)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute name that a module imports, wherever in it, with its line."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part_of(path: Path) -> str:
    """The part of the program that a module belongs to."""
    return path.parts[1] if len(path.parts) > 2 else path.stem


def against_the_layers(path: Path) -> Iterator[str]:
    """A module's imports that its part may not have."""
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is a new part: give it a line in MAY_IMPORT, and in the architecture page"
    more, _why = BESIDES.get(str(path), (frozenset(), ""))
    allowed = MAY_IMPORT[part] | more | {part}
    for name, line in imported(path):
        names = name.split(".")
        if names[0] == "reconciler" and name != "reconciler.__version__" and names[1] not in allowed:
            yield f"{path}:{line}: {part} may not import {name}"


def test_imports_point_one_way() -> None:
    wrong = [text for path in python() for text in against_the_layers(path)]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_allowed_that_is_not_used() -> None:
    for name, (parts, _why) in BESIDES.items():
        path = Path(name)
        if (ROOT / path).exists():
            used = {found.split(".")[1] for found, _ in imported(path) if found.startswith("reconciler.")}
            assert parts & used, f"{name} does not use what BESIDES allows it; remove its line"


def test_only_entry_points_import_bootstrap() -> None:
    wrong = [
        f"{path}:{line}"
        for path in python()
        if not str(path).startswith(ENTRY_POINTS)
        for name, line in imported(path)
        if name.startswith("reconciler.controller.bootstrap")
    ]
    assert not wrong, f"only entry points import bootstrap: {wrong}"


def test_what_runs_on_a_device_is_standard_library_alone() -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path in python()
        if part_of(path) in ("agent", "protocol")
        for name, line in imported(path)
        if name.split(".")[0] not in sys.stdlib_module_names | {"reconciler"}
    ]
    assert not wrong, f"runs as root on a device, standard library only: {wrong}"


def test_pure_parts_import_nothing_that_acts() -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for path in python()
        if part_of(path) in PURE
        for name, line in imported(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not wrong, f"model, repo and planner are pure: {wrong}"


def test_commands_of_the_inner_loop_load_nothing_heavy() -> None:
    """`validate`, `plan` and `explain` must start fast: what they need is yaml, numpy and pydantic."""
    code = (
        "import sys, importlib\n"
        "for name in ('main', 'validate', 'plan', 'explain', 'test'): importlib.import_module(f'reconciler.cli.{name}')\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == []
