"""The newest versions that apt sources offer for a release's pins, asked of apt itself.

Decides which version each pin is brought to: apt's own candidate, never a lower one unless that is said. apt runs on a state of
its own in a scratch folder: no root, nothing of the machine's sources, lists, keys or preferences is read or changed (proxies and
credentials for mirrors are the machine's, as in a build: `debs.acquire`), and a source
whose index is not signed by the key that it names is refused by apt. Which sources those are is the recipe's to say
(`image.recipe`).
Called by `image bump --refresh`. Source: apt-get(8), apt.conf(5), apt-cache(8) `policy`, dpkg(1) `--compare-versions`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.image.debs import acquire, lasting
from reconciler.image.process import PATH
from reconciler.ports import TerminalError, TransientError

NEEDED_FOR = "the newest versions of the pinned packages"
TIMEOUT_S = 600.0
# Debian Policy 5.6.7. A name never looks like an option, and apt finds it by its own name or not at all.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# Our own file is read first, and tells apt to read no other: no hook, no preference, no key of the machine.
_CONFIG = """\
Dir "{top}";
Dir::Etc "{top}/etc";
Dir::Etc::main "apt.conf";
Dir::Etc::parts "none";
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "sources.d";
Dir::Etc::trusted "trusted.gpg";
Dir::Etc::trustedparts "none";
Dir::Etc::preferences "preferences";
Dir::Etc::preferencesparts "none";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{top}/state";
Dir::State::status "{top}/status";
Dir::Cache "{top}/cache";
Dir::Log "{top}/log";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
"""
_FOLDERS = ("etc/none", "etc/sources.d", "state/lists/partial", "cache/archives/partial", "log")
_TRUSTED = re.compile(
    r"^deb\s+\[[^\]]*\b(?:trusted|allow-insecure)=yes|^(?:Trusted|Allow-Insecure):\s*yes", re.M | re.I
)
_CREDENTIAL = re.compile(r"(\w+://)[^@/\s]*@")
_HEAD = re.compile(r"(\S+):")
_VERSION = re.compile(r" (?:\*\*\*|   ) (\S+) -?\d+")


@dataclass(frozen=True, slots=True)
class Versions:
    """What sources offer of one package: the version that apt would install, and all versions."""

    candidate: str
    every: tuple[str, ...]


def newest(
    pins: Mapping[str, str], sources: Sequence[str], architecture: str = "amd64", *, downgrade: bool = False
) -> dict[str, str]:
    """Each pin's package with the newest version that the sources offer; a pin that is the newest stays as it is.

    `sources` are texts in the formats of sources.list(5), one-line or deb822. Every pin that cannot be had is named in one
    TerminalError: no source offers its package, or (without `downgrade`) only lower versions than the pin.
    TransientError: a mirror did not answer.
    """
    if not pins:
        return {}
    offers = offered(tuple(pins), sources, architecture)
    found, wrong = {}, []
    for name, pin in pins.items():
        offer = offers.get(name)
        if offer is None:
            wrong.append(f"{name} ({pin} is pinned) is offered by none")
        elif downgrade or not _lower(offer.candidate, pin):
            found[name] = offer.candidate
        elif pin in offer.every:
            found[name] = pin  # offered still, though apt would not choose it by itself
        else:
            wrong.append(f"{name}: {pin} is pinned and gone, and the newest, {offer.candidate}, is lower")
    if wrong:
        lower = any("is lower" in line for line in wrong)
        raise TerminalError(
            f"of the apt sources ({_places(sources)}): {'; '.join(wrong)}",
            needed_for=NEEDED_FOR,
            remedy="correct the pins or the recipe's sources"
            + (", or take lower versions with --downgrade" if lower else ""),
        )
    return found


def offered(names: Sequence[str], sources: Sequence[str], architecture: str = "amd64") -> dict[str, Versions]:
    """Package → what the sources offer; packages that none offers are left out. Errors as `newest`, for the sources alone."""
    odd = sorted(name for name in names if not _PACKAGE.fullmatch(name))
    if odd:
        raise TerminalError(
            f"{odd[0]!r} is no name of a package", needed_for=NEEDED_FOR, remedy="correct it in Image.spec.packages"
        )
    if any(_TRUSTED.search(text) for text in sources):
        raise TerminalError(
            "a source says that apt shall take what nobody signed (trusted=yes or allow-insecure=yes)",
            needed_for=NEEDED_FOR,
            remedy=f"have the mirror signed, and name its key; the sources are {_places(sources)}",
        )
    with tempfile.TemporaryDirectory(prefix="reconciler-apt-") as folder:
        top = Path(folder)
        for below in _FOLDERS:
            (top / below).mkdir(parents=True)
        (top / "status").touch()
        config = top / "etc/apt.conf"
        own = _CONFIG.format(top=top, architecture=architecture)
        config.write_text("\n".join([*acquire(), own]), encoding="utf-8")
        for number, text in enumerate(sources):
            kind = "sources" if re.search(r"^\s*Types\s*:", text, re.MULTILINE | re.IGNORECASE) else "list"
            (top / f"etc/sources.d/{number}.{kind}").write_text(text + "\n", encoding="utf-8")
        done = _run(["apt-get", "-q", "update"], config)
        if done.returncode != 0:
            raise _refused(done.stderr, sources)
        return _policy(_run(["apt-cache", "policy", "--", *names], config).stdout, names)


def _policy(text: str, names: Sequence[str]) -> dict[str, Versions]:
    """What `apt-cache policy` says. A pattern that it made of a name, or a package that nothing provides, is no offer."""
    found: dict[str, Versions] = {}
    name, candidate, versions = "", "", list[str]()
    for line in [*text.splitlines(), "end:"]:
        head, version = _HEAD.match(line), _VERSION.match(line)
        if head is not None:
            if name in names and candidate not in ("", "(none)"):
                found[name] = Versions(candidate, tuple(versions))
            name, candidate, versions = head[1], "", []
        elif line.startswith("  Candidate: "):
            candidate = line.removeprefix("  Candidate: ").strip()
        elif version is not None:
            versions.append(version[1])
    return found


def _lower(one: str, other: str) -> bool:
    """Whether a version is lower than another, epochs and suffixes as dpkg orders them."""
    done = _run(["dpkg", "--compare-versions", one, "lt", other], None)
    if done.returncode not in (0, 1) or done.stderr:
        raise TerminalError(
            f"dpkg cannot compare {one!r} with the pin {other!r}: {_said(done.stderr) or done.returncode}",
            needed_for=NEEDED_FOR,
            remedy="correct the pin in Image.spec.packages",
        )
    return done.returncode == 0


def _run(argv: list[str], config: Path | None) -> subprocess.CompletedProcess[str]:
    """Run a program of apt or dpkg: English, no prompt, and nothing of the environment."""
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        raise TerminalError(
            f"the program {argv[0]} was not found", needed_for=NEEDED_FOR, remedy="run this on Debian or Ubuntu"
        )
    env = {"PATH": PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    if config is not None:
        env |= {"APT_CONFIG": str(config), "TMPDIR": str(config.parent.parent)}
    try:
        return subprocess.run(
            [program, *argv[1:]], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S, check=False, env=env,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TransientError(
            f"{argv[0]} gave no answer in {TIMEOUT_S:.0f} s",
            needed_for=NEEDED_FOR,
            remedy="try again, or another mirror",
        ) from None


def _refused(errors: str, sources: Sequence[str]) -> TerminalError | TransientError:
    """Why `apt-get update` failed, in apt's words, and whether it may pass."""
    said, where = _said(errors) or "it did not say why", _places(sources)
    if not lasting(said):
        return TransientError(
            f"a mirror did not answer: {said}",
            needed_for=NEEDED_FOR,
            remedy=f"try again later; the sources are {where}",
        )
    return TerminalError(
        f"apt refused a source: {said}",
        needed_for=NEEDED_FOR,
        remedy=f"correct the recipe's sources and keys, the snapshot, or the mirror; the sources are {where}",
    )


def _said(errors: str) -> str:
    """apt's warnings and errors in a line, without those that only say that there were some."""
    lines = [line.strip() for line in errors.splitlines() if re.match(r"(?:E|W|dpkg): ", line)]
    telling = [line for line in lines if "Some index files failed" not in line and "Updating from such" not in line]
    return _CREDENTIAL.sub(r"\1", "; ".join(dict.fromkeys(line[:400] for line in telling[:3])))


def _places(sources: Sequence[str]) -> str:
    """The sources' addresses with their suites, for a message; credentials left out."""
    found = []
    for text in sources:
        fields: dict[str, str] = {}
        for line in [*text.splitlines(), ""]:
            one = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(.*)", line)
            key = re.match(r"(URIs|Suites):\s*(.*)", line, re.IGNORECASE)
            if one is not None:
                found.append(f"{one[1]} {one[2].strip()}")
            elif key is not None:
                fields[key[1].lower()] = key[2].strip()
            elif not line.strip() and fields:
                found.append(" ".join(fields.values()))
                fields = {}
    return _CREDENTIAL.sub(r"\1", ", ".join(dict.fromkeys(found))) or "none"
