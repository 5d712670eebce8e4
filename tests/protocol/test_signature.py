"""The corpus of bad signatures, made with real keys: each is refused with its own code, and good ones are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.protocol import signature as module
from reconciler.protocol.signature import Refused, Verified, Verifier, single_signature_packet, verify_detached
from tests.support.gpg import Home, days_ago, make_home

DATA = b"0123  edge-golden-v1.4.2-20251115.img.zst\n"
SPOOF = "Eve\n[GNUPG:] VALIDSIG {fpr} 2026-01-01 1767225600 0 4 0 22 8 00 {fpr} <eve@x>"


@dataclass(frozen=True)
class Keys:
    """The home and the keys of the corpus, made once a module (about two seconds)."""

    home: Home
    release: str
    foreign: str
    subkey: str
    expired: str
    revoked: str
    rsa: str
    keyring: bytes

    @property
    def allowed(self) -> set[str]:
        """Every key that is in the keyring is also allowed, so that only what is wrong with a signature can refuse
        it."""
        return {self.release, self.subkey, self.expired, self.revoked, self.rsa}

    def verify(self, data: bytes, signature: bytes, now: datetime | None = None, **options: object) -> Verified:
        """With the keyring and the allowed keys."""
        return verify_detached(data, signature, self.keyring, self.allowed, now or datetime.now(UTC), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with make_home() as home:
        release = home.generate("Release <release@example>", at=days_ago(60))
        foreign = home.generate("Foreign <foreign@example>", at=days_ago(60))
        subkey = home.generate("Subkey <subkey@example>", at=days_ago(60), signing_subkey=True)
        expired = home.generate("Expired <expired@example>", at=days_ago(60), expires="2d")
        revoked = home.generate("Revoked <revoked@example>")
        rsa = home.generate("Old <old@example>", algorithm="rsa2048", at=days_ago(60))
        revoked_signature = home.sign_detached(DATA, revoked)
        home.revoke(revoked)
        keyring = home.export([release, subkey, expired, revoked, rsa])
        made = Keys(home, release, foreign, subkey, expired, revoked, rsa, keyring)
        (home.path / "revoked.sig").write_bytes(revoked_signature)
        yield made


def refused(keys: Keys, code: str, data: bytes, signature: bytes, now: datetime | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        keys.verify(data, signature, now)
    assert caught.value.code == code, str(caught.value)
    return caught.value


def test_a_good_signature_tells_its_key_and_date(keys: Keys) -> None:
    at = days_ago(1)
    verified = keys.verify(DATA, keys.home.sign_detached(DATA, keys.release, at=at))
    assert verified == Verified(keys.release, keys.release, at, None, "SHA512")


@pytest.mark.parametrize("digest", ["SHA256", "SHA384", "SHA512"])
def test_strong_hashes_are_accepted(keys: Keys, digest: str) -> None:
    assert keys.verify(DATA, keys.home.sign_detached(DATA, keys.rsa, digest=digest)).hash == digest


def test_armour_is_accepted(keys: Keys) -> None:
    assert keys.verify(DATA, keys.home.sign_detached(DATA, keys.release, armour=True)).primary == keys.release


def test_a_signature_by_a_subkey_reports_its_primary(keys: Keys) -> None:
    verified = keys.verify(DATA, keys.home.sign_detached(DATA, keys.subkey))
    assert verified.primary == keys.subkey
    assert verified.fingerprint != keys.subkey


def test_data_and_keyring_may_be_files(keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "-data").write_bytes(DATA)
    (tmp_path / "keys").write_bytes(keys.keyring)
    good = keys.home.sign_detached(DATA, keys.release)
    now = datetime.now(UTC)
    assert verify_detached(tmp_path / "-data", good, tmp_path / "keys", [keys.release.lower()], now).hash == "SHA512"
    with pytest.raises(Refused, match="keyring-unreadable"):
        verify_detached(DATA, good, tmp_path / "absent", [keys.release], now)


def test_foreign_key_not_in_the_keyring(keys: Keys) -> None:
    refused(keys, "signature-foreign", DATA, keys.home.sign_detached(DATA, keys.foreign))


def test_foreign_key_in_the_keyring_but_not_allowed(keys: Keys) -> None:
    ring = keys.home.export([keys.release, keys.foreign])
    with pytest.raises(Refused) as caught:
        verify_detached(DATA, keys.home.sign_detached(DATA, keys.foreign), ring, [keys.release], datetime.now(UTC))
    assert caught.value.code == "signature-foreign"
    assert keys.foreign in caught.value.reason


def test_a_subkey_fingerprint_does_not_allow_its_primary(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.subkey)
    subkey = keys.verify(DATA, good).fingerprint
    with pytest.raises(Refused, match="signature-foreign"):
        verify_detached(DATA, good, keys.keyring, [subkey], datetime.now(UTC))


def test_expired_key(keys: Keys) -> None:
    refused(keys, "key-expired", DATA, keys.home.sign_detached(DATA, keys.expired, at=days_ago(59)))


def test_revoked_key(keys: Keys) -> None:
    refused(keys, "key-revoked", DATA, (keys.home.path / "revoked.sig").read_bytes())


def test_expired_signature_by_the_clock_of_the_system(keys: Keys) -> None:
    refused(keys, "signature-expired", DATA, keys.home.sign_detached(DATA, keys.release, at=days_ago(9), expires="1d"))


def test_expired_signature_by_now_alone(keys: Keys) -> None:
    signature = keys.home.sign_detached(DATA, keys.release, at=days_ago(1), expires="5d")
    verified = keys.verify(DATA, signature)
    assert verified.expires_at == verified.created_at + timedelta(days=5)
    keys.verify(DATA, signature, verified.expires_at - timedelta(seconds=1))
    refused(keys, "signature-expired", DATA, signature, verified.expires_at)


def test_signature_from_2099(keys: Keys) -> None:
    far = datetime(2099, 1, 1, tzinfo=UTC)
    signature = keys.home.sign_detached(DATA, keys.release, at=far)
    refused(keys, "signature-future", DATA, signature)
    assert keys.verify(DATA, signature, far).created_at == far


def test_the_tolerance_for_clocks_is_exact_and_bounded(keys: Keys) -> None:
    at = days_ago(3)
    signature = keys.home.sign_detached(DATA, keys.release, at=at)
    keys.verify(DATA, signature, at - timedelta(minutes=5))
    refused(keys, "signature-future", DATA, signature, at - timedelta(minutes=5, seconds=1))
    with pytest.raises(Refused, match="signature-future"):
        keys.verify(DATA, signature, at - timedelta(seconds=1), tolerance=timedelta(0))
    for tolerance in (timedelta(minutes=6), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match="not within"):
            keys.verify(DATA, signature, at, tolerance=tolerance)


def test_key_from_the_future(keys: Keys) -> None:
    far = datetime(2099, 1, 1, tzinfo=UTC)
    future = keys.home.generate("Future <future@example>", at=far)
    signature = keys.home.sign_detached(DATA, future, at=far)
    with pytest.raises(Refused, match="signature-unusable"):
        verify_detached(DATA, signature, keys.home.export([future]), [future], datetime.now(UTC))


@pytest.mark.parametrize("digest", ["SHA1", "RIPEMD160", "SHA224"])
def test_weak_hashes(keys: Keys, digest: str) -> None:
    keys.home.run("--version")
    signature = keys.home.sign_detached(DATA, keys.rsa, digest=digest)
    refused(keys, "signature-weak" if digest == "SHA224" else "signature-unusable", DATA, signature)


def test_two_good_signatures_in_one_file(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    refused(keys, "signature-several", DATA, good + good)
    refused(keys, "signature-several", DATA, good + keys.home.sign_detached(DATA, keys.foreign))


def test_two_armoured_signatures(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release, armour=True)
    refused(keys, "signature-malformed", DATA, good + good)


def test_inline_message_beside_the_very_data_it_signs(keys: Keys) -> None:
    refused(keys, "signature-malformed", DATA, keys.home.sign_inline(DATA, keys.release))


def test_clearsigned_text(keys: Keys) -> None:
    refused(keys, "signature-malformed", DATA, keys.home.clearsign(DATA, keys.release))


@pytest.mark.parametrize("shape", ["one line", "line of its own"])
def test_a_user_id_that_contains_a_status_line(keys: Keys, shape: str) -> None:
    uid = SPOOF.format(fpr=keys.release)
    uid = uid.replace("\n", " ") if shape == "one line" else uid
    eve = keys.home.generate(uid, at=days_ago(2))
    signature = keys.home.sign_detached(DATA, eve)
    with pytest.raises(Refused) as caught:
        verify_detached(DATA, signature, keys.home.export([keys.release, eve]), [keys.release], datetime.now(UTC))
    assert caught.value.code == "signature-foreign"
    assert verify_detached(DATA, signature, keys.home.export([eve]), [eve], datetime.now(UTC)).primary == eve


def test_empty_signature_keyring_and_allowed_set(keys: Keys) -> None:
    good, now = keys.home.sign_detached(DATA, keys.release), datetime.now(UTC)
    refused(keys, "signature-missing", DATA, b"")
    with pytest.raises(Refused, match="no-keys"):
        verify_detached(DATA, good, b"", [keys.release], now)
    with pytest.raises(Refused, match="no-keys"):
        verify_detached(DATA, good, keys.keyring, [], now)


def test_every_truncation(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    for length in range(1, len(good)):
        with pytest.raises(Refused):
            single_signature_packet(good[:length])


def test_bit_flips_anywhere(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    survivors = []
    for position in range(0, len(good), 3):
        broken = bytearray(good)
        broken[position] ^= 1 << (position % 8)
        try:
            keys.verify(DATA, bytes(broken))
        except Refused:
            continue
        survivors.append(position)
    # The unhashed area (issuer key id, at most ten bytes with its header) is not covered by an OpenPGP signature.
    assert len(survivors) <= 5, survivors


def test_other_data_one_byte_more_and_none(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    for data in (DATA + b"\n", DATA[:-1], b"", DATA.replace(b"v1.4.2", b"v1.4.3")):
        refused(keys, "signature-bad", data, good)


def test_text_mode_signature(keys: Keys) -> None:
    signature = keys.home.run("--local-user", keys.release, "--textmode", "--detach-sign", "--output", "-", data=DATA)
    refused(keys, "signature-malformed", DATA, signature)


@pytest.mark.parametrize(
    "signature",
    [b"\x00", b"\xff", b"-----BEGIN PGP SIGNATURE-----\n\n!!!!\n-----END PGP SIGNATURE-----\n", b"x" * 20000],
)
def test_garbage(keys: Keys, signature: bytes) -> None:
    refused(keys, "signature-malformed", DATA, signature)


def test_armour_with_bytes_that_are_not_base64(keys: Keys) -> None:
    text = b"-----BEGIN PGP SIGNATURE-----\n\nabcde\n-----END PGP SIGNATURE-----\n"
    refused(keys, "signature-malformed", DATA, text)


def test_packet_headers_of_every_form() -> None:
    body = b"x" * 200
    assert single_signature_packet(b"\xc2\xc0\x08" + body)
    assert single_signature_packet(b"\xc2\xff\x00\x00\x00\xc8" + body)
    assert single_signature_packet(b"\x89\x00\xc8" + body)
    for bad in (b"\xc2\xe1" + body, b"\x8b" + body, b"\x89\x00", b"\xc2"):
        with pytest.raises(Refused, match="signature-malformed"):
            single_signature_packet(bad)
    with pytest.raises(Refused, match="type 11"):
        single_signature_packet(b"\xcb\x02ab")


def test_an_armoured_keyring_is_named_as_what_it_is(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    ring = keys.home.run("--armor", "--export", keys.release)
    with pytest.raises(Refused, match="no armour"):
        verify_detached(DATA, good, ring, [keys.release], datetime.now(UTC))


def test_wrong_use_is_an_error_of_the_caller(keys: Keys) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    now = datetime.now(UTC)
    with pytest.raises(ValueError, match="no offset"):
        verify_detached(DATA, good, keys.keyring, [keys.release], now.replace(tzinfo=None))
    with pytest.raises(ValueError, match="40 hexadecimal"):
        verify_detached(DATA, good, keys.keyring, [keys.release[-16:]], now)
    with pytest.raises(ValueError, match="collection"):
        verify_detached(DATA, good, keys.keyring, keys.release, now)


def test_bounds(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    monkeypatch.setattr(module, "MAX_DATA_BYTES", 10)
    refused(keys, "data-too-large", DATA, good)
    monkeypatch.setattr(module, "MAX_KEYRING_BYTES", 10)
    with pytest.raises(Refused, match="keyring-too-large"):
        verify_detached(b"", good, keys.keyring, keys.allowed, datetime.now(UTC))


STAND_IN = r"""#!/bin/bash
while [ "$1" != --status-fd ]; do shift; done
fd=$2
emit() { printf "%s\n" "[GNUPG:] $*" >&$fd; }
"""


def _fake_gpgv(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "gpgv"
    program.write_text(STAND_IN + body)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")


F = "A" * 40
GOOD = f"emit NEWSIG; emit GOODSIG {F[:16]} x\nemit VALIDSIG {F} 2026-01-01 1767225600 0 4 0 22 8 00 {F}\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("exit 0", "signature-unusable"),
        (GOOD + "emit NEWSIG", "signature-unusable"),
        (GOOD + "emit GOODSIG x y", "signature-unusable"),
        (GOOD + f"emit EXPKEYSIG {F[:16]} x", "key-expired"),
        (GOOD + "emit SOMETHING_NEW 1", "signature-unusable"),
        (GOOD + 'echo "no status" >&$fd', "verifier-failed"),
        (GOOD.replace(f" 00 {F}", f" 01 {F}"), "signature-malformed"),
        (GOOD.replace(f" 00 {F}", " 00"), "verifier-failed"),
        (GOOD.replace(" 1767225600 ", " 20260101T000000 "), "verifier-failed"),
        (GOOD.replace(f"VALIDSIG {F}", f"VALIDSIG {F[:16]}"), "verifier-failed"),
        (GOOD.replace(f"GOODSIG {F[:16]}", "GOODSIG BBBBBBBBBBBBBBBB"), "verifier-failed"),
        ("exec sleep 60", "verifier-failed"),
        ("head -c 300000 /dev/zero >&$fd", "status-too-large"),
    ],
)
def test_every_deviation_of_the_status_lines(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str
) -> None:
    """A stand-in for gpgv says what no real signature makes it say; exit status 0 throughout."""
    good = keys.home.sign_detached(DATA, keys.release)
    _fake_gpgv(tmp_path, GOOD, monkeypatch)
    now = datetime.now(UTC)
    assert verify_detached(DATA, good, keys.keyring, [F], now).primary == F
    _fake_gpgv(tmp_path, body, monkeypatch)
    with pytest.raises(Refused) as caught:
        verify_detached(DATA, good, keys.keyring, [F], now, timeout_s=0.3 if "sleep" in body else 60)
    assert caught.value.code == code


def test_no_gpgv(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    monkeypatch.setattr("reconciler.protocol.scratch.find_program", lambda _name: None)
    refused(keys, "verifier-missing", DATA, good)


def test_a_gpgv_that_cannot_be_run(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = keys.home.sign_detached(DATA, keys.release)
    (tmp_path / "gpgv").write_text("#!/no/such/interpreter\n")
    (tmp_path / "gpgv").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(keys, "verifier-failed", DATA, good)


def test_the_remembering_verifier_judges_dates_anew_and_remembers_no_refusal(keys: Keys) -> None:
    verifier = Verifier(limit=1)
    at = days_ago(2)
    good = keys.home.sign_detached(DATA, keys.release, at=at, expires="10d")
    other = keys.home.sign_detached(b"other", keys.release, at=at)
    for _ in range(2):
        assert verifier(DATA, good, keys.keyring, keys.allowed, datetime.now(UTC)).primary == keys.release
        with pytest.raises(Refused, match="signature-future"):
            verifier(DATA, good, keys.keyring, keys.allowed, at - timedelta(hours=1))
        with pytest.raises(Refused, match="signature-expired"):
            verifier(DATA, good, keys.keyring, keys.allowed, at + timedelta(days=10))
        with pytest.raises(Refused, match="signature-bad"):
            verifier(b"wrong", good, keys.keyring, keys.allowed, datetime.now(UTC))
        with pytest.raises(Refused, match="signature-foreign"):
            verifier(DATA, good, keys.keyring, [keys.foreign], datetime.now(UTC))
        verifier(b"other", other, keys.keyring, keys.allowed, datetime.now(UTC))


def test_nothing_is_left_in_the_folder_for_temporary_files(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    keys.verify(DATA, keys.home.sign_detached(DATA, keys.release))
    assert list(tmp_path.iterdir()) == []
