"""One file's bytes → one parsed document with its problems, each with line and column. Pure; called once a blob.

Decides whether a document is valid by itself: readable YAML, a known header, the kind that its folder holds, a spec that its
model accepts, and `check_document`. Whether it fits the other documents is `repo.check`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from reconciler.model.desired import API_VERSION
from reconciler.repo.check_document import check_document
from reconciler.repo.documents import KINDS, AnyDocument, home_of, model_of, place_of
from reconciler.repo.finding import Finding, one_line, placed
from reconciler.repo.near import did_you_mean
from reconciler.repo.problem import Problem
from reconciler.repo.reader import Data, Refused, read
from reconciler.repo.wording import complaint, show

MOST = 500
"""Problems shown of one file."""

_NAMED_LIKE_THEIR_FILE = ("Image", "App", "Site")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file of the fleet repo. `spec` is None where anything is wrong; `name` is kept even then, the file's if no other
    can be told: who refers to it is not blamed for it.

    `data` is what was read, kept only where `spec` is None: checks of other documents still go by its names.
    """

    path: str
    blob: str
    kind: str
    name: str
    spec: Any
    problems: tuple[Problem, ...] = ()
    data: Data = None


def parse(path: str, blob: str, data: bytes) -> Parsed:
    """The document in `data`, for a path that `place_of` gives a kind. Never raises, whatever the bytes are."""
    place = place_of(path)
    kind = place.kind
    assert kind is not None, f"{path} is no place of a document"
    try:
        tree = read(data)
    except Refused as refused:
        problems = tuple(Problem(path, f.line, f.column, one_line(f.message), "error", f.code) for f in refused.faults)
        return Parsed(path, blob, kind, place.stem, None, problems)
    findings: list[Finding] = []
    document = _validate(tree, kind, findings)
    if document is not None:
        findings += check_document(document.spec)
    name = _name_of(tree)
    if name is not None and name != place.stem and kind in _NAMED_LIKE_THEIR_FILE:
        findings.append(_misnamed(name, place.stem))
    if not findings and document is not None:
        return Parsed(path, blob, kind, name or place.stem, document.spec)
    problems = tuple(sorted(placed(path, data, findings)))
    good = document is not None and not any(problem.severity == "error" for problem in problems)
    spec = document.spec if good and document is not None else None
    return Parsed(path, blob, kind, name or place.stem, spec, problems, None if good else tree)


def _validate(tree: Data, kind: str, findings: list[Finding]) -> Any:
    """The whole-file model over the data, or None with findings."""
    if not isinstance(tree, dict):
        what = show(tree) if tree is not None else "nothing"
        message = f"{what} where a document is expected; begin with apiVersion: {API_VERSION}, kind: {kind}"
        findings.append(Finding((), message, "no-document"))
        return None
    model: type[BaseModel] = model_of(kind)
    wrong_kind = _kind(tree, kind)
    if wrong_kind is not None:
        findings.append(wrong_kind)
        said = tree.get("kind")
        model = model_of(said) if isinstance(said, str) and said in KINDS else AnyDocument
    try:
        document = model.model_validate(tree, by_alias=True, by_name=False)
    except ValidationError as error:
        details = [d for d in error.errors(include_url=False) if not _follows(d, wrong_kind is not None)]
        findings += [_finding(detail, model, tree) for detail in details[:MOST]]
        if len(details) > MOST:
            message = f"{len(details)} problems in this file; the first {MOST} are shown, correct these first"
            findings.append(Finding((), message, "many"))
        return None
    except RecursionError:  # bounded by the reader's depth; kept so that no file can stop a load
        findings.append(Finding((), "nested too deep to check; flatten it", "depth"))
        return None
    return document if wrong_kind is None else None


def _follows(detail: Any, wrong_kind: bool) -> bool:
    """An error that only follows from another: the kind is told already, or a list is "short" since its items are bad."""
    if detail["type"] == "too_short" and hasattr(detail["input"], "__len__"):
        return bool(len(detail["input"]) >= detail["ctx"]["min_length"])
    return wrong_kind and bool(detail["loc"] == ("kind",))


def _finding(detail: Any, model: type[BaseModel], tree: dict[str, Data]) -> Finding:
    if detail["loc"] == ("apiVersion",) and detail["type"] != "missing":
        said = show(tree.get("apiVersion"))
        return Finding(("apiVersion",), f"apiVersion: {said} is not known here; write {API_VERSION}", "version")
    told = complaint(detail, model)
    return Finding(told.where, told.message, told.code, "error", told.at_key)


def _kind(tree: dict[str, Data], kind: str) -> Finding | None:
    """A document of another kind than its place is for."""
    if "kind" not in tree:
        return None
    said = tree["kind"]
    if said == kind:
        return None
    if isinstance(said, str) and said in KINDS:
        message = (
            f"kind: {said} in a place for {kind} documents; move the file to {home_of(said)}, or write kind: {kind}"
        )
    else:
        near = did_you_mean(said, KINDS) if isinstance(said, str) else ""
        message = f"kind: {show(said)} is no kind of document; this place is for kind: {kind}{near}"
    return Finding(("kind",), message, "kind")


def _name_of(tree: Data) -> str | None:
    metadata = tree.get("metadata") if isinstance(tree, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) and name else None


def _misnamed(name: str, stem: str) -> Finding:
    """People look for a document by its file's name."""
    message = (
        f"metadata.name is {name!r} and the file is named {stem!r}; the name in the document counts, give both the same"
    )
    return Finding(("metadata", "name"), message, "file-name", "warning")
