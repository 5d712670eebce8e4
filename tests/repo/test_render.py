"""What a site's cloud-init files say, that nothing in a spec can break out of them, and when the digest changes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.desired import FleetSpec, SiteSpec
from reconciler.repo.render import (
    VPN_FILES,
    Rendering,
    UnusableSecret,
    config_digest,
    config_digests,
    render_site,
    resolve,
    secret_refs,
)
from tests.support.system import need

FLEET = FleetSpec(registry="registry.example:5000")
VALUE = "[Interface]\nPrivateKey = sentinel-4711\n"


def spec(**changes: Any) -> SiteSpec:
    raw = {
        "timezone": "Europe/Berlin",
        "devices": ["SITE-1-1", "SITE-1-2"],
        "ntp": ["ntp.site-1.example", "192.0.2.1"],
        "vpn": {"type": "wireguard", "secretRef": "edge/SITE-1/vpn"},
        "cameras": ["192.0.2.21", "[2001:db8::1]:8554"],
    }
    return SiteSpec.model_validate({**raw, **changes})


def user_data(rendering: Rendering) -> dict[str, Any]:
    text = rendering.user_data
    assert text.startswith("#cloud-config\n")
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def files(rendering: Rendering) -> dict[str, str]:
    return {file["path"]: file["content"] for file in user_data(rendering)["write_files"]}


def test_the_files_say_what_the_spec_says() -> None:
    found = files(render_site("SITE-1", spec(), FLEET))
    assert 'SITE_ID="SITE-1"' in found["/etc/environment"].splitlines()
    assert found["/etc/edge/site.env"].splitlines()[1:] == ["REGISTRY=registry.example:5000", "VPN_TYPE=wireguard"]
    assert found["/etc/edge/cameras"].splitlines()[1:] == ["192.0.2.21", "[2001:db8::1]:8554"]
    assert found["/etc/chrony/sources.d/site.sources"].splitlines()[1:] == [
        "server ntp.site-1.example iburst",
        "server 192.0.2.1 iburst",
    ]


def test_video_ingest_is_started_once_and_last() -> None:
    commands = user_data(render_site("SITE-1", spec(), FLEET))["runcmd"]
    assert commands[-1] == ["systemctl", "start", "--no-block", "video-ingest.service"]


def test_no_command_goes_through_a_shell() -> None:
    for command in user_data(render_site("SITE-1", spec(), FLEET))["runcmd"]:
        assert isinstance(command, list) and command[0] in ("systemctl", "rm")


@pytest.mark.parametrize(("kind", "other"), [("wireguard", "ipsec"), ("ipsec", "wireguard")])
def test_a_tunnel_is_written_for_root_alone_and_the_other_kind_removed(kind: str, other: str) -> None:
    rendering = render_site("SITE-1", spec(vpn={"type": kind, "secretRef": "edge/SITE-1/vpn"}), FLEET)
    tree = user_data(rendering)
    (file,) = [file for file in tree["write_files"] if file["path"] == VPN_FILES[kind]]
    assert (file["owner"], file["permissions"]) == ("root:root", "0600")
    assert VPN_FILES[other] not in files(rendering)
    assert ["rm", "-f", VPN_FILES[other]] in tree["runcmd"]
    assert ["rm", "-f", VPN_FILES[kind]] not in tree["runcmd"]


def test_a_site_without_a_tunnel_loses_the_one_it_had() -> None:
    rendering = render_site("SITE-1", spec(vpn=None), FLEET)
    assert rendering.secret_refs == ()
    assert not set(VPN_FILES.values()) & set(files(rendering))
    for path in VPN_FILES.values():
        assert ["rm", "-f", path] in user_data(rendering)["runcmd"]


def test_values_that_yaml_would_take_for_something_else_survive() -> None:
    rendering = render_site("NO", spec(devices=["1e3"]), FLEET, "1e3")
    assert yaml.safe_load(rendering.meta_data)["local-hostname"] == "1e3"
    assert 'SITE_ID="NO"' in files(rendering)["/etc/environment"]
    assert all(isinstance(file["permissions"], str) for file in user_data(rendering)["write_files"])


def test_meta_data_names_the_device_and_is_stable_for_a_spec() -> None:
    first, again = (yaml.safe_load(render_site("SITE-1", spec(), FLEET, "SITE-1-2").meta_data) for _ in range(2))
    assert first == again
    assert first["local-hostname"] == "site-1-2"
    assert first["instance-id"].startswith("SITE-1-2-")
    changed = yaml.safe_load(render_site("SITE-1", spec(ntp=[]), FLEET, "SITE-1-2").meta_data)
    assert changed["instance-id"] != first["instance-id"], "a slot that knows the older configuration must run it again"


def test_a_device_of_another_site_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="has no device 'SITE-1-3'; did you mean 'SITE-1-"):
        render_site("SITE-1", spec(), FLEET, "SITE-1-3")


def test_network_config_is_version_2_and_one_address_for_both_slots() -> None:
    network = yaml.safe_load(render_site("SITE-1", spec(), FLEET).network_config)
    assert network["version"] == 2
    assert network["ethernets"]["wired"]["dhcp-identifier"] == "mac"


# ---------------------------------------------------------------- secrets


def test_a_rendering_names_the_secret_and_never_needs_its_value() -> None:
    rendering = render_site("SITE-1", spec(), FLEET)
    assert rendering.secret_refs == ("edge/SITE-1/vpn",)
    assert "edge/SITE-1/vpn" in files(rendering)[VPN_FILES["wireguard"]]


def test_resolve_puts_the_value_into_its_file_alone() -> None:
    rendering = render_site("SITE-1", spec(), FLEET, "SITE-1-1")
    resolved = resolve(rendering, lambda reference: VALUE)
    assert set(resolved) == {"user-data", "meta-data", "network-config"}
    tree = yaml.safe_load(resolved["user-data"])
    assert [file["path"] for file in tree["write_files"] if "sentinel-4711" in file["content"]] == [
        VPN_FILES["wireguard"]
    ]
    assert b"sentinel" not in resolved["meta-data"] + resolved["network-config"]
    assert "sentinel" not in repr(rendering) + "".join(rendering.files().values())


def test_a_rotated_secret_gives_another_instance_id() -> None:
    rendering = render_site("SITE-1", spec(), FLEET, "SITE-1-1")
    ids = {
        yaml.safe_load(resolve(rendering, lambda _: VALUE, config)["meta-data"])["instance-id"]
        for config in ("sha256:" + "a" * 64, "sha256:" + "b" * 64)
    }
    assert ids == {"SITE-1-1-" + "a" * 16, "SITE-1-1-" + "b" * 16}


@pytest.mark.slow
@given(st.text(alphabet=st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1))
def test_any_text_of_a_secret_arrives_as_it_was(text: str) -> None:
    value = "[Interface]\n" + text
    rendering = render_site("SITE-1", spec(), FLEET, "SITE-1-1")
    tree = yaml.safe_load(resolve(rendering, lambda _: value)["user-data"])
    content = {file["path"]: file["content"] for file in tree["write_files"]}[VPN_FILES["wireguard"]]
    assert content == (value if value.endswith("\n") else value + "\n")
    assert set(tree) == {"ssh_deletekeys", "write_files", "runcmd"}


def test_devices_may_have_entries_of_their_own_in_one_secret() -> None:
    value = json.dumps({"SITE-1-1": "one", "SITE-1-2": "two"})
    for device, text in (("SITE-1-1", "one\n"), ("SITE-1-2", "two\n")):
        resolved = resolve(render_site("SITE-1", spec(), FLEET, device), lambda _: value)
        contents = [file["content"] for file in yaml.safe_load(resolved["user-data"])["write_files"]]
        assert text in contents
        assert value not in contents


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"SITE-9-1": "sentinel"}', "no text for device SITE-1-1"),
        ('{"SITE-1-1": 5, "x": "sentinel"}', "no text for device SITE-1-1"),
        ('{"SITE-1-1": ""}', "is empty"),
        ('{"SITE-1-1": "sentinel', "begins like a JSON object"),
        ("{" * 100_000, "begins like a JSON object"),
        ('{"a":' * 100_000, "begins like a JSON object"),
        ("sentinel\x00", "control characters"),
        ("[Interface]\nPrivateKey = sentinel\n saveconfig=TRUE\n", "sets SaveConfig"),
    ],
)
def test_an_unusable_secret_is_named_and_not_quoted(value: str, says: str) -> None:
    with pytest.raises(UnusableSecret, match=says) as caught:
        resolve(render_site("SITE-1", spec(), FLEET, "SITE-1-1"), lambda _: value)
    assert "edge/SITE-1/vpn" in str(caught.value)
    assert "sentinel" not in str(caught.value)
    assert caught.value.__cause__ is None


# ---------------------------------------------------------------- digests

VERSIONS = {"edge/SITE-1/vpn": "v-1", "edge/SITE-2/vpn": "v-1"}


def digest(name: str = "SITE-1", fleet: FleetSpec = FLEET, **changes: Any) -> str | None:
    return config_digest(name, spec(**changes), fleet, VERSIONS)


def test_the_digest_is_the_same_for_the_same_spec_and_known_to_people() -> None:
    # Changes on purpose alone: a new value here means that every device of every fleet is configured anew.
    assert digest() == digest() == "sha256:e29d7a5bc5dc01820cba062a9fdebcbf569f287130aed1cdf4ffe84d2bca327d"


@pytest.mark.parametrize(
    "change",
    [
        {"ntp": ["ntp.other.example"]},
        {"ntp": ["192.0.2.1", "ntp.site-1.example"]},
        {"cameras": []},
        {"vpn": {"type": "ipsec", "secretRef": "edge/SITE-1/vpn"}},
        {"vpn": {"type": "wireguard", "secretRef": "edge/SITE-2/vpn"}},
        {"vpn": None},
    ],
)
def test_what_a_device_would_notice_changes_the_digest(change: dict[str, Any]) -> None:
    assert digest(**change) != digest()


def test_the_name_and_the_registry_change_the_digest() -> None:
    assert len({digest(), digest("SITE-2"), digest(fleet=FleetSpec(registry="other.example"))}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"region": "eu"}},
        {"window": {"start": "03:00", "end": "05:00"}},
        {"suspended": True},
        {"timezone": "Asia/Kathmandu"},
        {"devices": ["SITE-1-1"]},
        {"pin": {"image": "v1", "why": "a test"}},
    ],
)
def test_what_no_file_says_leaves_the_digest(change: dict[str, Any]) -> None:
    assert digest(**change) == digest()


def test_a_new_version_of_the_secret_changes_the_digest_and_others_do_not() -> None:
    def of(versions: dict[str, str]) -> str | None:
        return config_digest("SITE-1", spec(), FLEET, versions)

    assert of({"edge/SITE-1/vpn": "1"}) == of({"edge/SITE-1/vpn": "1", "edge/SITE-2/vpn": "9"})
    assert of({"edge/SITE-1/vpn": "1"}) != of({"edge/SITE-1/vpn": "2"})


def test_a_site_whose_secret_does_not_exist_has_no_digest() -> None:
    sites = {"SITE-1": spec(), "SITE-2": spec(vpn=None)}
    assert set(config_digests(sites, FLEET, {})) == {"SITE-2"}
    assert set(config_digests(sites, FLEET, VERSIONS)) == {"SITE-1", "SITE-2"}


def test_the_secrets_to_ask_for_are_sorted_and_once() -> None:
    other = spec(vpn={"type": "ipsec", "secretRef": "a/b"})
    assert secret_refs([spec(), spec(), spec(vpn=None), other]) == ("a/b", "edge/SITE-1/vpn")


# ---------------------------------------------------------------- what a spec may not hold


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ntp", "ntp.example iburst\nserver evil.example"),
        ("ntp", "ntp.example\n"),
        ("ntp", "-x"),
        ("ntp", "192.0.2.300"),
        ("ntp", ""),
        ("cameras", "rtsp://user:password@192.0.2.1/"),
        ("cameras", "192.0.2.1; reboot"),
        ("cameras", "192.0.2.1:70000"),
        ("cameras", "$(reboot)"),
        ("cameras", "192.0.2.1:\u0668\u0660"),
        ("cameras", "192.0.2.1\n"),
    ],
)
def test_a_spec_cannot_carry_syntax_into_a_file(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        spec(**{key: [value]})


def test_a_secret_reference_cannot_carry_syntax() -> None:
    with pytest.raises(ValueError, match="secretRef"):
        spec(vpn={"type": "wireguard", "secretRef": "edge/x\nevil"})


# ---------------------------------------------------------------- the real client


@pytest.mark.system
@pytest.mark.parametrize("kind", ["wireguard", "ipsec", None])
def test_cloud_init_accepts_the_user_data(kind: str | None, tmp_path: Path) -> None:
    program = need("cloud-init")
    vpn = {"type": kind, "secretRef": "edge/SITE-1/vpn"} if kind else None
    path = tmp_path / "user-data"
    path.write_bytes(resolve(render_site("SITE-1", spec(vpn=vpn), FLEET, "SITE-1-1"), lambda _: VALUE)["user-data"])
    run = subprocess.run([program, "schema", "--config-file", str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Valid" in run.stdout


@pytest.mark.system
def test_cloud_init_knows_every_key_of_the_user_data() -> None:
    need("cloud-init")
    schemas = Path("/usr/lib/python3/dist-packages/cloudinit/config/schemas")
    (schema,) = schemas.glob("schema-cloud-config-v1.json")
    definitions = json.loads(schema.read_text()).get("$defs", {})
    known = {key for part in definitions.values() for key in part.get("properties", {})}
    assert set(user_data(render_site("SITE-1", spec(), FLEET))) <= known, "its schema command does not check these"


@pytest.mark.system
def test_cloud_init_turns_the_network_config_into_netplan(tmp_path: Path) -> None:
    program = need("cloud-init")
    source, out = tmp_path / "network-config", tmp_path / "out"
    source.write_text(render_site("SITE-1", spec(), FLEET).network_config)
    command = [program, "devel", "net-convert", "-p", source, "-k", "yaml", "-d", out, "-D", "ubuntu", "-O", "netplan"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (written,) = out.rglob("*.yaml")
    assert yaml.safe_load(written.read_text())["network"]["ethernets"]["wired"]["dhcp4"] is True
