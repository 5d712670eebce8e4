"""The agent's settings: a JSON file, and what the command line says instead.

Python 3.10, standard library only: runs as root on a device. Reads and checks; starts nothing. The token is read from
its own file and appears nowhere else.

    {"device": "SITE-2847-1", "site": "SITE-2847", "server": "https://reconciler.example/", "tokenFile":
    "/var/lib/edge-agent/token", "hardware": "partitions", "caFile": null, "timing": {"settle_s": 120}}

`hardware` is `partitions` on a device that boots from one of two slots, and `directory` for a device as a folder, `root`,
whose slots have `slotBytes`. With a `root` and no `hardware` it is `directory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reconciler.agent.agent import Identity
from reconciler.agent.timing import Timing
from reconciler.agent.transport import Server
from reconciler.protocol.canonical import Malformed, is_name, load

DEFAULT_FILES = (Path("/etc/edge/agent.json"), Path("/var/lib/edge-agent/agent.json"))
"""Where settings are looked for; the first that is there. A device that was enrolled has the second."""
MAX_SETTINGS_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 4096
DIRECTORY, PARTITIONS = "directory", "partitions"
HARDWARE = (DIRECTORY, PARTITIONS)
STATE = Path("/var/lib/edge-agent")
"""The agent's own folder on a device with partitions: it outlives the slots."""
DEFAULT_SLOT_BYTES = 4 * 1024**3
LONGEST_S = 366 * 86400
_KEYS = ("device", "site", "server", "tokenFile", "hardware", "root", "caFile", "slotBytes", "timing", "allowFileUrls")
_FILE = "settings file"


class SettingsError(Exception):
    """A setting is missing or wrong: names the key, the value and the remedy."""


@dataclass(frozen=True)
class Settings:
    """What an agent needs to start."""

    identity: Identity
    server: Server
    hardware: str
    """`directory` or `partitions`."""
    root: Path
    """The device as a folder; with partitions, the agent's own folder. The lock is in it."""
    slot_bytes: int
    """Room in a slot of a device as a folder. A partition has its own size."""
    timing: Timing


def read_settings(file: Path | None, given: Mapping[str, str | None]) -> Settings:
    """Settings from `file` (None: the default one, if it is there), with `given` values in place of the file's.

    Raises SettingsError.
    """
    values = _from_file(file)
    values.update({key: value for key, value in given.items() if value is not None})
    for key in ("device", "site"):
        if not is_name(values.get(key)):
            raise SettingsError(f"{key} is {values.get(key)!r}, not a name; give --{key}, or {key!r} in the {_FILE}")
    hardware, root = _machine(values)
    slot_bytes = values.get("slotBytes", DEFAULT_SLOT_BYTES)
    if not isinstance(slot_bytes, int) or isinstance(slot_bytes, bool) or slot_bytes <= 0:
        raise SettingsError(f"slotBytes is {slot_bytes!r}, not a number of bytes")
    identity = Identity(str(values["device"]), str(values["site"]))
    return Settings(identity, _server(values), hardware, root, slot_bytes, _timing(values))


def _machine(values: Mapping[str, Any]) -> tuple[str, Path]:
    """Which hardware, and the folder that it works in."""
    root = values.get("root")
    if root is not None and (not isinstance(root, str) or not root):
        raise SettingsError(f"root is {root!r}, not a folder; give --root DIR, or 'root' in the {_FILE}")
    hardware = values.get("hardware")
    if hardware is None and root is not None:
        hardware = DIRECTORY
    if hardware == DIRECTORY:
        if root is None:
            raise SettingsError(
                f"hardware is {DIRECTORY!r} and there is no root; give --root DIR, or 'root' in the {_FILE}"
            )
        return DIRECTORY, Path(root)
    if hardware == PARTITIONS:
        for key in ("root", "slotBytes"):
            if values.get(key) is not None:
                raise SettingsError(
                    f"{key} is for hardware {DIRECTORY!r} alone, and hardware is {PARTITIONS!r}: its slots are partitions, its"
                    f" folder is {STATE}; leave {key} out, or set hardware to {DIRECTORY!r}"
                )
        return PARTITIONS, STATE
    if hardware is None:
        raise SettingsError(
            f"neither root nor hardware is set; set 'hardware' to {PARTITIONS!r} in the {_FILE} of a device that was installed"
            " from an install disk, or give --root DIR for a device as a folder"
        )
    raise SettingsError(f"hardware is {hardware!r}; it is one of {', '.join(HARDWARE)}")


def _from_file(file: Path | None) -> dict[str, Any]:
    path = file or next(filter(_is_there, DEFAULT_FILES), DEFAULT_FILES[0])
    try:
        with open(path, "rb") as opened:
            values = load(opened.read(MAX_SETTINGS_BYTES + 1), MAX_SETTINGS_BYTES, str(path))
    except FileNotFoundError:
        if file is None:
            return {}
        raise SettingsError(f"{path} does not exist; give the path of a {_FILE} with --config") from None
    except OSError as error:
        remedy = "; run this as root" if isinstance(error, PermissionError) else ""
        raise SettingsError(f"{path} cannot be read: {error.strerror}{remedy}") from None
    except Malformed as error:
        raise SettingsError(error.reason) from None
    for key in values:
        if key not in _KEYS:
            raise SettingsError(f"{path}: unknown key {key!r}; known are {', '.join(_KEYS)}")
    return values


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        # It may be; opening it says what is the matter.
        return True


def _server(values: Mapping[str, Any]) -> Server:
    for key, option in (("server", "--server"), ("tokenFile", "--token-file")):
        if not isinstance(values.get(key), str) or not values[key]:
            raise SettingsError(f"{key} is {values.get(key)!r}; give {option}, or {key!r} in the {_FILE}")
    path = Path(values["tokenFile"])
    try:
        with open(path, "rb") as opened:
            token = opened.read(MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"the token file {path} cannot be read: {error.strerror}") from None
    ca_file, files = values.get("caFile"), values.get("allowFileUrls", False)
    if ca_file is not None and not isinstance(ca_file, str):
        raise SettingsError(f"caFile is {ca_file!r}, not a path")
    if not isinstance(files, bool):
        raise SettingsError(f"allowFileUrls is {files!r}, not true or false")
    try:
        text = token[:MAX_TOKEN_BYTES].decode("ascii", "replace").strip()
        return Server(values["server"], text, Path(ca_file) if ca_file else None, allow_file_urls=files)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _timing(values: Mapping[str, Any]) -> Timing:
    given = values.get("timing", {})
    known = {item.name for item in fields(Timing)}
    if not isinstance(given, dict):
        raise SettingsError(f"timing is {given!r}, not an object")
    for key, value in given.items():
        if key not in known:
            raise SettingsError(f"timing: unknown key {key!r}; known are {', '.join(sorted(known))}")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= LONGEST_S:
            raise SettingsError(f"timing: {key} is {value!r}, not a number of seconds (at most {LONGEST_S}, a year)")
    return Timing(**given)
