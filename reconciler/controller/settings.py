"""The controller's own settings, `reconciler.yaml`: what a fleet commit must never be able to change.

Decides their shape and their defaults; opens nothing but the one file. Read by the entry points, handed to `bootstrap`.
A settings file is read by the same strict YAML reader as the fleet repo, so every problem has file, line and column.
Relative paths are relative to the settings file. Secrets never stand here: only the places where they are kept.
Source: design §3, "What must not be changed by a fleet commit".
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from reconciler.controller.settings_forge import GithubForge
from reconciler.controller.settings_git import AllowedSettings, CommitSettings, GitSettings
from reconciler.controller.settings_notify import NotifyTarget
from reconciler.controller.settings_server import URL, ServerSettings, is_loopback
from reconciler.model.desired import Part
from reconciler.model.scalars import Duration, Fingerprint, Flag, Size
from reconciler.repo.problem import InvalidInput, Problem

P = TypeVar("P", bound=Part)


def _within(place: str, prefix: str) -> bool:
    return (place if place.endswith("/") else f"{place}/").startswith(prefix)


class DirectoryPlace(Part):
    """A folder on this machine."""

    type: Literal["directory"] = Field(description="A folder")
    path: Path = Field(description="The folder; made where it is absent, except a folder of secrets")


class S3Place(Part):
    """A bucket."""

    type: Literal["s3"] = Field(description="S3, or what speaks it")
    url: Annotated[str, Field(pattern=r"^s3://[^\s/]+(?:/[^\s]*)?$")] = Field(description="s3://bucket/prefix/")
    region: str | None = Field(default=None, description="Region; the machine's own unless said")
    endpoint: str | None = Field(default=None, description="Another endpoint than AWS's, as http://127.0.0.1:5000")

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What stands before every object's name, without slashes at the ends."""
        return self.url.removeprefix("s3://").partition("/")[2].strip("/")


class LayoutRegistry(Part):
    """OCI image layouts in a folder: no server."""

    type: Literal["layout"] = Field(description="OCI layouts in a folder")
    path: Path = Field(description="The folder; one layout a repository")


class OciRegistry(Part):
    """A registry that speaks the OCI distribution API."""

    type: Literal["oci"] = Field(description="An OCI registry")
    url: Annotated[str, Field(pattern=URL)] = Field(description="https://HOST[:PORT]; http on loopback only")
    pull_secret: Annotated[str, Field(pattern=r"^[A-Za-z0-9/_+=.@-]{1,512}$")] | None = Field(
        default=None,
        description="Reference (in `secrets`) of `USER:PASSWORD` that devices are given to pull apps with: of a user that may "
        "only pull. Devices have their own access, or need none, unless said",
    )

    @field_validator("url")
    @classmethod
    def _not_in_clear_text(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError(f"{value!r} would be read in clear text from another machine; write https://")
        return value


class EcrRegistry(Part):
    """Amazon ECR."""

    type: Literal["ecr"] = Field(description="Amazon ECR")
    region: str | None = Field(default=None, description="Region; the machine's own unless said")
    registry_id: Annotated[str, Field(pattern=r"^\d{12}$")] | None = Field(
        default=None, description="Account that owns the registry; one's own unless said"
    )
    pull_role: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/[A-Za-z0-9_+=,.@/-]{1,576}$")] | None = (
        Field(
            default=None,
            description="ARN of a role that may only pull. The controller assumes it, and gives devices that need an app a token "
            "of it that holds for an hour at most. Devices have their own access unless said",
        )
    )
    endpoint: str | None = Field(default=None, description="Another endpoint than AWS's")


class AwsSecrets(Part):
    """AWS Secrets Manager."""

    type: Literal["aws"] = Field(description="AWS Secrets Manager")
    region: str | None = Field(default=None, description="Region; the machine's own unless said")
    endpoint: str | None = Field(default=None, description="Another endpoint than AWS's")


class NoDoorbell(Part):
    """Devices call in by themselves."""

    type: Literal["none"] = Field(default="none", description="No doorbell")


class SsmDoorbell(Part):
    """SSM Run Command."""

    type: Literal["ssm"] = Field(description="SSM Run Command")
    document: str = Field(description="Name of the pinned SSM document")
    document_version: str = Field(description="Its version, pinned: a number")
    document_hash: str | None = Field(default=None, description="Its sha256, checked by SSM")
    region: str | None = Field(default=None, description="Region; the machine's own unless said")
    endpoint: str | None = Field(default=None, description="Another endpoint than AWS's")


class KeyPlace(Part):
    """A key in a GnuPG home of its own."""

    home: Path = Field(description="GNUPGHOME; a short path, since gpg's socket lives in it")
    fingerprint: Fingerprint = Field(description="Primary fingerprint of the key, 40 hexadecimal digits")
    passphrase_file: Path | None = Field(
        default=None,
        description="File with the key's passphrase, mode 0600; handed to gpg on a descriptor, never in argv",
    )


class KeySigner(KeyPlace):
    """The release key in this process: for one machine, and for the demo."""

    type: Literal["key"] = Field(description="A key in a GnuPG home")


class ProcessSigner(Part):
    """The release key in another process, which can run as another user."""

    type: Literal["process"] = Field(description="A command")
    command: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="The command and its arguments, as [sudo, -u, signer, reconciler, signer, --config, FILE]; no shell"
    )


class OfflineSigner(Part):
    """The release key with a person, on another machine or on a card: the loop waits for the signature."""

    type: Literal["offline"] = Field(description="A person, by `reconciler image sign`")
    fingerprint: Fingerprint | None = Field(
        default=None,
        description="Primary fingerprint of the key that is asked for in the command that is shown; the first of "
        "`keys.releases` unless said. Any of `keys.releases` is accepted",
    )


class KeySettings(Part):
    """Which keys sign what. Two keys, two homes: whoever runs the loop cannot sign a release by it."""

    assignment: KeyPlace = Field(description="Signs assignments; devices hold its public half")
    releases: Annotated[tuple[Fingerprint, ...], Field(min_length=1)] = Field(
        description="Primary fingerprints of the keys that may sign releases; a fleet's `releaseKeys` narrows them"
    )
    release_keyring: Path = Field(description="Binary export of those public keys")
    signer: Annotated[KeySigner | ProcessSigner | OfflineSigner, Field(discriminator="type")] | None = Field(
        default=None, description="Who signs releases; absent: as `offline`"
    )


class BuilderSettings(Part):
    """Where images are built. The builder holds no key and no credential."""

    type: Literal["distribution", "files"] = Field(
        default="distribution",
        description="What the recipe is put on: the distribution that it names (`distribution`), or nothing (`files`: no "
        "image that boots; for the demo, and to try a recipe's scripts)",
    )
    work: Path | None = Field(default=None, description="Folder for builds; STATE/builds unless said")
    cache: Path | None = Field(
        default=None, description="Folder for downloaded packages, kept between builds; WORK/cache unless said"
    )
    mirrors: Mapping[str, str] = Field(
        default_factory=dict,
        description="Package mirrors by the names that recipes use: an address, in which {snapshot} stands for the "
        "base's snapshot, or the path of an apt sources file. A distribution that the builder's own machine runs needs none",
    )
    command: tuple[str, ...] = Field(
        default=(),
        description="Build in another process, as another user: the command that runs `reconciler builder`, as "
        "[sudo, -u, edge-builder, reconciler, builder]. Without it, in this process",
    )
    slot_size: Size = Field(
        default=8 << 30,
        description="Size of a device's slots, as its install disk has it (`image disk --slot-size`): a build whose image does "
        "not fit fails at its stage `pack`",
    )
    timeout: Duration = Field(default=3600, description="Longest build. An hour: a full image takes minutes")


class SystemClockSettings(Part):
    """The machine's clock."""

    type: Literal["system"] = Field(default="system", description="The system's clock")


class SteppedClockSettings(Part):
    """Time owned by another process, for the demo and for tests."""

    type: Literal["stepped"] = Field(description="Time owned by a director")
    socket: Path = Field(description="Unix socket of the director; its time is in the file beside it, SOCKET.now")
    every: Duration | None = Field(
        default=None, description="Ticks fall on multiples of this since the epoch. Without it, on any instant"
    )
    work: Mapping[Literal["build", "sign", "publish"], Duration] = Field(
        default_factory=dict, description="How long building, signing and publishing take in this time; else none"
    )


class LoopSettings(Part):
    """How the loop paces itself."""

    interval: Duration = Field(
        default=30, description="Longest time between two ticks. Half a minute: well inside a report's minute"
    )
    gap: Duration = Field(
        default=1, description="Shortest time between two ticks. A second: a burst of reports is one tick's work"
    )
    stores_poll: Duration = Field(
        default=60, description="How often image store, registry tags and secret versions are read"
    )
    retry_first: Duration = Field(default=5, description="First delay before a failed step is tried again")
    retry_most: Duration = Field(
        default=900, description="Longest such delay; delays double with up to half of jitter on top"
    )
    assignment_valid: Duration = Field(
        default=172800,
        description="How long an assignment holds. Two days: two nights, and no longer than a plan is true",
    )
    nights: Annotated[int, Field(ge=1, le=7)] = Field(
        default=2, description="How many coming windows an assignment names"
    )
    journal_kept: Duration = Field(
        default=90 * 86400,
        description="How long finished actions stay in the journal. Ninety days: a quarter can be looked back on",
    )
    events_kept: Duration = Field(
        default=365 * 86400,
        description="How long events and devices' health logs are kept. A year: as long as anybody asks what happened",
    )

    @field_validator("nights", mode="before")
    @classmethod
    def _digits(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


class Settings(Part):
    """The whole of `reconciler.yaml`."""

    state: Path = Field(default=Path("state"), description="Folder for the mirror, the builds and the default store")
    store: str | None = Field(
        default=None, description="Path or sqlite:/// URL of the store; STATE/store.db unless said"
    )
    git: GitSettings = Field(description="Where the fleet repo is")
    commits: CommitSettings = Field(default=CommitSettings(), description="Whose commits are acted on")
    images: Annotated[DirectoryPlace | S3Place, Field(discriminator="type")] = Field(description="The image store")
    registry: Annotated[LayoutRegistry | OciRegistry | EcrRegistry, Field(discriminator="type")] = Field(
        description="The registry of the apps"
    )
    secrets: Annotated[DirectoryPlace | AwsSecrets, Field(discriminator="type")] = Field(
        description="Where secrets are"
    )
    doorbell: Annotated[NoDoorbell | DirectoryPlace | SsmDoorbell, Field(discriminator="type")] = Field(
        default=NoDoorbell(), description="How devices are asked to call in now"
    )
    keys: KeySettings = Field(description="Which keys sign what")
    allowed: AllowedSettings = Field(description="What a fleet commit may point at")
    server: ServerSettings = Field(default=ServerSettings(), description="The HTTP service")
    forge: GithubForge | None = Field(
        default=None, description="Where pull requests are; nothing is told there unless said"
    )
    notifications: tuple[NotifyTarget, ...] = Field(
        default=(), description="Who is told what happens: chats, and services of your own. Nobody unless said"
    )
    builder: BuilderSettings = Field(default=BuilderSettings(), description="Where images are built")
    loop: LoopSettings = Field(default=LoopSettings(), description="How the loop paces itself")
    clock: Annotated[SystemClockSettings | SteppedClockSettings, Field(discriminator="type")] = Field(
        default=SystemClockSettings(), description="Whose time it is"
    )
    debug: Flag = Field(
        default=False, description="Check the status' invariants after every tick and stop where one fails"
    )

    @property
    def store_place(self) -> str:
        """Path or URL of the store."""
        return self.store if self.store is not None else str(self.state / "store.db")

    @model_validator(mode="after")
    def _within_what_is_allowed(self) -> Settings:
        place = self.images.url if isinstance(self.images, S3Place) else f"file://{self.images.path}"
        if isinstance(self.images, S3Place) and not any(_within(place, prefix) for prefix in self.allowed.images):
            raise ValueError(f"`images` is {place}, which `allowed.images` does not allow; add its bucket there")
        signer = self.keys.signer
        key = signer.fingerprint if isinstance(signer, (KeySigner, OfflineSigner)) else None
        if key is not None and key not in self.keys.releases:
            raise ValueError(
                "`keys.signer` is no key of `keys.releases`, so no device would take what it signs; add it there"
            )
        names = [target.name for target in self.notifications]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`notifications` has two targets called {twice[0]!r}; give each a name of its own")
        return self


def load_settings(path: Path) -> Settings:
    """Read a settings file. Raises InvalidInput with every problem and its place; nothing else."""
    from reconciler.repo import reader

    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        problem = Problem(str(path), 1, 1, f"cannot be read: {reason}; name the settings file with --config", code="io")
        raise InvalidInput([problem]) from None
    try:
        tree = reader.read(data)
    except reader.Refused as refused:
        raise InvalidInput(
            Problem(str(path), fault.line, fault.column, fault.message, code=fault.code) for fault in refused.faults
        ) from None
    if not isinstance(tree, dict):
        raise InvalidInput(
            [Problem(str(path), 1, 1, "is not a mapping; write keys and values, as `git:`", code="type")]
        )
    try:
        settings = Settings.model_validate(_nulls_removed(tree))
    except ValidationError as error:
        spots = reader.locate(data)
        faults = error.errors()
        # A list whose items are all wrong is not also too short.
        inner = {fault["loc"][:-1] for fault in faults}
        told = [fault for fault in faults if not (fault["type"] == "too_short" and fault["loc"] in inner)]
        raise InvalidInput(_problem(path, found, tree, spots) for found in told) from None
    return _absolute(settings, path.absolute().parent)


def _nulls_removed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A key without a value is a key that is not there."""
    return {
        key: _nulls_removed(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def _problem(path: Path, found: Any, tree: Mapping[str, Any], spots: Any) -> Problem:
    """One complaint of pydantic as a problem with its place, its key, cause and remedy."""
    from reconciler.repo import reader

    where: list[str | int] = []
    at: Any = tree
    for part in found["loc"]:
        # A discriminated union puts the chosen type into the path; it is no key of the file.
        if isinstance(at, dict) and part not in at and at.get("type") == part:
            continue
        where.append(part)
        at = (
            at.get(part)
            if isinstance(at, dict)
            else (at[part] if isinstance(at, list) and isinstance(part, int) else None)
        )
    spot, exact = reader.nearest(spots, tuple(where))
    key = ".".join(str(part) for part in where) or "the file"
    kind = found["type"]
    if kind == "extra_forbidden":
        last = str(where[-1])
        near = get_close_matches(last, _known_keys(where[:-1]), 1)
        message = f"unknown key `{key}`; " + (f"did you mean `{near[0]}`?" if near else "remove it")
        return Problem(str(path), spot.key_line, spot.key_column, message, code="unknown-key")
    if kind == "missing":
        message = f"`{key}` is missing; add it (see docs/reference/settings.md)"
    elif kind == "value_error":
        message = f"`{key}`: {found['ctx']['error']}"
    elif kind.startswith("union_tag"):
        message = f"`{key}.type` is missing or unknown; write one of {found['ctx'].get('expected_tags', '')}"
    else:
        message = f"`{key}` is {found['input']!r}: {found['msg'][:1].lower()}{found['msg'][1:]}"
    line, column = (spot.line, spot.column) if exact else (spot.key_line, spot.key_column)
    return Problem(str(path), line, column, message, code=kind)


def _known_keys(where: list[str | int]) -> list[str]:
    model: Any = Settings
    for part in where:
        field = next((f for f in getattr(model, "model_fields", {}).values() if f.alias == part), None)
        model = field.annotation if field is not None else None
    return [field.alias or name for name, field in getattr(model, "model_fields", {}).items()]


def _absolute(value: P, folder: Path) -> P:
    """Every path in the settings made absolute against the settings file's folder."""
    changes: dict[str, Any] = {}
    for name in type(value).model_fields:
        item = getattr(value, name)
        if isinstance(item, Path):
            changes[name] = folder / item.expanduser()
        elif isinstance(item, Part):
            changes[name] = _absolute(item, folder)
        elif isinstance(item, tuple) and any(isinstance(each, Part) for each in item):
            changes[name] = tuple(_absolute(each, folder) for each in item)
    if isinstance(value, Settings) and value.store is not None and "://" not in value.store:
        changes["store"] = str(folder / value.store)
    return value.model_copy(update=changes)
