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
class Form:
    """A form of secret. One of `marks` stands in every find, and the pattern begins with it; `check` decides of a match."""

    rule: str
    what: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    check: Callable[[re.Match[bytes], bool], bool]


def _any(match: re.Match[bytes], strict: bool) -> bool:
    return True


def _whole(match: re.Match[bytes], strict: bool) -> bool:
    """What is looked for begins here, and is not the end of a longer word."""
    return match.string[match.start() - 1 : match.start()] not in _WORD or match.start() == 0


_WORD = frozenset(bytes([code]) for code in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-")


def _no_example(match: re.Match[bytes], strict: bool) -> bool:
    return not (strict and b"EXAMPLE" in match[0].upper())


def _key_id(match: re.Match[bytes], strict: bool) -> bool:
    return _whole(match, strict) and _no_example(match, strict)


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


def _wide(match: re.Match[bytes], strict: bool) -> bool:
    """An armoured private key in UTF-16, of either byte order: every other byte is zero."""
    clear = match.string[match.start() : match.start() + 2 * _BODY].replace(b"\0", b"")
    inner = _ARMOUR.match(clear)
    return inner is not None and _armoured(inner, strict)


def _web_key(match: re.Match[bytes], strict: bool) -> bool:
    """The private part of a JSON web key, which says its type in the same object."""
    before = match.string[max(0, match.start() - 4000) : match.start()].rpartition(b"{")[2]
    after = match.string[match.end() : match.end() + 4000].partition(b"}")[0]
    return re.search(rb'"kty"\s*:\s*"(?:RSA|EC|OKP)"', before + b" " + after) is not None


def _after_colon(match: re.Match[bytes], strict: bool) -> bool:
    """`: PSK "…"`, in no comment: a line of ipsec.secrets."""
    line = match.string[max(0, match.start() - 300) : match.start()].rpartition(b"\n")[2]
    return line.rstrip().endswith(b":") and b"#" not in line


def _wifi(match: re.Match[bytes], strict: bool) -> bool:
    line = match.string[max(0, match.start() - 80) : match.start()].rpartition(b"\n")[2].strip()
    return line in (b"", b"wpa_") and (not strict or re.search(rb"[0-9a-f]{64}", match[0]) is not None)


def _authorization(match: re.Match[bytes], strict: bool) -> bool:
    before = match.string[max(0, match.start() - 24) : match.start()]
    return re.search(rb"(?i:authorization)[\"']?\s*[:=]\s*[\"']?[Bb]$", before) is not None


def _not_placeholder(match: re.Match[bytes]) -> bool:
    value = match["value"].strip(b"\"';,")
    return not (
        value[:1] in (b"$", b"%", b"<", b"{", b"[", b"(", b"/", b"*", b"!", b"@", b"`")
        or len(value) < 6
        or value.startswith((b"-", b"..."))
        or (value.isupper() and value.replace(b"_", b"").isalpha())  # a usage's PASSWORD
        or value.lower() in (b"disabled", b"enabled", b"optional", b"required", b"default", b"string")
        or value in (b"compat", b"systemd", b"winbind")  # nsswitch.conf
    )


def _commented(match: re.Match[bytes]) -> bool:
    """Whether the line up to the find is a comment, of a shell, a unit or an ini file."""
    before = match.string[max(0, match.start() - 1000) : match.start("value")].rpartition(b"\n")[2]
    return before.lstrip()[:1] in (b"#", b";")


def _real_login(match: re.Match[bytes], strict: bool) -> bool:
    user, word = match["user"].lower(), match["word"].lower()
    holder = (b"$", b"%", b"<", b"{", b"[", b"*", b"\\")
    if strict or word.startswith(holder) or user.startswith(holder) or set(word) <= set(b"x.*_-"):
        return False
    return not (
        user in (b"user", b"username", b"login", b"name", b"foo")
        and re.fullmatch(rb"(?:pass|passw(?:or)?d|pw|secret|bar)\d*", word)
    )


def _form(
    rule: str, what: str, marks: str, pattern: str, check: Callable[[re.Match[bytes], bool], bool] = _any
) -> Form:
    return Form(rule, what, tuple(mark.encode() for mark in marks.split("|")), re.compile(pattern.encode()), check)


_ARMOUR = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# "-----BEGIN " in base64, at each of the three places that a byte may have in it.
_B64 = "LS0tLS1CRUdJTi|0tLS0tQkVHSU4|tLS0tLUJFR0lOI"
_WIDE = b"-\0-\0-\0-\0-\0B\0E\0G\0I\0N\0 \0"
_KEY32 = r"[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=(?![A-Za-z0-9+/=])"
_IS = r"[\"']?\s*[=:]\s*[\"']?"
_CRYPT = (
    r"\$(?:1|apr1)\$[./A-Za-z0-9]{1,8}\$[./A-Za-z0-9]{22}(?![./A-Za-z0-9])",
    r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}",
    r"\$[56]\$(?:rounds=\d+\$)?[^$:\s\0]{1,16}\$[./A-Za-z0-9]{43,86}(?![./A-Za-z0-9])",
    r"\$(?:y|gy|7)\$[./A-Za-z0-9$]{20,}",
    r"\$argon2(?:id?|d)\$[^\s:\0]{40}",
    r"grub\.pbkdf2\.sha512\.\d+\.[0-9A-F]{32}",
)

# fmt: off
FORMS: tuple[Form, ...] = (
    Form("private-key", "a private key", (b"-----BEGIN ",), _ARMOUR, _armoured),
    _form("private-key", "a private key in base64", _B64, rf"(?:{_B64})[A-Za-z0-9+/=\s\\]{{64,{_BODY}}}", _encoded),
    Form("private-key", "a private key in UTF-16", (_WIDE,), re.compile(re.escape(_WIDE)), _wide),
    _form("private-key", "a PuTTY private key", "PuTTY-User-Key-File-",
          r"PuTTY-User-Key-File-\d:[^\0]{0,4096}?Private-Lines: *\d+\s+[A-Za-z0-9+/]{16}"),
    _form("private-key", "an age secret key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]{40}"),
    _form("private-key", "a minisign secret key", "encrypted secret key|signify secret key",
          r"(?:encrypted|signify) secret key\r?\n[A-Za-z0-9+/=]{40}"),
    _form("private-key", "a gpg-agent private key", "private-key", r"private-key[\s(]+(?:\d:)?(?:rsa|ecc|dsa|elg)"),
    _form("private-key", "a private JSON web key", '"d"', r'"d"\s*:\s*"[\w-]{20}', _web_key),
    _form("private-key", "a WireGuard private key", "rivateKey|rivate_key|RIVATE_KEY|rivatekey|rivate-key",
          rf"(?i:rivate[_-]?key){_KEY32}"),
    _form("psk", "a WireGuard pre-shared key", "resharedKey|reshared_key|RESHARED_KEY|resharedkey|reshared-key",
          rf"(?i:reshared[_-]?key){_KEY32}"),
    _form("psk", "an OpenVPN static key", "-----BEGIN OpenVPN", r"-----BEGIN OpenVPN [\w ]*key[\w ]*-----\s+[0-9a-zA-Z+/]{16}"),
    _form("psk", "an IPsec pre-shared key", "PSK", r"PSK\s{1,8}(?:\"[^\"\n]+\"|'[^'\n]+'|0[sx][A-Za-z0-9+/=]+)", _after_colon),
    _form("psk", "a Wi-Fi key", "psk", r"psk[ \t]*=[ \t]*(?:\"[^\"\n]{8,63}\"|[^\s\"]{8,64}(?=\s|$))", _wifi),
    _form("aws-key", "an AWS access key id", "AKIA|ASIA", r"A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9+/])", _key_id),
    _form("aws-key", "an AWS secret key",
          "ecret_access_key|ECRET_ACCESS_KEY|ecretAccessKey|ecretaccesskey|ecret_key|ECRET_KEY|ecretKey|ecret-access-key",
          rf"(?i:ecret[_-]?(?:access[_-]?)?key){_IS}[A-Za-z0-9/+]{{40}}(?![A-Za-z0-9/+])", _no_example),
    _form("aws-key", "an AWS session token", "ession_token|ESSION_TOKEN|essionToken|ecurity_token|ECURITY_TOKEN",
          rf"(?i:(?:ession|ecurity)_?token){_IS}[A-Za-z0-9/+=]{{64}}", _no_example),
    _form("registry-auth", "a registry's login", '"auth"', r'"auth"\s*:\s*"[A-Za-z0-9+/=]{4,}"'),
    _form("registry-auth", "a registry's token", '"identitytoken"|"registrytoken"',
          r'"(?:identitytoken|registrytoken)"\s*:\s*"[^"\s]{4,}"'),
    _form("token", "a GitHub token", "ghp_|gho_|ghu_|ghs_|ghr_", r"gh[pousr]_[A-Za-z0-9]{36}", _whole),
    _form("token", "a GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{22,}", _whole),
    _form("token", "a GitLab token", "glpat-|gldt-|glrt-", r"gl(?:pat|dt|rt)-[\w-]{20}", _whole),
    _form("token", "a Slack token", "xoxa-|xoxb-|xoxe-|xoxo-|xoxp-|xoxr-|xoxs-", r"xox[aeboprs]-[0-9A-Za-z-]{20}", _whole),
    _form("token", "a Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/T\w+/B\w+/\w{16}"),
    _form("token", "a Google API key", "AIza", r"AIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])", _whole),
    _form("token", "a payment key", "sk_live_|rk_live_", r"[sr]k_live_[0-9A-Za-z]{20}", _whole),
    _form("token", "a package registry's token", "npm_", r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])", _whole),
    _form("token", "a package registry's token", "pypi-", r"pypi-[A-Za-z0-9_-]{64}", _whole),
    _form("token", "a model provider's key", "sk-ant-|sk-proj-", r"sk-(?:ant|proj)-[\w-]{24}", _whole),
    _form("token", "a Vault token", "hvs.|hvb.", r"hv[sb]\.[\w-]{24}", _whole),
    _form("token", "a Tailscale key", "tskey-", r"tskey-(?:auth|api|client)-\w{10}", _whole),
    _form("token", "a DigitalOcean token", "dop_v1_|doo_v1_|dor_v1_", r"do[opr]_v1_[a-f0-9]{64}", _whole),
    _form("token", "an Azure key", "AccountKey=|AccessKey=", r"(?:AccountKey|AccessKey)=[A-Za-z0-9+/]{43,86}="),
    _form("token", "a signed token (JWT)", "eyJ", r"eyJ[\w-]{12,}\.eyJ[\w-]{12,}\.[\w-]{20,}", _whole),
    _form("token", "a bearer token", "earer ", r"earer +[\w.+/=~-]{20}", _authorization),
    _form("password", "a password's hash", "$1$|$2a$|$2b$|$2y$|$5$|$6$|$7$|$y$|$gy$|$apr1$|$argon2|grub.pbkdf2.sha512.",
          "|".join(_CRYPT)),
    _form("password", "a login in an address", "://",
          r"://(?P<user>[^\s:/@\"'<>\0]{0,64}):(?P<word>[^\s/@\"'<>\0]{1,128})@[\w\[.$-]", _real_login),
)
# fmt: on
# Forms that are looked for in settings alone: elsewhere, such lines are programs. A line, or a member of JSON in any place.
_NAME = rb"(?i:passw(?:or)?d|passphrase|secret|token|api_?key|psk)"
_SETTING = (
    re.compile(
        rb"(?:^|\n)[ \t]*(?:export[ \t]+|(?:Default)?Environment=(?:[^\n]*[ \t])?)?[\"']?(?:[A-Za-z0-9]+[_.-])*"
        + _NAME
        + rb"[\"']?[ \t]*[=:][ \t]*(?P<value>\S+)"
    ),
    re.compile(rb'[{,]\s*"[\w.-]*' + _NAME + rb'"\s*:\s*"(?P<value>[^"\n]+)"'),
    # An argument of a command: `--password X`, `--db-token=X`. `--password-file X` and `--password-stdin` are none.
    re.compile(rb"[\s\"']--(?:[A-Za-z0-9]+-)*" + _NAME + rb"(?:=|[ \t]+)[\"']?(?P<value>[^\s\"'&;|]+)"),
    # The same without dashes, in the middle of a line: `host=db password=X`.
    re.compile(rb"[^\n][\s\"',;?&](?:[A-Za-z0-9]+_)*" + _NAME + rb"=[\"']?(?P<value>[^\s\"'&;|]+)"),
)
SETTINGS = re.compile(
    rb"etc/.*|opt/aws/.*|usr/local/etc/.*|usr/(?:local/)?lib/(?:systemd|edge)/.*|var/spool/cron/.*|"
    rb"(?:root|home|opt|srv|data)/(?:.*/)?[^/]*(?:\.(?:env|conf|ini|cfg|ya?ml|toml|json|properties|txt)|rc|profile|\.zshenv)|"
    rb"(?:.*/)?[^/]*\.env(?:\.[^/]*)?",
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
        if data.count(0) == len(data):
            return
        joined = self._tail and self._tail_at + len(self._tail) == at
        text, start = (self._tail + data, self._tail_at) if joined else (data, at)
        self._scan(text, start)
        self._tail, self._tail_at = text[-_OVERLAP:], start + max(0, len(text) - _OVERLAP)

    def _scan(self, text: bytes, start: int) -> None:
        for form in FORMS:
            if (form.rule, form.what) not in self.found:
                at = _first(form, text, self.strict)
                if at is not None:
                    self.found[form.rule, form.what] = start + at
        key = ("password", "a password or token in a setting")
        if self.settings and key not in self.found:
            found = [
                match.start("value")
                for form in _SETTING
                for match in form.finditer(text)
                if _not_placeholder(match) and not _commented(match)
            ]
            if found:
                self.found[key] = start + min(found)


def _first(form: Form, text: bytes, strict: bool) -> int | None:
    """Where a form is first found in a text. By its marks: a search for bytes is far faster than one for a pattern."""
    for mark in form.marks:
        at = text.find(mark)
        while at >= 0:
            match = form.pattern.match(text, at)
            if match is not None and form.check(match, strict):
                return at
            at = text.find(mark, at + 1)
    return None


def whole(data: bytes) -> tuple[str, str] | None:
    """A file that its first bytes tell: a private key in binary (DER, an OpenPGP packet of a secret key), a memory's or
    a journal's contents. (rule, what), or None."""
    if data[:4] == b"\x7fELF" and data[16:18] in (b"\4\0", b"\0\4"):
        return "log", "a core dump"
    if data[:8] in (b"KDUMP   ", b"LPKSHHRH"):
        return "log", "a kernel's crash dump" if data[:1] == b"K" else "a journal"
    if data[4086:4096] in (b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0"):
        return "leftover", "a swap file"
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
