"""A site's spec → the cloud-init files that make a device that site's: user-data, meta-data, network-config.

Decides what the files say and when a site's configuration counts as changed (`config_digests`). Never touches a file, a
secret store or a device: secrets stay references until `resolve`, which the server calls in memory at the moment a
device fetches its files. Called by `repo.load` and the controller (digests), the server (files) and `reconciler site
render` (files, secrets masked).

Three rules keep this safe. A value of the spec is only ever a whole YAML string or a whole line of a file, of a type
that the model has checked, never part of a shell line. A dumper quotes every string, so `NO` and `02:00` survive. The
files are written by cloud-init with an owner and a mode, those with a secret as 0600.
Source: design §1 "Site configuration", §4.10, §5.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from reconciler.model.desired import FleetSpec, SiteSpec

if TYPE_CHECKING:
    from yaml import SafeDumper

USER_DATA, META_DATA, NETWORK_CONFIG = "user-data", "meta-data", "network-config"

VPN_FILES = {"wireguard": "/etc/wireguard/wg0.conf", "ipsec": "/etc/swanctl/conf.d/site.conf"}
VPN_UNITS = {"wireguard": "wg-quick@wg0.service", "ipsec": "strongswan.service"}

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARK = "# Written by cloud-init from the site's spec. Changes here are lost.\n"

# DHCP on every wired port. The MAC address identifies the device, not the machine-id: that one differs between the two
# slots, and the device would come back from an update under another address. A port without a cable must not delay
# the boot.
_NETWORK: Mapping[str, Any] = {
    "version": 2,
    "ethernets": {"wired": {"match": {"name": "e*"}, "dhcp4": True, "dhcp-identifier": "mac", "optional": True}},
}


class UnusableSecret(ValueError):
    """A secret's value cannot be used for the file that needs it. The message names the reference, never the value."""


_SAVE_CONFIG = re.compile(r"(?im)^[ \t]*SaveConfig[ \t]*=[ \t]*true\b")
_MASK = "filled in when the device fetches this file"


@dataclass(frozen=True, slots=True)
class SecretText:
    """Stands in a rendering where a secret's value will stand on the device."""

    reference: str

    def __str__(self) -> str:
        return f"(the secret {self.reference}, {_MASK})\n"


@dataclass(frozen=True, slots=True)
class Rendering:
    """The three files of a site (of one of its devices, where `device` is set), with secrets as references.

    `spec_digest` is `sha256:…` over what the files say with references in them: the same for every device of the
    site, the same bytes for the same spec. YAML is written only when a text is asked for; digests never need it.
    """

    site: str
    device: str | None
    tree: Mapping[str, Any]
    secret_refs: tuple[str, ...]
    spec_digest: str

    @property
    def user_data(self) -> str:
        """cloud-config; where a secret goes, a sentence that names its reference."""
        return _user_data(self.tree, str)

    @property
    def meta_data(self) -> str:
        """Instance id and host name."""
        return _meta_data(self, self.spec_digest)

    @property
    def network_config(self) -> str:
        """Network configuration, version 2 (netplan's)."""
        return _dump(_NETWORK)

    def files(self) -> dict[str, str]:
        """File name → text, secrets masked: what a person may look at."""
        return {USER_DATA: self.user_data, META_DATA: self.meta_data, NETWORK_CONFIG: self.network_config}


def render_site(name: str, spec: SiteSpec, fleet: FleetSpec, device: str | None = None) -> Rendering:
    """Render a site, for `device` if one is named. ValueError: the site has no such device."""
    if device is not None and device not in spec.devices:
        near = get_close_matches(device, spec.devices, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(spec.devices)}"
        raise ValueError(f"site {name!r} has no device {device!r}; {hint}")
    tree = _tree(name, spec, fleet)
    return Rendering(name, device, tree, _references(spec), _spec_digest(tree))


def is_masked(user_data: bytes) -> bool:
    """Whether a secret's reference stands where a device needs its value: such files are for people to look at."""
    return f", {_MASK})".encode() in user_data


def secret_refs(sites: Iterable[SiteSpec]) -> tuple[str, ...]:
    """Every secret that the sites refer to, sorted: what to ask the secret store's versions for."""
    return tuple(sorted({reference for spec in sites for reference in _references(spec)}))


def config_digest(name: str, spec: SiteSpec, fleet: FleetSpec, secret_versions: Mapping[str, str]) -> str | None:
    """The digest of one site's configuration, over what it says and the versions of its secrets, never their values.

    None where a secret has no version: it does not exist, so there is nothing yet that could be sent to a device.
    """
    references = _references(spec)
    if any(reference not in secret_versions for reference in references):
        return None
    return _config_digest(_spec_digest(_tree(name, spec, fleet)), references, secret_versions)


def config_digests(
    sites: Mapping[str, SiteSpec], fleet: FleetSpec, secret_versions: Mapping[str, str]
) -> dict[str, str]:
    """Site → digest of its configuration. Sites that refer to a secret without a version are left out."""
    digests = {}
    for name, spec in sites.items():
        digest = config_digest(name, spec, fleet, secret_versions)
        if digest is not None:
            digests[name] = digest
    return digests


def resolve(rendering: Rendering, value: Callable[[str], str], config: str | None = None) -> dict[str, bytes]:
    """The files as a device gets them: file name → UTF-8 bytes, secrets filled in. Keep the result in memory only.

    `value` reads a secret by reference; what it raises passes through. `config` is the configuration's digest: it
    becomes part of the instance id, so that a slot that ran cloud-init before a secret was rotated runs it again.
    UnusableSecret: the value is empty, binary, or a JSON object without an entry for the device.
    """
    texts = {reference: _usable(reference, value(reference), rendering.device) for reference in rendering.secret_refs}
    files = {
        USER_DATA: _user_data(rendering.tree, lambda secret: texts[secret.reference]),
        META_DATA: _meta_data(rendering, config or rendering.spec_digest),
        NETWORK_CONFIG: rendering.network_config,
    }
    return {name: text.encode() for name, text in files.items()}


# ---------------------------------------------------------------- what the files say


def _references(spec: SiteSpec) -> tuple[str, ...]:
    return (spec.vpn.secret_ref,) if spec.vpn is not None else ()


def _tree(name: str, spec: SiteSpec, fleet: FleetSpec) -> dict[str, Any]:
    """The cloud-config of a site. Everything in it is the same for all its devices.

    Left out on purpose: the time zone (devices run on UTC; windows reach them as UTC intervals), packages (the image
    holds them, pinned), users and keys (the image's own).
    """
    vpn = spec.vpn.type if spec.vpn is not None else "none"
    files = [
        _file("/etc/environment", f'PATH="{_PATH}"\nSITE_ID="{name}"\n'),
        _file("/etc/edge/site.env", f"{_MARK}REGISTRY={fleet.registry}\nVPN_TYPE={vpn}\n"),
        _file("/etc/edge/cameras", _MARK + "".join(f"{camera}\n" for camera in spec.cameras)),
        _file("/etc/chrony/sources.d/site.sources", _MARK + "".join(f"server {host} iburst\n" for host in spec.ntp)),
    ]
    commands = [["systemctl", "try-restart", "chrony.service"]]
    for kind, path in VPN_FILES.items():
        if kind == vpn and spec.vpn is not None:
            files.append(_file(path, SecretText(spec.vpn.secret_ref), "0600"))
            commands += [["systemctl", "enable", VPN_UNITS[kind]], ["systemctl", "restart", VPN_UNITS[kind]]]
        else:
            # The site may have had the other kind before, or one at all.
            commands += [["systemctl", "disable", "--now", VPN_UNITS[kind]], ["rm", "-f", path]]
    # Later boots start it by themselves; this is for the first one, where its condition (site.env) came too late. It
    # pulls its container image, so cloud-init must not wait for it.
    commands.append(["systemctl", "start", "--no-block", "video-ingest.service"])
    return {
        # The image holds no host keys, so they are made at the first boot of a slot. Without this line they would
        # change with every change of the configuration, since the instance id does.
        "ssh_deletekeys": False,
        "write_files": files,
        "runcmd": commands,
    }


def _file(path: str, content: str | SecretText, mode: str = "0644") -> dict[str, Any]:
    return {"path": path, "owner": "root:root", "permissions": mode, "content": content}


def _usable(reference: str, value: str, device: str | None) -> str:
    """A secret's text for a device: the value itself, or the device's entry where the value is a JSON object.

    Devices of one site that each need a key of their own share one reference that way.
    """
    if value.lstrip().startswith("{"):
        value = _entry(reference, value, device)
    if not value.strip():
        raise UnusableSecret(f"the secret {reference} is empty; store the tunnel's configuration in it")
    if any(ord(char) < 32 and char not in "\t\r\n" for char in value):
        raise UnusableSecret(
            f"the secret {reference} holds control characters; store the tunnel's configuration as plain text"
        )
    if _SAVE_CONFIG.search(value):
        # wg-quick would write the old tunnel's state over a new configuration when it ends the old one.
        raise UnusableSecret(
            f"the secret {reference} sets SaveConfig; remove that line: a device must not write over it"
        )
    return value if value.endswith("\n") else value + "\n"


def _entry(reference: str, value: str, device: str | None) -> str:
    try:
        entries = json.loads(value)
    except (ValueError, RecursionError):
        # `from None` and no detail: the parser's own message could quote the value.
        raise UnusableSecret(
            f"the secret {reference} begins like a JSON object and is none; store plain text, or device to text as JSON"
        ) from None
    if device is None or not isinstance(entries.get(device), str):
        raise UnusableSecret(
            f"the secret {reference} has no text for device {device or '(none named)'}; add one under the device's name"
        )
    return str(entries[device])


# ---------------------------------------------------------------- digests and YAML


def _spec_digest(tree: Mapping[str, Any]) -> str:
    canonical = _ENCODER.encode({USER_DATA: tree, NETWORK_CONFIG: _NETWORK})
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _config_digest(spec_digest: str, references: tuple[str, ...], versions: Mapping[str, str]) -> str:
    canonical = _ENCODER.encode({"rendering": spec_digest, "secrets": {name: versions[name] for name in references}})
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _reference(value: object) -> dict[str, str]:
    if isinstance(value, SecretText):
        return {"secretRef": value.reference}
    raise TypeError(f"a rendering holds a {type(value).__name__}")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_reference)


def _user_data(tree: Mapping[str, Any], text: Callable[[SecretText], str]) -> str:
    files = [
        {**file, "content": text(file["content"]) if isinstance(file["content"], SecretText) else file["content"]}
        for file in tree["write_files"]
    ]
    return "#cloud-config\n" + _dump({**tree, "write_files": files})


def _meta_data(rendering: Rendering, digest: str) -> str:
    """cloud-init runs once per instance id and slot: with the digest in it, a slot that knows an older configuration
    runs it again."""
    who = rendering.device or rendering.site
    instance = f"{who}-{digest.removeprefix('sha256:')[:16]}"
    return _dump({"instance-id": instance, "local-hostname": who.lower().rstrip("-")})


def _dump(tree: Mapping[str, Any]) -> str:
    """YAML with every string value quoted, or a literal block where it has lines; keys in the order written here."""
    import yaml

    return str(yaml.dump(dict(tree), Dumper=_dumper(), sort_keys=False, width=10_000, allow_unicode=False))


@cache
def _dumper() -> type[SafeDumper]:
    """A dumper that quotes what a reader could take for something else. Made once, when a text is first wanted."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_str(self, data: str) -> Any:
            return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else '"')

        def represent_list(self, data: Iterable[Any]) -> Any:
            # A command is one line: ["rm", "-f", "/etc/wireguard/wg0.conf"].
            items = list(data)
            flow = all(isinstance(item, str) for item in items)
            return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)

        def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
            node = super().represent_mapping(tag, mapping, flow_style)
            for key, _ in node.value:
                key.style = None
            return node

    Dumper.add_representer(str, Dumper.represent_str)
    Dumper.add_representer(list, Dumper.represent_list)
    return Dumper
