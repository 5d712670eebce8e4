"""Finds secrets in bytes: private keys, access keys, tokens, pre-shared keys and passwords, by their form.

Pure but for `Scanner`'s own buffer: bytes in, kinds and positions out, never a value. What a file is called does not
matter here; that is `image.gate_rules`. Below /usr, where programs and their documentation lie, a find must look like
the real thing: a whole key, no published example. Called by `image.gate`, for files that no package ships.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field

# No form below is longer than this, so two pieces of a file are looked at with so much of the first in the second.
_OVERLAP = 8192
_BODY = 4096


@dataclass(frozen=True, slots=True)
class Secret:
    """A form of secret. `marks` are literals, one of which stands in every find; `check` decides about a match."""

    rule: str
    what: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    check: Callable[[re.Match[bytes], bool], bool]


def _any(match: re.Match[bytes], strict: bool) -> bool:
    return True


def _no_example(match: re.Match[bytes], strict: bool) -> bool:
    return not (strict and b"EXAMPLE" in match[0].upper())


def _body(text: bytes) -> bytes:
    """What stands in a key's armour, without line ends (also as written in JSON), quotes, comment signs and headers."""
    text = re.sub(rb"\\[rnt]", b"\n", text)
    lines = [re.sub(rb"^[\s#>*|+\"']+|[\s\"',+\\]+$", b"", line) for line in re.split(rb"[\r\n]+", text)]
    return b"".join(line for line in lines if not re.match(rb"[A-Za-z-]+: ", line))


def _armoured(match: re.Match[bytes], strict: bool) -> bool:
    """A key follows its BEGIN line. The shortest whole one has 64 letters; outside /usr a beginning counts too."""
    text = match.string[match.end() : match.end() + _BODY].split(b"-----END")[0]
    found = re.match(rb"[A-Za-z0-9+/=]*", _body(text))
    return found is not None and len(found[0]) >= (64 if strict else 16)


def _encoded(match: re.Match[bytes], strict: bool) -> bool:
    """Base64 whose text is an armoured private key: as cloud-init and Kubernetes carry files."""
    text = re.sub(rb"\s|\\n", b"", match[0])
    for skip in range(4):
        part = text[skip : skip + (len(text) - skip) // 4 * 4]
        try:
            clear = base64.b64decode(part, validate=True)
        except binascii.Error:
            continue
        inner = _ARMOUR.search(clear)
        if inner is not None and _armoured(inner, strict):
            return True
    return False


def _not_placeholder(match: re.Match[bytes], strict: bool) -> bool:
    value = match["value"].strip(b"\"'")
    return not (
        value[:1] in (b"$", b"%", b"<", b"{", b"/", b"*", b"!", b"@")
        or len(value) < 6
        or value.lower()
        in (b"false", b"true", b"disabled", b"enabled", b"optional", b"required", b"secret", b"default")
    )


def _real_login(match: re.Match[bytes], strict: bool) -> bool:
    user, word = match["user"].lower(), match["word"].lower()
    holder = (b"$", b"%", b"<", b"{", b"[", b"*", b"\\")
    if word.startswith(holder) or user.startswith(holder) or set(word) <= set(b"x.*_-"):
        return False
    published = user in (b"user", b"username", b"login", b"name", b"foo") and re.match(
        rb"(?:pass|passw(?:or)?d|pw|secret|bar)\d*$", word
    )
    return not (strict or published)


def _secret(
    rule: str, what: str, marks: str, pattern: str, check: Callable[[re.Match[bytes], bool], bool] = _any
) -> Secret:
    return Secret(rule, what, tuple(mark.encode() for mark in marks.split("|")), re.compile(pattern.encode()), check)


_ARMOUR = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_B64_MARKS = "LS0tLS1CRUdJTi|0tLS0tQkVHSU4|tLS0tLUJFR0lOI"
_EDGE = r"(?<![A-Za-z0-9_+/-])"

SECRETS: tuple[Secret, ...] = (
    Secret("private-key", "a private key", (b"PRIVATE KEY",), _ARMOUR, _armoured),
    _secret(
        "private-key",
        "a private key in base64",
        _B64_MARKS,
        rf"(?:{_B64_MARKS})[A-Za-z0-9+/=\s\\]{{64,{_BODY}}}",
        _encoded,
    ),
    _secret(
        "private-key",
        "a PuTTY private key",
        "PuTTY-User-Key-File",
        r"PuTTY-User-Key-File-\d:[^\0]{0,4096}?Private-Lines: *\d+\s+[A-Za-z0-9+/]{16}",
    ),
    _secret("private-key", "an age secret key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]{40}"),
    _secret(
        "private-key",
        "a minisign secret key",
        "minisign encrypted secret key|signify secret key",
        r"(?:minisign encrypted|signify) secret key\r?\n[A-Za-z0-9+/=]{40}",
    ),
    _secret(
        "private-key",
        "a gpg-agent private key",
        "private-key",
        r"(?:\(|Key: \(|\d:)(?:protected-|shadowed-)?private-key[\s(]*\(?\d?:?(?:rsa|ecc|dsa|elg)",
    ),
    _secret(
        "private-key",
        "a private JSON web key",
        '"d"',
        r'"kty"\s*:\s*"(?:RSA|EC|OKP)"[^{}]{0,4000}"d"\s*:\s*"[\w-]{20}|"d"\s*:\s*"[\w-]{20}[^{}]{0,4000}"kty"\s*:\s*"(?:RSA|EC|OKP)"',
    ),
    _secret(
        "private-key",
        "a WireGuard private key",
        "rivate|RIVATE",
        r"(?i:private_?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=(?![A-Za-z0-9+/=])",
    ),
    _secret(
        "psk",
        "a WireGuard pre-shared key",
        "reshared|PRESHARED",
        r"(?i:pre-?shared_?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=(?![A-Za-z0-9+/=])",
    ),
    _secret(
        "psk", "an OpenVPN static key", "OpenVPN Static key", r"-----BEGIN OpenVPN Static key V1-----\s+[0-9a-fA-F]{16}"
    ),
    _secret(
        "psk",
        "an IPsec pre-shared key",
        "PSK",
        r"(?:^|\n)[^#\n\0]{0,200}:\s{0,8}PSK\s{1,8}(?:\"[^\"\n]+\"|'[^'\n]+'|0[sx][A-Za-z0-9+/=]+)",
    ),
    _secret(
        "psk",
        "a Wi-Fi key",
        "psk",
        r"(?:^|\n)[ \t]*psk[ \t]*=[ \t]*(?:\"[^\"\n]{8,63}\"|[0-9a-f]{64}\b|(?-i:[^\s\"]{8,63}(?=\r?\n)))",
    ),
    _secret(
        "aws-key",
        "an AWS access key id",
        "AKIA|ASIA",
        rf"{_EDGE}(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Za-z0-9+/])",
        _no_example,
    ),
    _secret(
        "aws-key",
        "an AWS secret key",
        "ecret|ECRET",
        r"(?i:aws_?)?(?i:secret_?access_?key|aws_?secret_?key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
        _no_example,
    ),
    _secret(
        "aws-key",
        "an AWS session token",
        "ession|ESSION",
        r"(?i:aws_?session_?token|aws_?security_?token|\"sessiontoken\")[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+=]{64}",
        _no_example,
    ),
    _secret("registry-auth", "a registry's login", '"auth"', r'"auth"\s*:\s*"[A-Za-z0-9+/=]{4,}"'),
    _secret(
        "registry-auth",
        "a registry's token",
        "identitytoken|registrytoken",
        r'"(?:identitytoken|registrytoken)"\s*:\s*"[^"\s]{4,}"',
    ),
    _secret(
        "token",
        "a GitHub token",
        "ghp_|gho_|ghu_|ghs_|ghr_|github_pat_",
        rf"{_EDGE}(?:gh[pousr]_[A-Za-z0-9]{{36}}|github_pat_[A-Za-z0-9_]{{22,}})",
    ),
    _secret("token", "a GitLab token", "glpat-|gldt-|glrt-", rf"{_EDGE}gl(?:pat|dt|rt)-[\w-]{{20}}"),
    _secret(
        "token",
        "a Slack token",
        "xox|hooks.slack.com",
        rf"{_EDGE}xox[abeoprs]-[0-9A-Za-z-]{{20}}|hooks\.slack\.com/services/T\w+/B\w+/\w{{16}}",
    ),
    _secret("token", "a Google API key", "AIza", rf"{_EDGE}AIza[0-9A-Za-z_-]{{35}}(?![0-9A-Za-z_-])"),
    _secret("token", "a payment key", "k_live_", rf"{_EDGE}[sr]k_live_[0-9A-Za-z]{{20}}"),
    _secret(
        "token",
        "a package registry's token",
        "npm_|pypi-",
        rf"{_EDGE}(?:npm_[A-Za-z0-9]{{36}}(?![A-Za-z0-9])|pypi-[A-Za-z0-9_-]{{64}})",
    ),
    _secret("token", "a model provider's key", "sk-ant-|sk-proj-", rf"{_EDGE}sk-(?:ant|proj)-[\w-]{{24}}"),
    _secret("token", "a Vault token", "hvs.|hvb.", rf"{_EDGE}hv[sb]\.[\w-]{{24}}"),
    _secret("token", "a Tailscale key", "tskey-", rf"{_EDGE}tskey-(?:auth|api|client)-\w{{10}}"),
    _secret("token", "a DigitalOcean token", "dop_v1_", rf"{_EDGE}do[opr]_v1_[a-f0-9]{{64}}"),
    _secret(
        "token", "an Azure key", "AccountKey=|SharedAccessKey=", r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{43,86}="
    ),
    _secret("token", "a signed token (JWT)", "eyJ", rf"{_EDGE}eyJ[\w-]{{12,}}\.eyJ[\w-]{{12,}}\.[\w-]{{20,}}"),
    _secret(
        "token", "a bearer token", "earer ", r"(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:bearer) +[\w.+/=~-]{20}"
    ),
    _secret(
        "password",
        "a password's hash",
        "$1$|$2a$|$2b$|$2y$|$5$|$6$|$7$|$y$|$gy$|$apr1$|$argon2|grub.pbkdf2",
        r"\$(?:1|apr1)\$[./A-Za-z0-9]{1,8}\$[./A-Za-z0-9]{22}(?![./A-Za-z0-9])|\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}|\$[56]\$(?:rounds=\d+\$)?[^$:\s\0]{1,16}\$[./A-Za-z0-9]{43,86}(?![./A-Za-z0-9])|\$(?:y|gy|7)\$[./A-Za-z0-9$]{20,}|\$argon2(?:id?|d)\$[^\s:\0]{40}|grub\.pbkdf2\.sha512\.\d+\.[0-9A-F]{32}",
    ),
    _secret(
        "password",
        "a login in an address",
        "://",
        r"[a-z][a-z0-9+.-]{1,20}://(?P<user>[^\s:/@\"'<>\0]{0,64}):(?P<word>[^\s/@\"'<>\0]{1,128})@[\w\[.$-]",
        _real_login,
    ),
)
# A form that is looked for in settings alone: elsewhere, such lines are programs.
SETTING = _secret(
    "password",
    "a password or token in a setting",
    "",
    r"(?:^|\n)[ \t]*(?:export[ \t]+)?[\"']?(?:[A-Za-z0-9]+[_.-])*"
    r"(?i:passw(?:or)?d|passphrase|secret|token|api_?key|psk)[\"']?[ \t]*[=:][ \t]*(?P<value>\S+)",
    _not_placeholder,
)
SETTINGS = re.compile(
    rb"etc/(?:environment|environment\.d/.*|default/.*|sysconfig/.*|edge/.*|docker/.*|amazon/.*|profile\.d/.*)|opt/aws/.*|(?:root|home|opt|srv|data)/(?:.*/)?[^/]*(?:\.env|\.conf|\.ini|\.cfg|\.ya?ml|\.toml|\.json|\.properties|\.txt)|(?:.*/)?\.env(?:\.[^/]*)?",
    re.DOTALL,
)


@dataclass(slots=True)
class Scanner:
    """Looks through a stream of pieces. `strict` below /usr. `found`: (rule, what) → position of the first in the stream."""

    strict: bool
    settings: bool = False
    found: dict[tuple[str, str], int] = field(default_factory=dict)
    _tail: bytes = b""
    _tail_at: int = 0

    def feed(self, at: int, data: bytes) -> None:
        """The next piece, at its position. A gap since the last is a hole."""
        joined = self._tail and self._tail_at + len(self._tail) == at
        text, start = (self._tail + data, self._tail_at) if joined else (data, at)
        self._scan(text, start)
        self._tail, self._tail_at = text[-_OVERLAP:], start + max(0, len(text) - _OVERLAP)

    def _scan(self, text: bytes, start: int) -> None:
        for secret in (*SECRETS, SETTING) if self.settings else SECRETS:
            if (secret.rule, secret.what) in self.found or not any(mark in text for mark in secret.marks):
                continue
            for match in secret.pattern.finditer(text):
                if secret.check(match, self.strict):
                    self.found[secret.rule, secret.what] = start + match.start()
                    break


def whole(data: bytes) -> tuple[str, str] | None:
    """A file that is a private key in binary: DER, or an OpenPGP packet of a secret key. (rule, what), or None."""
    if data[:1] == b"\x30" and len(data) < 16384 and _der_key(data):
        return "private-key", "a private key (DER)"
    if b"openssh-key-v1\0" in data[:64]:
        return "private-key", "an OpenSSH private key"
    if _secret_packet(data):
        return "private-key", "an OpenPGP secret key"
    return None


def _der_key(data: bytes) -> bool:
    """A SEQUENCE as long as the file that begins with a version and goes on as PKCS#1, PKCS#8 or SEC 1 keys do."""
    head = re.match(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)(\x02\x01[\x00\x01])(.)", data, re.DOTALL)
    if head is None:
        return False
    length = data[1] if data[1] < 0x80 else int.from_bytes(data[2 : head.start(1)], "big")
    if head.start(1) + length != len(data) or len(data) < 40:
        return False
    kind = head[2]
    pkcs8 = kind == b"\x30" and b"\x06" in data[head.end() : head.end() + 4]
    pkcs1 = kind == b"\x02" and len(data) > 200
    return pkcs8 or pkcs1 or (kind == b"\x04" and head[1] == b"\x02\x01\x01")


def _secret_packet(data: bytes) -> bool:
    """Whether a row of OpenPGP packets, from the first byte, has a secret key or subkey in it."""
    at, packets = 0, 0
    while at + 6 < len(data) and packets < 1000:
        tag, body, end = _packet(data, at)
        if tag is None or (packets == 0 and tag not in (5, 6)) or data[body : body + 1] == b"":
            return False
        if packets == 0 and data[body] not in (3, 4, 5, 6):
            return False
        if tag in (5, 7):
            return True
        at, packets = end, packets + 1
    return False


def _packet(data: bytes, at: int) -> tuple[int | None, int, int]:
    """Tag, where the body begins and where it ends; no tag where there is no packet of definite length."""
    first = data[at]
    if first & 0xC0 == 0xC0:
        length = data[at + 1]
        if length < 192:
            return first & 0x3F, at + 2, at + 2 + length
        if length < 224:
            return first & 0x3F, at + 3, at + 3 + ((length - 192) << 8) + data[at + 2] + 192
        if length == 255:
            return first & 0x3F, at + 6, at + 6 + int.from_bytes(data[at + 2 : at + 6], "big")
        return None, at, at
    if first & 0x80 and first & 3 != 3:
        size = 1 << (first & 3)
        return first >> 2 & 15, at + 1 + size, at + 1 + size + int.from_bytes(data[at + 1 : at + 1 + size], "big")
    return None, at, at
