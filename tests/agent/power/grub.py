"""Which slot boots, by docs/reference/boot.md, "The variables" and "How a slot is chosen". Written from the page, and from nothing
else: not from the agent's code, which is what it judges."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = b"# GRUB Environment Block\n"
SLOTS = ("a", "b")


@dataclass(frozen=True)
class Choice:
    """What GRUB makes of the two files. `trial` is armed; `spent` names the slot of a try that is over."""

    default: str
    trial: str | None
    spent: str | None
    environment_default: str | None
    """What `grubenv` itself says; None: it is torn or missing."""
    backup_default: str | None


def variables(data: bytes | None) -> dict[str, str]:
    """The lines `name=value` of a block; none of one that is torn in its first line, or missing."""
    if data is None or not data.startswith(HEAD) or len(data) <= len(HEAD):
        return {}
    found = {}
    for line in data[len(HEAD) :].split(b"\n")[:-1]:
        name, mark, value = line.partition(b"=")
        if mark and not line.startswith(b"#"):
            found[name.decode("latin-1")] = value.decode("latin-1")
    return found


def choose(grubenv: bytes | None, backup: bytes | None) -> Choice:
    """The rule."""
    said, copy = variables(grubenv), variables(backup)
    here, there = _slot(said.get("edge_default")), _slot(copy.get("edge_default"))
    if here is None:
        # Torn or missing: nothing in it counts.
        return Choice(there or "a", None, None, None, there)
    tried = _slot(said.get("edge_trial"))
    is_armed = tried is not None and said.get("edge_tries") == "1"
    return Choice(here, tried if is_armed else None, tried if not is_armed else None, here, there)


def _slot(text: str | None) -> str | None:
    return text if text in SLOTS else None


def spent(grubenv: bytes) -> bytes:
    """`grubenv` as GRUB writes it before it starts a trial."""
    return grubenv.replace(b"\nedge_tries=1\n", b"\nedge_tries=0\n")
