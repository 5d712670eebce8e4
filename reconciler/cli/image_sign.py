"""`reconciler image sign`: a person with the release key signs a release, on any machine and with their own gpg.

Fetches an artifact's papers from the image store, or from a folder that was carried here, rechecks what can be
rechecked with the signer's own rules (`image.recheck`), shows what is about to be signed, and puts SHA256SUMS.gpg where
the loop picks it up. The loop shows this command, filled in, while a release waits (condition `SigningReady`).
"""

from __future__ import annotations

import errno
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.image_store import place_of
from reconciler.cli.names import releases

if TYPE_CHECKING:
    from reconciler.image.recheck import Named, Papers, Shelf
    from reconciler.ports import ArtifactFile, Commit, ImageStore

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for, with what the settings file adds to it."""

    release: str
    place: ImageStore | None
    carried: Path | None
    git: str | None
    branch: str
    commit: str | None
    keys: tuple[str, ...]
    keyring: Path | None

    @property
    def purpose(self) -> str:
        """For errors."""
        return f"signing {self.release}"


@dataclass(frozen=True, slots=True)
class Given:
    """The options that say what is signed, and where it and the repo are, as they were given."""

    release: str
    commit: str | None
    key: str | None
    store: str | None
    region: str | None
    endpoint: str | None
    carried: Path | None
    git: str | None
    branch: str
    config: Path | None


@click.command(short_help="Sign a release with a key of your own, and put the signature where it is waited for.")
@click.argument("release", shell_complete=releases)
@click.option(
    "--commit", metavar="SHA", help="Accepted commit that names the release; the command that is shown has it."
)
@click.option("--key", metavar="FINGERPRINT", help="Your release key: 40 hexadecimal digits of its primary key.")
@click.option("--home", type=click.Path(path_type=Path), help="GnuPG home of the key. [gpg's own]")
@click.option("--store", metavar="PLACE", help="The image store: s3://BUCKET/PREFIX/, or its folder.")
@click.option("--region", help="The bucket's region. [the machine's own]")
@click.option("--endpoint", help="Another endpoint than AWS's, as http://127.0.0.1:5000.")
@click.option(
    "--from", "carried", type=click.Path(path_type=Path), metavar="DIR",
    help="An artifact's folder that was carried here (USB stick), in place of --store.",
)  # fmt: skip
@click.option("--git", metavar="URL", help="The fleet repo, to see that an accepted commit names this very release.")
@click.option("--branch", default="main", show_default=True, help="Its branch in force.")
@click.option("--config", type=click.Path(path_type=Path), help="Take store, repo and keys from a settings file.")
@click.option(
    "--to", type=click.Path(path_type=Path), metavar="FILE", help="Write the signature there, not to the store."
)
@click.option(
    "--attach", type=click.Path(path_type=Path), metavar="FILE",
    help="Sign nothing: put a signature that was made elsewhere into the store.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before signing.")
def sign(home: Path | None, to: Path | None, attach: Path | None, yes: bool, **given: Any) -> None:
    """Sign RELEASE, which is built and waits for its signature.

    `reconciler status` shows this command with everything filled in while a release waits. Before anything is signed, papers,
    bytes and image are checked by the rules of `reconciler signer`, and what is signed is shown. Your own gpg signs: its
    agent, pinentry or smart card asks you, and no passphrase goes through this program.

    Without a way to the store, carry the artifact's folder: sign with `--from DIR`, carry SHA256SUMS.gpg back, and put it into
    the store with `--attach FILE`.
    """
    options = Given(**given)
    if attach is not None and (options.carried is not None or to is not None):
        raise click.UsageError("--attach puts a signature into the store; --from and --to make none there")
    with tempfile.TemporaryDirectory(prefix="reconciler-sign-") as folder:
        wanted = _wanted(options)
        if attach is not None:
            _attach(wanted, attach, options.key, home)
            return
        if not options.key:
            raise click.UsageError("say which key signs: --key FINGERPRINT (gpg --list-secret-keys)")
        _sign(wanted, options.key, home, to, Path(folder), ask=not yes)


def _wanted(given: Given) -> Wanted:
    """Options first, then the settings file: the named one, or reconciler.yaml here where no place is named."""
    from reconciler.controller.bootstrap import open_images
    from reconciler.controller.settings import load_settings

    def now() -> datetime:
        return datetime.now(UTC)

    config = given.config
    nowhere = config is None and given.store is None and given.carried is None
    if nowhere and Path("reconciler.yaml").is_file():
        config = Path("reconciler.yaml")
    settings = load_settings(config) if config is not None else None
    at = settings.images if settings is not None else None
    if given.store is not None:
        at = place_of(given.store, given.region, given.endpoint)
    if at is None and given.carried is None:
        raise click.UsageError("say where the artifact is: --store PLACE, --from DIR, or --config FILE")
    keys = settings.keys.releases if settings is not None else ()
    return Wanted(
        given.release,
        open_images(at, now) if at is not None else None,
        given.carried,
        given.git or (settings.git.url if settings is not None else None),
        settings.git.branch if settings is not None and given.git is None else given.branch,
        given.commit,
        tuple(dict.fromkeys((*keys, *([given.key.upper()] if given.key else [])))),
        settings.keys.release_keyring if settings is not None else None,
    )


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, `most` at most. OSError: no file; a pipe or a device is none, and is not waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(most)


class Carried:
    """An artifact's folder that somebody has carried here: `image.recheck.Shelf`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _error(self, release: str, name: str, why: str) -> Exception:
        from reconciler.ports import TerminalError

        return TerminalError(
            f"{self.folder / name}: {why}",
            needed_for=f"signing {release}",
            remedy="copy the whole folder of the release out of the image store",
        )

    def read(self, release: str, name: str) -> bytes:
        """A small file. TerminalError: absent."""
        try:
            return _read(self.folder / name, 1 << 20)
        except OSError as error:
            raise self._error(release, name, error.strerror or "cannot be read") from None

    def has(self, name: str) -> bool:
        """Whether the file was carried too."""
        return (self.folder / name).is_file()

    def download(self, release: str, name: str, to: Path) -> ArtifactFile:
        """Copy one file. Its bytes are hashed by whoever asked."""
        from reconciler.ports import ArtifactFile

        try:
            shutil.copyfile(self.folder / name, to)
        except OSError as error:
            raise self._error(release, name, error.strerror or "cannot be read") from None
        return ArtifactFile(name, to.stat().st_size, "")


# ---------------------------------------------------------------- signing


def _sign(wanted: Wanted, key: str, home: Path | None, to: Path | None, scratch: Path, *, ask: bool) -> None:
    from reconciler.adapters.gpg_hand import PersonalKey
    from reconciler.image import recheck

    signer = PersonalKey(key, home, needed_for=wanted.purpose)
    signer.public()  # said before minutes of checking, not after
    shelf = _shelf(wanted)
    papers = recheck.read_papers(shelf, wanted.release)
    commit, named, notes = _origin(wanted, papers, scratch)
    if isinstance(shelf, Carried) and not shelf.has(papers.manifest.file):
        notes.append(f"the image: {papers.manifest.file} was not carried here")
    else:
        keys = named.narrowed(wanted.keys) if named is not None else wanted.keys
        _say(f"checking {len(papers.listed)} files and the image in them")
        recheck.check_image(shelf, wanted.release, papers, keys, scratch)
    _show(wanted, papers, commit, signer.fingerprint, notes)
    if ask and not click.confirm("Sign it?", err=True):
        raise SystemExit(1)
    signature = signer.sign(papers.sums, datetime.now(UTC))
    _put(wanted, signature, to)


def _shelf(wanted: Wanted) -> Shelf:
    if wanted.carried is not None:
        return Carried(wanted.carried)
    assert wanted.place is not None
    return wanted.place


def _origin(wanted: Wanted, papers: Papers, scratch: Path) -> tuple[Commit | None, Named | None, list[str]]:
    """The commit that names the release, once it is proven to; what could not be checked is noted."""
    from reconciler.image import recheck

    if wanted.git is None:
        return None, None, ["that an accepted commit names this release: no --git"]
    from reconciler.adapters.git_source import GitMirror

    mirror = GitMirror(scratch / "mirror", wanted.git, wanted.branch)
    try:
        sha = wanted.commit or mirror.refresh().sha
        named = recheck.named_by(mirror, wanted.release, sha)
        recheck.check_origin(mirror, wanted.release, sha, named.spec, papers, papers.text("builderType"))
        return mirror.commit(sha), named, []
    finally:
        mirror.close()


def _show(wanted: Wanted, papers: Papers, commit: Commit | None, key: str, notes: list[str]) -> None:
    """What is about to be signed, in words. On stderr: the result is the signature."""
    manifest = papers.manifest
    _say(f"release   {wanted.release} ({papers.text('name') or manifest.file})")
    _say(f"image     {manifest.digest}, {manifest.image_size} bytes, packed {manifest.size}")
    _say(f"inputs    {papers.text('inputs')}, builder type {papers.text('builderType') or 'unknown'}")
    if commit is not None:
        subject = commit.message.strip().splitlines()[0] if commit.message.strip() else ""
        _say(f"commit    {commit.sha[:12]} by {commit.author}, {commit.committed_at:%Y-%m-%d %H:%M} UTC: {subject}")
    _say(f"key       {key}")
    before, changes = _changes(wanted, papers)
    if before is not None:
        _say(f"packages  {len(changes)} changed since {before}{':' if changes else ''}")
        for line in changes[:_SHOWN]:
            _say(f"          {line}")
        if len(changes) > _SHOWN:
            _say(f"          and {len(changes) - _SHOWN} more")
    else:
        _say(f"packages  {len(papers.packages)} installed; no earlier release to compare with")
    for note in notes:
        _say(f"NOT CHECKED: {note}")


def _changes(wanted: Wanted, papers: Papers) -> tuple[str | None, list[str]]:
    """The release before this one in the store, and the packages that differ; None where there is none."""
    from reconciler.image import recheck
    from reconciler.model.observed import ArtifactState
    from reconciler.model.scalars import release_key
    from reconciler.ports import PortError

    if wanted.place is None:
        return None, []
    try:
        found = wanted.place.artifacts()
        own = release_key(wanted.release)
        lower = [
            name for name, held in found.items() if held.state is ArtifactState.PUBLISHED and release_key(name) < own
        ]
        if not lower:
            return None, []
        before = max(lower, key=release_key)
        old = recheck.read_papers(wanted.place, before).packages
    except PortError:
        return None, []  # for the eye alone
    return before, _differences(old, papers.packages)


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    out = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            continue
        if name not in old:
            out.append(f"+ {name} {new[name]}")
        elif name not in new:
            out.append(f"- {name} {old[name]}")
        else:
            out.append(f"  {name} {old[name]} -> {new[name]}")
    return out


# ---------------------------------------------------------------- where it goes


def _put(wanted: Wanted, signature: bytes, to: Path | None) -> None:
    """Into the store; or to a file, where that was asked for or there is no way to the store."""
    from reconciler.adapters.durable import os_errors, write_atomic
    from reconciler.protocol.manifest import SUMS_SIGNATURE

    if to is None and wanted.carried is not None:
        to = wanted.carried / SUMS_SIGNATURE
    if to is None:
        assert wanted.place is not None
        wanted.place.attach_signature(wanted.release, signature)
        click.echo(f"{wanted.release} is signed; the reconciler publishes it when it next looks into the store")
        return
    with os_errors(f"write {to}", needed_for=wanted.purpose):
        write_atomic(to, [signature])
    click.echo(str(to))
    _say(
        f"carry it to a machine with the store: reconciler image sign {wanted.release} --attach {to.name} --store PLACE"
    )


def _attach(wanted: Wanted, file: Path, key: str | None, home: Path | None) -> None:
    """Put a signature into the store, judged first as far as keys are known here; the loop judges it in any case."""
    from reconciler.adapters.gpg_hand import PersonalKey
    from reconciler.ports import TerminalError
    from reconciler.protocol.manifest import SUMS
    from reconciler.protocol.signature import MAX_SIGNATURE_BYTES, Refused, single_signature_packet, verify_detached

    assert wanted.place is not None
    try:
        # One more byte than a signature may have, so that a longer file is seen to be one.
        signature = _read(file, MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise TerminalError(
            f"cannot read {file}: {error.strerror}", needed_for=wanted.purpose, remedy="name the signature's file"
        ) from None
    sums = wanted.place.read(wanted.release, SUMS)
    try:
        if key is not None:
            ring: bytes | Path | None = PersonalKey(key, home, needed_for=wanted.purpose).public()
        else:
            ring = wanted.keyring
        if ring is not None:
            allowed = (key.upper(),) if key is not None else wanted.keys
            verify_detached(sums, signature, ring, allowed, datetime.now(UTC))
        else:
            single_signature_packet(signature)
            _say("its key is not checked here (no --key, no --config): the reconciler refuses it if it is not allowed")
    except Refused as error:
        raise TerminalError(
            f"{file} is refused: {error.reason} ({error.code})",
            needed_for=wanted.purpose,
            remedy=f"sign SHA256SUMS of {wanted.release} as it lies in the store, with a key of `keys.releases`",
        ) from None
    wanted.place.attach_signature(wanted.release, signature)
    click.echo(f"{wanted.release} is signed; the reconciler publishes it when it next looks into the store")


def _say(line: str) -> None:
    text = "".join(letter if letter.isprintable() else " " for letter in line)
    click.echo(text, err=True)
    sys.stderr.flush()
