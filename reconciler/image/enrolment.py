"""The enrolment of one device: the agent's settings, its token, and the authority of the server's certificate.

Decides what those files say, at which paths they lie on the device, and whether a folder's fit each other and a seed. Makes
no token and asks no store: `reconciler device enrol` does. Called by it, by `image.disk_data` (the data partition of an
install disk) and by `image.seed_medium`. Source: docs/how-to/enrol-a-device.md.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from reconciler.model.scalars import NAME_PATTERN
from reconciler.ports import TerminalError

SETTINGS, TOKEN, AUTHORITY = "agent.json", "token", "ca.pem"
FOLDER = "/var/lib/edge-agent"
"""Where the device sees them; /data/edge on its data partition."""
MAX_BYTES = 64 * 1024

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TOKEN = re.compile(rb"[!-~]{16,4096}\n?")
_PURPOSE = "enrolling a device"
_AGAIN = "write the folder again with `reconciler device enrol DEVICE --server URL --out DIR`"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The files of an enrolment, name → bytes, and for whom they are. The token is among them: never show `files`."""

    device: str
    site: str
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"Enrolment({self.device!r}, {self.site!r}, {sorted(self.files)})"


def settings_text(device: str, site: str, server: str, *, authority: bool) -> bytes:
    """agent.json of a device with the golden image. `authority`: a ca.pem goes with it.

    TerminalError: `server` is no address that an agent would report to.
    """
    check_server(server)
    told: dict[str, str] = {
        "device": device,
        "site": site,
        "server": server,
        "tokenFile": f"{FOLDER}/{TOKEN}",
        "hardware": "partitions",
    }
    if authority:
        told["caFile"] = f"{FOLDER}/{AUTHORITY}"
    return (json.dumps(told, indent=2) + "\n").encode()


def check_server(server: str) -> None:
    """TerminalError: no agent would report there."""
    try:
        parts = urlsplit(server)
        host, scheme, _port = parts.hostname, parts.scheme, parts.port
    except ValueError:
        host, scheme = None, ""
    if scheme not in ("http", "https") or not host or parts.username is not None:
        raise _wrong(f"{server!r} is no address of a server", "write it as https://reconciler.example")
    if scheme == "http" and host not in _LOOPBACK:
        raise _wrong(f"{server!r} would carry the device's token in clear text", "serve it by TLS, and write https://")


def check_authority(path: Path) -> bytes:
    """The bytes of a file of certificates. TerminalError: it holds none, or a private key beside them."""
    data = _read(path)
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise _wrong(f"{path} holds no certificate in PEM", "name the authority that signed the server's certificate")
    if b"PRIVATE KEY" in data:
        raise _wrong(f"{path} holds a private key", "name the file with the certificate alone")
    return data


def read_enrolment(folder: Path) -> Enrolment:
    """A folder as `reconciler device enrol` wrote it. TerminalError: something is missing, foreign, or open to others."""
    if not folder.is_dir():
        raise _wrong(f"{folder} is no folder", _AGAIN)
    names = sorted(path.name for path in folder.iterdir())
    missing = [name for name in (SETTINGS, TOKEN) if name not in names]
    if missing:
        raise _wrong(f"{folder} holds no {missing[0]}", _AGAIN)
    foreign = [name for name in names if name not in (SETTINGS, TOKEN, AUTHORITY)]
    if foreign:
        raise _wrong(f"{folder} holds {foreign[0]!r}, which no device needs", f"leave {SETTINGS}, {TOKEN}, {AUTHORITY}")
    files = {name: _read(folder / name) for name in names}
    if not _TOKEN.fullmatch(files[TOKEN]):
        raise _wrong(f"{folder / TOKEN} holds no token", _AGAIN)
    if stat.S_IMODE((folder / TOKEN).stat().st_mode) & 0o077:
        raise _wrong(
            f"{folder / TOKEN} can be read by others", f"chmod 600 {folder / TOKEN}; revoke it if somebody did"
        )
    device, site = _whose(folder / SETTINGS, files)
    return Enrolment(device, site, files)


def _whose(path: Path, files: Mapping[str, bytes]) -> tuple[str, str]:
    """Device and site of the settings, which must say what is true on a device."""
    try:
        told = json.loads(files[SETTINGS])
    except (ValueError, RecursionError):
        raise _wrong(f"{path} is no JSON", _AGAIN) from None
    if not isinstance(told, dict):
        raise _wrong(f"{path} is no JSON object", _AGAIN)
    for key in ("device", "site"):
        if not isinstance(told.get(key), str) or not re.fullmatch(NAME_PATTERN, told[key]):
            raise _wrong(f"{path}: {key} is {told.get(key)!r}, not a name", _AGAIN)
    wanted = {"tokenFile": f"{FOLDER}/{TOKEN}", "hardware": "partitions"}
    if AUTHORITY in files or told.get("caFile") is not None:
        wanted["caFile"] = f"{FOLDER}/{AUTHORITY}"
    for key, value in wanted.items():
        if told.get(key) != value:
            raise _wrong(f"{path}: {key} is {told.get(key)!r}, and on the device it is {value!r}", _AGAIN)
    if "caFile" in wanted and AUTHORITY not in files:
        raise _wrong(f"{path} names a caFile, and {AUTHORITY} is not beside it", _AGAIN)
    check_server(str(told.get("server")))
    return told["device"], told["site"]


def check_fit(enrolment: Enrolment, seed: Mapping[str, bytes]) -> None:
    """TerminalError: a seed is another device's, or another site's, than the enrolment."""
    import yaml

    try:
        meta, user = (yaml.safe_load(seed[name]) for name in ("meta-data", "user-data"))
        host = str(meta["local-hostname"])
        texts = [str(file["content"]) for file in user["write_files"] if file["path"] == "/etc/environment"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise _wrong("the seed names no device or no site", "render it with `reconciler site render`") from None
    if host != enrolment.device.lower().rstrip("-"):
        raise _wrong(
            f"the seed is for host {host}, and the enrolment for device {enrolment.device}",
            "render and enrol the same device",
        )
    sites = [
        line.removeprefix("SITE_ID=").strip('"') for text in texts for line in text.splitlines() if "SITE_ID=" in line
    ]
    if sites != [enrolment.site]:
        raise _wrong(
            f"the seed is for site {', '.join(sites) or '(none)'}, and the enrolment for {enrolment.site}",
            "render and enrol a device of the same site",
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _wrong(f"{path} cannot be read: {error.strerror}", "name a file that this user may read") from None
    if len(data) > MAX_BYTES:
        raise _wrong(f"{path} is larger than {MAX_BYTES >> 10} KiB", _AGAIN)
    return data


def _wrong(what: str, remedy: str) -> TerminalError:
    return TerminalError(what, needed_for=_PURPOSE, remedy=remedy)
