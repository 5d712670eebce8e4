"""Settings: what a file may say, and that every fault has its line, its key, a cause and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.controller.settings import DirectoryPlace, KeySigner, S3Place, Settings, load_settings
from reconciler.repo.problem import InvalidInput

GOOD = """\
state: state
git:
  url: /srv/fleet.git
images: {type: s3, url: s3://vlt-edge-images/golden/, region: eu-central-1}
registry: {type: ecr, region: eu-central-1}
secrets: {type: aws}
keys:
  assignment: {home: keys/a, fingerprint: 89ABCDEF0123456789ABCDEF0123456789ABCDEF}
  releases: [0123456789ABCDEF0123456789ABCDEF01234567]
  releaseKeyring: keys/release.gpg
allowed:
  images: ["s3://vlt-edge-images/"]
  registries: [registry.example]
"""


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "reconciler.yaml"
    path.write_text(text)
    return load_settings(path)


def refused(tmp_path: Path, text: str) -> list[str]:
    """Each problem as `line:column: message`."""
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    return [str(problem).partition("reconciler.yaml:")[2] for problem in caught.value.problems]


def test_a_small_file_is_enough_and_the_rest_has_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path, GOOD)
    assert settings.git.branch == "main" and settings.git.poll == 60
    assert settings.server.host == "127.0.0.1" and settings.server.port == 8470
    assert settings.loop.interval == 30 and settings.commits.required is False
    assert isinstance(settings.images, S3Place)
    assert (settings.images.bucket, settings.images.prefix) == ("vlt-edge-images", "golden")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path, GOOD.replace("{type: aws}", "{type: directory, path: secrets}") + "store: state/other.db\n"
    )
    assert settings.state == tmp_path / "state"
    assert isinstance(settings.secrets, DirectoryPlace) and settings.secrets.path == tmp_path / "secrets"
    assert settings.keys.assignment.home == tmp_path / "keys" / "a"
    assert settings.store_place == str(tmp_path / "state" / "other.db")
    assert load(tmp_path, GOOD).store_place == str(tmp_path / "state" / "store.db")


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("  url: /srv/fleet.git", "  url: /srv/fleet.git\n  brnach: main", "4:3", ["git.brnach", "branch"]),
        ("  url: /srv/fleet.git", "  branch: main", "2:1", ["git.url", "missing"]),
        ("  url: /srv/fleet.git", "  url: x\n  poll: often", "4:9", ["git.poll", "'often'", "90s"]),
        ("{type: aws}", "{type: vault}", "6:10", ["secrets.type", "aws"]),
        ("[0123456789ABCDEF0123456789ABCDEF01234567]", "[01234567]", "9:14", ["40 hexadecimal"]),
        ("releases: [0123456789ABCDEF0123456789ABCDEF01234567]", "releases: []", "9:13", ["keys.releases"]),
        ('images: ["s3://vlt-edge-images/"]', 'images: ["s3://vlt-edge"]', "12:11", ["'s3://vlt-edge'", "'/'"]),
        ("s3://vlt-edge-images/golden/", "s3://elsewhere/", "1:1", ["s3://elsewhere/", "allowed.images"]),
        ("state: state", "state: state\nstate: other", "2:1", ["'state'", "twice"]),
        ("state: state", "state: &x state", "1:8", ["anchor"]),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, old: str, new: str, line: str, words: list[str]) -> None:
    assert old in GOOD
    problems = refused(tmp_path, GOOD.replace(old, new, 1))
    assert len(problems) == 1
    assert problems[0].startswith(f"{line}:"), problems
    for word in words:
        assert word in problems[0]


def test_every_fault_is_told_in_one_run(tmp_path: Path) -> None:
    text = (
        GOOD.replace("state: state", "satte: x")
        .replace("/srv/fleet.git", "x\n  poll: 5")
        .replace("{type: aws}", "{type: q}")
    )
    assert len(refused(tmp_path, text)) == 3


@pytest.mark.parametrize("bind", ["0.0.0.0:8470", "edge.example:443", "[::]:80", "10.0.0.1:8470"])
def test_nothing_but_loopback_is_bound_without_tls(tmp_path: Path, bind: str) -> None:
    problems = refused(tmp_path, GOOD + f'server: {{bind: "{bind}"}}\n')
    assert "not loopback" in problems[0] and bind in problems[0]
    tls = "tls: {certificate: c.pem, key: k.pem}"
    assert load(tmp_path, GOOD + f'server: {{bind: "{bind}", {tls}}}\n').server.bind == bind


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.1:99999", ":8470", "a b:1"])
def test_an_address_that_cannot_be_bound_is_refused(tmp_path: Path, bind: str) -> None:
    assert "HOST:PORT" in refused(tmp_path, GOOD + f'server: {{bind: "{bind}"}}\n')[0]


@pytest.mark.parametrize("bind, host, port", [("[::1]:8470", "::1", 8470), ("localhost:0", "localhost", 0)])
def test_loopback_has_several_names(tmp_path: Path, bind: str, host: str, port: int) -> None:
    server = load(tmp_path, GOOD + f'server: {{bind: "{bind}"}}\n').server
    assert (server.host, server.port) == (host, port)


def test_required_signatures_need_somebody_who_signs(tmp_path: Path) -> None:
    assert "nobody may sign" in refused(tmp_path, GOOD + "commits: {required: true}\n")[0]


def test_a_signer_whose_key_devices_do_not_take_is_refused(tmp_path: Path) -> None:
    key = "89ABCDEF0123456789ABCDEF0123456789ABCDEF"
    signer = f"  signer: {{type: key, home: k, fingerprint: {key}}}\nallowed:"
    assert "keys.signer" in refused(tmp_path, GOOD.replace("allowed:", signer, 1))[0]
    good = signer.replace(key, "0123456789ABCDEF0123456789ABCDEF01234567")
    assert isinstance(load(tmp_path, GOOD.replace("allowed:", good, 1)).keys.signer, KeySigner)


@pytest.mark.parametrize(
    "text, word", [("", "empty"), ("- a\n", "not a mapping"), ("a: [", "never closed"), ("a: b\n---\n", "second")]
)
def test_what_is_no_settings_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    assert word in refused(tmp_path, text)[0]


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--config"):
        load_settings(tmp_path / "nothing.yaml")


def test_every_field_says_what_it_is_for() -> None:
    def check(model: type) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{model.__name__}.{name}"
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(part, type) and hasattr(part, "model_fields"):
                    check(part)

    check(Settings)


def test_the_example_is_a_good_file() -> None:
    settings = load_settings(Path(__file__).resolve().parents[2] / "docs/reference/reconciler.example.yaml")
    assert settings.commits.required and settings.server.tls is not None
    assert settings.git.ssh_command is not None and settings.git.ssh_command.startswith("ssh -i")


@pytest.mark.parametrize(
    ("server", "local"),
    [
        ("{}", True),
        ("{bind: '[::1]:9'}", True),
        ("{publicUrl: https://fleet.example}", False),
        ("{tls: {certificate: c.pem, key: k.pem}}", False),
    ],
)
def test_metrics_are_open_only_where_nobody_else_reaches_them(tmp_path: Path, server: str, local: bool) -> None:
    assert load(tmp_path, f"{GOOD}server: {server}\n").server.local is local


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://fleet.example", True),
        ("http://127.0.0.1:8470", True),
        ("http://[::1]:8470/", True),
        ("http://fleet.example", False),
        ("http://10.0.0.1:8470", False),
    ],
)
def test_the_service_is_not_reached_in_clear_text(tmp_path: Path, url: str, fine: bool) -> None:
    text = f"{GOOD}server: {{publicUrl: '{url}'}}\n"
    if fine:
        load(tmp_path, text)
    else:
        assert "`server.publicUrl`" in refused(tmp_path, text)[0] and "https://" in refused(tmp_path, text)[0]


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://registry.example", True),
        ("http://127.0.0.1:5000", True),
        ("http://[::1]:5000", True),
        ("http://10.0.0.1:5000", False),
        ("http://registry.example", False),
    ],
)
def test_a_registry_elsewhere_is_not_read_in_clear_text(tmp_path: Path, url: str, fine: bool) -> None:
    text = GOOD.replace("{type: ecr, region: eu-central-1}", f'{{type: oci, url: "{url}"}}')
    if fine:
        load(tmp_path, text)
    else:
        assert "`registry.url`" in refused(tmp_path, text)[0] and "https://" in refused(tmp_path, text)[0]


def test_a_forge_is_optional_and_its_token_stands_in_a_file(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).forge is None
    text = GOOD + "forge: {type: github, repository: video-edge/fleet, tokenFile: keys/forge.token}\n"
    forge = load(tmp_path, text).forge
    assert forge is not None and forge.token_file == tmp_path / "keys/forge.token"
    assert (forge.api_url, forge.deployments, forge.environments) == ("https://api.github.com", True, "fleet")


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        ("{type: github, repository: fleet, tokenFile: t}", "`forge.repository`"),
        ("{type: github, repository: a/b}", "`forge.tokenFile` is missing"),
        ("{type: gitlab, repository: a/b, tokenFile: t}", "`forge.type`"),
        ("{type: github, repository: a/b, tokenFile: t, apiUrl: 'http://github.example'}", "clear text"),
        ("{type: github, repository: a/b, tokenFile: t, token: ghp_x}", "unknown key `forge.token`"),
    ],
)
def test_a_forge_that_cannot_be_is_refused(tmp_path: Path, forge: str, said: str) -> None:
    (problem,) = refused(tmp_path, GOOD + f"forge: {forge}\n")
    assert said in problem and problem.startswith("14:")
