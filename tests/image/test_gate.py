"""The sysprep gate over small images: a clean one passes, each thing that no image may hold is found, its like passes."""

from __future__ import annotations

import base64
import bz2
import functools
import gzip
import io
import json
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from reconciler.image import gate_keys
from reconciler.image.gate import Fault, inspect
from reconciler.image.gate_rules import BY_NAME, RULES
from reconciler.ports import TerminalError
from tests.support.gate_images import (
    OPENSSH_KEY,
    RSA_KEY,
    File,
    Folder,
    Hard,
    Link,
    Planted,
    clean_root,
    debugfs,
    make_image,
)
from tests.support.gpg import Home, make_home
from tests.support.system import need

pytestmark = pytest.mark.system
AWS_ID, AWS_SECRET = "AKIA" + "Q3EGUEXA3BKZ7QXW", "v9Kc2mXh1PqLr8sTzYw4bNf6GjDa0eRu5iOoQkBx"
HASH = "$6$rounds=5000$saltsalt$" + "Kf9x" * 21 + "aa"
WG_KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PGP_KEY = (
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n"
    + "lQOYBGVn" * 20
    + "\n-----END PGP PRIVATE KEY BLOCK-----\n"
)
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ6Ue3Kf0pXq me@laptop\n"
GITHUB = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with make_home() as made:
        yield made


@pytest.fixture(scope="module")
def release(home: Home) -> tuple[bytes, str]:
    """A keyring and its fingerprint."""
    fingerprint = home.generate("release")
    return home.export([fingerprint]), fingerprint


@pytest.fixture(scope="module")
def keys_once() -> Iterator[None]:
    """Every image of this module has the same keyring: gpg reads it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_keys, "read_keys", functools.cache(gate_keys.read_keys))
        yield


def with_planted(folder: Path, release: tuple[bytes, str], planted: dict[str | bytes, Planted]) -> Path:
    links = tuple(f"{name!s}/" for name, what in planted.items() if isinstance(what, Link))
    clean = clean_root(release[0], release[1] + "\n").items()
    return make_image(folder, {**{name: what for name, what in clean if not f"{name!s}".startswith(links)}, **planted})


def zipped(name: str, text: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return data.getvalue()


def tarred(name: str, data: bytes, mode: Literal["w", "w:gz"] = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return subprocess.run([need("zstd"), "-qc"], input=data, capture_output=True, check=True).stdout


def cpio(data: bytes = b"") -> bytes:
    """A newc archive of one member and its trailer, padded as an initramfs's first part is."""
    out = b""
    for name, text in ((b"kernel/x", data), (b"TRAILER!!!", b"")):
        numbers = (1, 0o100644, 0, 0, 1, 0, len(text), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % number for number in numbers) + name + b"\0"
        out += b"\0" * (-len(out) % 4) + text
        out += b"\0" * (-len(out) % 4)
    return out + b"\0" * (-len(out) % 512)


def ar(members: dict[str, bytes]) -> bytes:
    """An ar archive."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += (
            f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )
    return out


def deb(data: bytes) -> bytes:
    """A Debian package with this as its data."""
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(tarred("control", b"Package: x\n")),
            "data.tar.xz": data,
        }
    )


# What is planted → the rules that name it. Each image holds nothing else.
PLANTS: dict[str, tuple[str, dict[str | bytes, Planted]]] = {
    "an SSH host key": ("ssh-host-key private-key", {"etc/ssh/ssh_host_ed25519_key": File(OPENSSH_KEY.encode(), 0o600)}),
    "an SSH host key's public half": ("ssh-host-key", {"etc/ssh/ssh_host_rsa_key.pub": "ssh-rsa AAAA root@builder\n"}),
    "an SSH host key elsewhere": ("ssh-host-key private-key", {"opt/old/ssh_host_ecdsa_key": OPENSSH_KEY}),
    "a link to a host key": ("ssh-host-key private-key", {"etc/ssh/ssh_host_rsa_key": Link("/opt/k"), "opt/k": OPENSSH_KEY}),
    "dropbear's host key": ("ssh-host-key", {"etc/dropbear/dropbear_ed25519_host_key": b"\0\0\0\x0bssh-ed25519"}),
    "a machine id": ("machine-id", {"etc/machine-id": "0123456789abcdef0123456789abcdef\n"}),
    "D-Bus's machine id": ("machine-id", {"var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n"}),
    "a machine id through a link": ("machine-id", {"etc/machine-id": Link("../usr/lib/id"), "usr/lib/id": "01" * 16}),
    "an NVMe host's id": ("machine-id", {"etc/nvme/hostnqn": "nqn.2014-08.org.nvmexpress:uuid:1\n"}),
    "cloud-init's instance": ("cloud-init", {"var/lib/cloud/instance": Link("/var/lib/cloud/instances/i-1")}),
    "cloud-init's instances": ("cloud-init", {"var/lib/cloud/instances/i-1": Folder()}),
    "cloud-init's semaphore": ("cloud-init", {"var/lib/cloud/sem/config_x.once": ""}),
    "cloud-init's data": ("cloud-init", {"var/lib/cloud/data/instance-id": "i-1\n"}),
    "sudo rights from cloud-init": ("cloud-init", {"etc/sudoers.d/90-cloud-init-users": "a ALL=(ALL) ALL\n"}),
    "a log": ("log", {"var/log/syslog": "Nov 1 builder: hello\n"}),
    "a packed log": ("log", {"var/log/dpkg.log.1.gz": gzip.compress(b"installed\n")}),
    "a log of holes": ("log", {"var/log/lastlog": File(size=292000)}),
    "a log in a linked folder": ("log", {"var/log": Link("/srv/log"), "srv/log/messages": "hello\n"}),
    "a log in /opt": ("log", {"opt/aws/amazon-cloudwatch-agent/logs/a.log": "hello\n"}),
    "a journal": ("log", {"var/log/journal/0123456789abcdef0123456789abcdef": Folder()}),
    "a core dump": ("log", {"root/core": b"\x7fELF\2\1\1" + b"\0" * 9 + b"\4\0\x3e\0"}),
    "a journal by another name": ("log", {"opt/kept": b"LPKSHHRH" + b"\0" * 200}),
    "a journal's file": ("log", {"srv/x.journal": b"LPKSHHRH"}),
    "a crash": ("log", {"var/crash/_usr_bin_x.0.crash": "ProblemType: Crash\n"}),
    "a bash history": ("shell-history", {"root/.bash_history": "mysql -p\n"}),
    "another shell's history": ("shell-history", {"home/edge/.zsh_history": ": 1:0;ls\n"}),
    "Python's history": ("shell-history", {"var/www/.python_history": "import os\n"}),
    "an apt list": ("apt-list", {"var/lib/apt/lists/mirror.example_dists_x_InRelease": "Origin: X\n"}),
    "apt's cache": ("apt-list", {"var/cache/apt/pkgcache.bin": b"\x12\0"}),
    "a downloaded package": ("package-file", {"var/cache/apt/archives/x_1_amd64.deb": b"!<arch>\n"}),
    "a package in /root": ("package-file", {"root/driver.deb": b"!<arch>\n"}),
    "pip's cache": ("package-file", {"root/.cache/pip/http/a": "x"}),
    "dhclient's lease": ("dhcp-lease", {"var/lib/dhcp/dhclient.eth0.leases": "lease {\n}\n"}),
    "dhcpcd's lease": ("dhcp-lease", {"var/lib/dhcpcd/eth0.lease": b"\1\2"}),
    "networkd's lease": ("dhcp-lease log", {"run/systemd/netif/leases/2": "ADDRESS=192.0.2.1\n"}),
    "NetworkManager's lease": ("dhcp-lease machine-state", {"var/lib/NetworkManager/internal-1-eth0.lease": "A=1\n"}),
    "a random seed": ("random-seed", {"var/lib/systemd/random-seed": b"\x01" * 512}),
    "systemd's credential key": ("random-seed", {"var/lib/systemd/credential.secret": File(b"\2" * 64, 0o600)}),
    "gpg's seed": ("random-seed", {"root/.gnupg/random_seed": b"\4" * 600}),
    "urandom's seed": ("random-seed", {"var/lib/urandom/random-seed": b"\3" * 512}),
    "authorized keys": ("ssh-user", {"root/.ssh/authorized_keys": "ssh-ed25519 AAAA me@laptop\n"}),
    "keys that root may log in with": ("ssh-user", {"etc/ssh/authorized_keys.d/root": PUBLIC}),
    "authorized keys with something else": ("ssh-user", {"etc/ssh/authorized_keys.d/edge": f"{PUBLIC}hunter22\n"}),
    "authorized keys for cloud-init": ("ssh-user",
        {"etc/cloud/cloud.cfg.d/9.cfg": f"users:\n  - name: me\n    ssh_authorized_keys:\n      - {PUBLIC}"}),
    "known hosts": ("ssh-user", {"home/edge/.ssh/known_hosts": "host ssh-ed25519 AAAA\n"}),
    "a user's key": ("ssh-user private-key", {"home/edge/.ssh/id_rsa": File(RSA_KEY.encode(), 0o600)}),
    "a password": ("password", {"etc/shadow": File(f"root:{HASH}:20000:0:99999:7:::\n".encode(), 0o640)}),
    "a locked password": ("password", {"etc/shadow": File(f"root:!{HASH}:20000::::::\n".encode(), 0o640)}),
    "an old password file": ("password", {"etc/shadow-": File(b"edge:aa1BcDeFgHiJk:20000::::::\n", 0o640)}),
    "an empty password": ("password", {"etc/shadow": File(b"root::20000:0:99999:7:::\n", 0o640)}),
    "an empty password in passwd": ("password", {"etc/passwd": "root::0:0:root:/root:/bin/sh\n"}),
    "a hash in passwd": ("password", {"etc/passwd": "root:aa1BcDeFgHiJk:0:0:root:/root:/bin/sh\n"}),
    "a group's password": ("password", {"etc/gshadow": File(f"staff:{HASH}::\n".encode(), 0o640)}),
    "an editor's backup of shadow": ("password", {"etc/shadow~": File(b"root:aa1BcDeFgHiJk:1::::::\n", 0o640)}),
    "a backup of shadow": ("password", {"var/backups/shadow.bak": f"root:{HASH}:1::::::\n"}),
    "a hash anywhere": ("password", {"opt/app/users": f"admin:{HASH}\n"}),
    "a password for cloud-init": ("password", {"etc/cloud/cloud.cfg.d/9.cfg": "users:\n  - plain_text_passwd: hunter22\n"}),
    "a debconf password": ("password", {"var/cache/debconf/passwords.dat": "Name: x/root-pass\nValue: hunter22\n"}),
    "a camera's login": ("password", {"etc/edge/ingest.conf": "source=rtsp://admin:hunter22@192.0.2.9/1\n"}),
    "a password in a setting": ("password", {"etc/default/app": "DB_PASSWORD=hunter22x\n"}),
    "a token in root's shell": ("password", {"root/.bashrc": "alias l=ls\nexport API_TOKEN=hunter22x\n"}),
    "a token in everybody's shell": ("password", {"etc/bash.bashrc": "export API_TOKEN='hunter22x'\n"}),
    "a token in a unit of the recipe": ("password",
        {"usr/lib/systemd/system/a.service": '[Service]\nEnvironment=A=1 "API_TOKEN=hunter22x"\n'}),
    "a token in a program's own folder of /etc": ("password", {"etc/video-ingest/app.yaml": "api:\n  token: hunter22x\n"}),
    "a password in one line of JSON": ("password", {"etc/edge/app.json": '{"a": 1, "clientSecret": "hunter22x"}'}),
    "a password below /usr/local/etc": ("password", {"usr/local/etc/app.conf": "password = hunter22x\n"}),
    "a share's password": ("password", {"etc/fstab": "//nas/x /mnt cifs username=a,password=hunter22 0 0\n"}),
    "a private key in /opt": ("private-key", {"opt/app/tls.pem": RSA_KEY}),
    "a private key in a package's documentation": ("private-key", {"usr/share/doc/x/planted.txt": RSA_KEY}),
    "a changed file of a package": ("private-key", {"usr/share/doc/x/examples.txt": f"Another:\n{RSA_KEY}"}),
    "a private key in one line of JSON": ("private-key", {"srv/sa.json": json.dumps({"private_key": RSA_KEY})}),
    "a private key in base64": ("private-key", {"etc/x.yaml": f"content: {base64.b64encode(RSA_KEY.encode()).decode()}\n"}),
    "a private key in gzip": ("private-key", {"var/backups/etc.gz": gzip.compress(OPENSSH_KEY.encode())}),
    "a private key in xz": ("private-key", {"opt/x.xz": lzma.compress(OPENSSH_KEY.encode())}),
    "a private key in bzip2": ("private-key", {"opt/x.bz2": bz2.compress(OPENSSH_KEY.encode())}),
    "a private key in a zip": ("private-key", {"opt/x.zip": zipped("a/b.pem", RSA_KEY)}),
    "a private key in a zip in gzip": ("private-key", {"opt/y.gz": gzip.compress(zipped("k", RSA_KEY))}),
    "a private key in a layer of a container": ("private-key",
        {"opt/app.tar": tarred("layer.tar.gz", tarred("etc/k.pem", RSA_KEY.encode(), "w:gz"))}),
    "a private key in a tar in a tar": ("private-key",
        {"opt/app.tgz": tarred("a.tgz", tarred("b.tgz", tarred("k.pem", RSA_KEY.encode()), "w:gz"), "w:gz")}),
    "a PGP secret key": ("private-key", {"srv/backup.asc": PGP_KEY}),
    "a private JSON web key": ("private-key credentials-file",
        {"etc/docker/key.json": json.dumps({"crv": "P-256", "d": "k9" * 20, "kty": "EC"})}),
    "a WireGuard key": ("private-key vpn", {"etc/wireguard/wg0.conf": f"[Interface]\nPrivateKey = {WG_KEY}\n"}),
    "a WireGuard key elsewhere": ("private-key psk", {"opt/wg.conf": f"PrivateKey={WG_KEY}\n[Peer]\nPresharedKey = {WG_KEY}\n"}),
    "a private key in an odd folder": ("private-key", {"lost/x": RSA_KEY}),
    "AWS credentials": ("credentials-file aws-key",
        {"root/.aws/credentials": f"[default]\naws_access_key_id = {AWS_ID}\naws_secret_access_key = {AWS_SECRET}\n"}),
    "an AWS key id in a unit": ("aws-key",
        {"etc/systemd/system/a.service": f"[Service]\nEnvironment=AWS_ACCESS_KEY_ID={AWS_ID}\n"}),
    "AWS's own example": ("aws-key", {"home/edge/x.sh": "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\n"}),
    "an IPsec PSK": ("psk vpn", {"etc/ipsec.secrets": '198.51.100.1 : PSK "hunter22hunter22"\n'}),
    "a swanctl secret": ("vpn", {"etc/swanctl/conf.d/site.conf": "connections {\n}\n"}),
    "a Wi-Fi key": ("psk password credentials-file",
        {"etc/wpa_supplicant/wpa_supplicant.conf": 'network={\n  psk="hunter22hunter22"\n}\n'}),
    "a registry's login": ("registry-auth", {"root/.docker/config.json": '{"auths": {"r.example": {"auth": "dXNlcjpwYXNz"}}}'}),
    "a GitHub token": ("token", {"usr/local/bin/x": f"#!/bin/sh\ncurl -H 'token {GITHUB}'\n"}),
    "a credential for systemd": ("credentials-file", {"etc/credstore/db": "hunter22"}),
    "a .netrc": ("credentials-file", {"root/.netrc": "machine x login y password z\n"}),
    "a .pgpass": ("credentials-file", {"home/edge/.pgpass": "h:5432:d:u:p\n"}),
    "git's credentials": ("credentials-file password", {"root/.git-credentials": "https://me:hunter22@git.example\n"}),
    "apt's credentials": ("credentials-file", {"etc/apt/auth.conf.d/a.conf": "machine x login y password z\n"}),
    "a site's id": ("site-data", {"etc/environment": 'SITE_ID="SITE-2847"\n'}),
    "a site's id, exported": ("site-data", {"etc/profile.d/site.sh": "export SITE_ID=SITE-2847\n"}),
    "a site's cameras": ("site-data", {"etc/edge/cameras": "192.0.2.21\n"}),
    "a site's settings": ("site-data", {"etc/edge/site.env": "VPN_TYPE=wireguard\n"}),
    "a seed": ("site-data", {"var/lib/cloud/seed/nocloud/user-data": "#cloud-config\n", "var/lib/cloud/seed/nocloud": Folder()}),
    "a seed elsewhere": ("site-data", {"srv/cidata/meta-data": "instance-id: i-1\n"}),
    "a seed in cloud-init's settings": ("site-data",
        {"etc/cloud/cloud.cfg.d/99-installer.cfg": 'datasource:\n  None:\n    userdata_raw: "#cloud-config"\n'}),
    "a device's state": ("site-data", {"data/edge/state.json": "{}\n"}),
    "a site's tunnel": ("vpn", {"etc/ipsec.conf": "conn site\n  right=198.51.100.1\n"}),
    "a site's time server": ("time-source", {"etc/chrony/sources.d/site.sources": "server ntp.site.example iburst\n"}),
    "an address": ("network", {"etc/netplan/10-site.yaml": "network:\n  ethernets:\n    eth0:\n      addresses: [192.0.2.5/24]\n"}),
    "an address in cloud-init's settings": ("network",
        {"etc/cloud/cloud.cfg.d/50-curtin.cfg": "network:\n  ethernets:\n    e:\n      addresses: [192.0.2.5/24]\n"}),
    "an address of networkd's": ("network", {"etc/systemd/network/10-eth0.network": "[Network]\nAddress=192.0.2.5/24\n"}),
    "the builder's name server": ("network", {"etc/resolv.conf": "nameserver 192.0.2.53\n"}),
    "a host's address": ("network", {"etc/hosts": "127.0.0.1 localhost\n192.0.2.7 nvr\n"}),
    "the builder's name": ("network", {"etc/hostname": "runner-17\n"}),
    "a container": ("machine-state", {"var/lib/docker/engine-id": "1-2-3\n"}),
    "fail2ban's database": ("machine-state", {"var/lib/fail2ban/fail2ban.sqlite3": b"SQLite format 3\0"}),
    "a service's token": ("machine-state credentials-file",
        {"var/lib/rancher/k3s/server/token": "K10::server:hunter22\n", "var/lib/containerd/x": "y"}),
    "a swap file": ("leftover", {"srv/swap": File(b"\0" * 4086 + b"SWAPSPACE2", 0o600, size=1 << 20)}),
    "an editor's copy": ("leftover", {"etc/.shadow.swp": b"b0VIM 8.2"}),
    "a temporary file": ("leftover", {"tmp/x": ""}),
    "something in lost+found": ("leftover", {"lost+found/#123": "x"}),
    "a set-uid program": ("setuid", {"usr/local/bin/x": File(b"\x7fELF", 0o4755)}),
    "a set-gid program": ("setuid", {"opt/x": File(b"\x7fELF", 0o2755)}),
    "a file that anybody may write": ("world-writable", {"etc/cron.d/x": File(b"# x\n", 0o666)}),
    "a folder that anybody may write": ("world-writable", {"srv/drop": Folder(0o777)}),
    "a readable password file": ("world-writable", {"etc/shadow": File(b"root:*:1::::::\n", 0o644)}),
    "a clone": ("leftover", {"opt/app/.git/HEAD": "ref: refs/heads/main\n", "opt/app/.git/objects/ab/cd": b"x"}),
    "a work tree of a clone": ("leftover", {"srv/app/.git": "gitdir: /home/me/app/.git/worktrees/app\n"}),
    "a password as an argument in a unit": ("password",
        {"etc/systemd/system/a.service": "[Service]\nExecStart=/usr/bin/app --user x --password hunter22x\n"}),
    "a token as an argument in a crontab": ("password",
        {"etc/cron.d/push": "5 * * * * root push --api-token=hunter22x >/dev/null\n"}),
    "a password in a crontab's address": ("password",
        {"var/spool/cron/crontabs/root": "5 * * * * psql 'host=db password=hunter22x'\n"}),
    "a password in a script of /etc": ("password", {"etc/cron.daily/dump": '#!/bin/sh\nmysqldump --password="hunter22x" app\n'}),
    "a private key in lzma": ("private-key", {"opt/x.lzma": lzma.compress(OPENSSH_KEY.encode(), lzma.FORMAT_ALONE)}),
    "a private key in a package that is no .deb by name": ("private-key",
        {"opt/kept": deb(lzma.compress(tarred("etc/k.pem", RSA_KEY.encode())))}),
    "a private key in an ar archive": ("private-key", {"opt/x.a": ar({"k.pem": RSA_KEY.encode()})}),
    "a private key in UTF-16": ("private-key", {"srv/k.pem": RSA_KEY.encode("utf-16")}),
    "a private key in UTF-16 of the other order": ("private-key", {"srv/k.pem": b"x" + RSA_KEY.encode("utf-16-be")}),
    "lz4": ("unread", {"opt/x.lz4": b"\x04\x22\x4d\x18abcdef"}),
    "lz4 in gzip": ("unread", {"boot/initrd.img": gzip.compress(b"\x04\x22\x4d\x18abcdef")}),
    "a name with a line end": ("ssh-user", {b"home/ed\nge/.ssh/id_x": "key\n"}),
    "a name that is no UTF-8": ("shell-history", {b"home/\xff\xfe/.bash_history": "ls\n"}),
    "a hard link": ("private-key", {"srv/a": RSA_KEY, "srv/b": Hard("srv/a")}),
    "a folder that nobody may read": ("shell-history", {"srv/closed/.bash_history": File(b"ls\n", 0o000)}),
    "a key behind a hole": ("private-key", {"srv/sparse": File(b"\0" * 8192 + RSA_KEY.encode(), size=3 << 20)}),
    "a key across two pieces": ("private-key", {"srv/big": b"x" * ((1 << 20) - 100) + b"\n" + RSA_KEY.encode()}),
}  # fmt: skip


@pytest.mark.usefixtures("keys_once")
@pytest.mark.parametrize("case", sorted(PLANTS))
def test_what_is_planted_is_found(case: str, tmp_path: Path, release: tuple[bytes, str]) -> None:
    rules, planted = PLANTS[case]
    faults = inspect(with_planted(tmp_path, release, planted), allowed=[release[1]])
    assert {fault.rule for fault in faults} == set(rules.split()), faults
    assert all(fault.remedy == BY_NAME[fault.rule].remedy and fault.path.startswith("/") for fault in faults)
    told = repr(faults)
    assert not any(
        secret in told for secret in ("hunter22", AWS_ID, AWS_SECRET, WG_KEY, GITHUB, "MIIE", "Kf9x", "SITE-2847")
    )
    assert "\n" not in "".join(fault.path + fault.what for fault in faults)


NEAR_MISSES: dict[str, dict[str | bytes, Planted]] = {
    "nothing planted": {},
    "empty logs": {"var/log/syslog": "", "var/log/chrony": Folder()},
    "an empty .ssh": {"home/edge/.ssh": Folder(0o700), "home/edge/.ssh/authorized_keys": ""},
    "whom the fleet lets in": {"etc/ssh/authorized_keys.d/edge": f'# operators\n{PUBLIC}\nfrom="192.0.2.0/24" sk-{PUBLIC}'},
    "names of services": {"etc/nsswitch.conf": "passwd:         compat systemd\nshadow: files\n"},
    "settings without a secret": {
        "etc/app/a.json": '{"password": "", "token": null, "properties": {"secret": {"type": "string"}}, "tokens": "many more"}',
        "etc/cloud/cloud.cfg.d/a.cfg": "datasource_list: [NoCloud, None]\nusers: []\nssh_pwauth: false\n",
        "etc/systemd/system/a.service": "[Service]\nEnvironment=TOKEN_FILE=/run/token\nLoadCredential=token:/run/t\n",
        "root/.bashrc": "[ -n \"$TOKEN\" ] && export TOKEN=$TOKEN\n",
    },
    "a program": {"usr/local/bin/y": b"\x7fELF\2\1\1" + b"\0" * 9 + b"\2\0\x3e\0"},
    "a public key": {"etc/ssl/certs/x.pem": RSA_KEY.replace("PRIVATE", "PUBLIC")},
    "a certificate": {"etc/ssl/certs/x.pem": RSA_KEY.replace("RSA PRIVATE KEY", "CERTIFICATE")},
    "the words alone": {"usr/local/bin/x": 'if "-----BEGIN OPENSSH PRIVATE KEY-----" in text: pass\n'},
    "an example cut short": {
        "usr/share/x/README": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC...\n-----END RSA PRIVATE KEY-----\n",
    },
    "a program's constants": {"usr/local/bin/y": b"\0-----BEGIN PRIVATE KEY-----\0-----END PRIVATE KEY-----\0AKIA\0"},
    "AWS's example in a program": {"usr/local/aws-cli/examples.rst": "AKIAIOSFODNN7EXAMPLE\n"},
    "a longer word with AKIA": {"usr/share/x/blob": "x" + AWS_ID + "\n"},
    "a credential helper": {"root/.docker/config.json": '{"credHelpers": {"r.example": "ecr-login"}, "auths": {}}'},
    "a placeholder": {"etc/default/app": "PASSWORD=${PASSWORD}\nTOKEN_FILE=/run/token\nSECRET=\n#TOKEN=hunter22hunter\n"},
    "an address without a login": {"etc/apt/sources.list": "deb https://mirror.example:8443/debian x main\n"},
    "an example of a login": {"usr/local/share/x": "https://admin:hunter22@host.example/\n"},
    "a site's id that is not set": {"etc/default/edge": "SITE_ID=\n", "etc/profile.d/e.sh": "export SITE_ID=${SITE_ID:-golden}\n"},
    "a site's id in a comment": {"etc/environment": "# SITE_ID=SITE-2847\nSITE_ID='golden'\n"},
    "locked accounts": {"etc/shadow": File(b"root:!:1::::::\na:*LK*:1::::::\n".replace(b"*LK*", b"!!"), 0o600)},
    "an idle ipsec.conf": {
        "etc/ipsec.conf": "config setup\nconn %default\n  ikelifetime=60m\n", "etc/ipsec.secrets": "# x : PSK \"y\"\n",
    },
    "DHCP for every port": {"etc/netplan/1.yaml": "network:\n  ethernets:\n    e:\n      dhcp4: true\n      # addresses: [x]\n"},
    "the stub resolver": {"etc/resolv.conf": "nameserver 127.0.0.53\noptions edns0\nsearch .\n"},
    "a golden name": {"etc/hostname": "edge-golden\n"},
    "a default time source": {"etc/chrony/conf.d/x.conf": "# server x\nmakestep 1 3\n"},
    "a shared folder": {"srv/drop": Folder(0o1777)},
    "a key that a package ships": {"etc/copy-of-example": Hard("usr/share/doc/x/examples.txt")},
    "a link out of the image": {"etc/ssh/ssh_host_rsa_key": Link("/data/ssh/ssh_host_rsa_key"), "var/log": Link("/data/log")},
    "links in a ring": {"srv/a": Link("b"), "srv/b": Link("a"), "srv/here": Link("."), "srv/up": Link("../..")},
    "a link to the root": {"srv/root": Link("/")},
    "a clone's settings and an empty folder": {"opt/app/.gitignore": "*.o\n", "opt/app/.git": Folder(), "srv/a.git/HEAD": "x"},
    "arguments without a secret": {
        "etc/systemd/system/a.service": "[Service]\nExecStart=a --password-file /run/p --token ${TOKEN} --password-stdin\n"
        "ExecStart=b --secret=%d/secret --password --verbose\n# ExecStart=c --password hunter22x\n",
        "etc/cron.d/a": "# x --password=hunter22x\n5 * * * * root a --token \"$(cat /run/token)\" --passphrase-fd 3\n",
        "etc/init.d/a": "echo 'usage: a --password PASSWORD --token <token> --api-key=...'\n",
        "usr/local/bin/a": "#!/bin/sh\nparse --password argument\n",
    },
    "packages and archives without a secret": {
        "opt/x.a": ar({"a.o": b"\x7fELF"}), "opt/y": deb(b"x"), "opt/z.a": b"!<arch>\ndamaged",
        "opt/l": b"\x5d\0\0\x80\0" + b"\xff" * 9,
        "opt/n.a": b"!<arch>\n" + b"x/".ljust(48) + b"-60       `\n",
    },
    "a public key in UTF-16": {
        "srv/k": RSA_KEY.replace("PRIVATE", "PUBLIC").encode("utf-16"), "srv/w": "-----BEGIN ".encode("utf-16"),
    },
    "packed text": {"opt/x.gz": gzip.compress(b"nothing\n"), "opt/y.zip": zipped("a", "b"), "opt/z.gz": b"\x1f\x8b\x08 damaged"},
    "a script with a zip's mark": {"usr/local/bin/z": b"#!/bin/sh\necho x\n"},
    "journald's settings": {"etc/systemd/journald.conf.d/x.conf": "[Journal]\nStorage=volatile\n"},
    "a package of the language": {"usr/lib/python3/dist-packages/logging.log": "", "usr/share/x/a.log": "test data\n"},
}  # fmt: skip


@pytest.mark.usefixtures("keys_once")
@pytest.mark.parametrize("case", sorted(NEAR_MISSES))
def test_what_only_looks_like_it_passes(case: str, tmp_path: Path, release: tuple[bytes, str]) -> None:
    assert inspect(with_planted(tmp_path, release, NEAR_MISSES[case]), allowed=[release[1]]) == ()


def test_every_rule_of_the_table_is_planted_somewhere() -> None:
    elsewhere = {
        "release-keys",
        "assignment-keys",
        "residue",
        "file-system",
        "artifact",
        "device-node",
    }  # below, and in test_gate_*.py
    planted = {rule for rules, _ in PLANTS.values() for rule in rules.split()}
    assert planted | elsewhere == {rule.name for rule in RULES} and not planted & elsewhere
    assert len(PLANTS) >= 100


@pytest.mark.usefixtures("keys_once")
def test_every_fault_is_named_in_one_run(tmp_path: Path, release: tuple[bytes, str]) -> None:
    together = (
        "a log",
        "a machine id",
        "a bash history",
        "authorized keys",
        "a private key in /opt",
        "a set-uid program",
    )
    planted: dict[str | bytes, Planted] = {}
    for case in together:
        planted |= PLANTS[case][1]
    faults = inspect(with_planted(tmp_path, release, planted), allowed=[release[1]])
    assert {fault.rule for fault in faults} == {rule for case in together for rule in PLANTS[case][0].split()}
    assert list(faults) == sorted(faults)


@pytest.mark.usefixtures("keys_once")
def test_both_names_of_a_file_are_told_and_a_line_end_is_escaped(tmp_path: Path, release: tuple[bytes, str]) -> None:
    planted: dict[str | bytes, Planted] = {**PLANTS["a hard link"][1], **PLANTS["a name with a line end"][1]}
    faults = inspect(with_planted(tmp_path, release, planted))
    assert [fault.path for fault in faults] == ["/home/ed\\nge/.ssh/id_x", "/srv/a", "/srv/b"]


@pytest.mark.usefixtures("keys_once")
def test_an_initramfs_is_looked_into(tmp_path: Path, release: tuple[bytes, str]) -> None:
    inner = cpio(RSA_KEY.encode())
    for name, packed in (("gzip", gzip.compress(inner)), ("zstd", zstd(inner)), ("plain", inner)):
        image = with_planted(tmp_path / name, release, {"boot/initrd.img": cpio(b"microcode") + packed})
        assert [(fault.rule, fault.path) for fault in inspect(image)] == [("private-key", "/boot/initrd.img")]


@pytest.mark.usefixtures("keys_once")
class TestWhatNoFileOwns:
    """Bytes that are in the image and in no file."""

    def clean(self, folder: Path, release: tuple[bytes, str]) -> Path:
        return with_planted(folder, release, {"srv/secret": RSA_KEY, "srv/other": "x"})

    def rules(self, image: Path) -> list[tuple[str, str]]:
        return [(fault.rule, fault.path) for fault in inspect(image)]

    def test_a_deleted_file_is_still_there(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = self.clean(tmp_path, release)
        debugfs(image, "rm srv/secret")
        found = self.rules(image)
        assert ("residue", "<free blocks>") in found and {rule for rule, _ in found} == {"residue"}

    def test_bytes_behind_a_file_and_behind_the_image(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {"srv/other": "x"})
        data = image.read_bytes()
        at = int(debugfs(image, "blocks srv/other").splitlines()[1])
        size = 1024 << int.from_bytes(data[1024 + 24 : 1024 + 28], "little")
        spoilt = bytearray(data)
        spoilt[at * size + 100] = 7
        image.write_bytes(bytes(spoilt))
        assert self.rules(image) == [("residue", "/srv/other")]
        image.write_bytes(data + b"secret")
        assert self.rules(image) == [("residue", "<file>")]
        image.write_bytes(b"boot" + data[4:])
        assert self.rules(image) == [("residue", "<file>")]

    def test_a_device_node(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {"dev": Folder(), "srv": Folder()})
        debugfs(image, "cd /dev", "mknod null c 1 3", "cd /srv", "mknod sda b 8 0")
        assert self.rules(image) == [("device-node", "/srv/sda")]

    def test_a_damaged_file_system(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {})
        debugfs(image, "set_inode_field etc links_count 9")
        assert self.rules(image) == [("file-system", "<file system>")]

    def test_one_that_was_not_unmounted(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {})
        debugfs(image, "feature +needs_recovery")
        assert "file-system" in {rule for rule, _ in self.rules(image)}

    def test_a_secret_in_an_extended_attribute(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {"srv/other": "x"})
        debugfs(image, f"ea_set srv/other user.note {GITHUB}")
        assert self.rules(image) == [("token", "/srv/other")]

    def test_capabilities(self, tmp_path: Path, release: tuple[bytes, str]) -> None:
        image = with_planted(tmp_path, release, {"opt/ping": File(b"\x7fELF", 0o755)})
        debugfs(image, "ea_set opt/ping security.capability abcdefgh")
        assert self.rules(image) == [("setuid", "/opt/ping")]


@pytest.mark.parametrize("data", [b"", b"no image", b"\0" * 100_000, b"\x28\xb5\x2f\xfd packed"])
def test_what_is_no_image_is_said_to_be_none(data: bytes, tmp_path: Path) -> None:
    need("e2fsck", "e2fsprogs")
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TerminalError, match="cannot be read as an ext4 file system"):
        inspect(tmp_path / "x")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="cannot be read"):
        inspect(tmp_path / "x")


def test_faults_are_plain_values() -> None:
    one, other = Fault("/a", "log", "a log", "remove it"), Fault("/b", "log", "a log", "remove it")
    assert one < other and one == Fault("/a", "log", "a log", "remove it")
