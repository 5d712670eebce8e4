"""Which settings give devices a registry token, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.adapters.registry_tokens import EcrTokens, SecretToken
from reconciler.adapters.secrets_dir import DirectorySecrets
from reconciler.cli.run import _registry_address, _token_source
from reconciler.controller.settings import load_settings
from reconciler.repo.problem import InvalidInput

SETTINGS = """
git: {{url: /srv/fleet}}
images: {{type: directory, path: images}}
registry: {registry}
secrets: {{type: directory, path: secrets}}
keys:
  assignment: {{home: assigning, fingerprint: 89ABCDEF0123456789ABCDEF0123456789ABCDEF}}
  releases: [0123456789ABCDEF0123456789ABCDEF01234567]
  releaseKeyring: release.gpg
allowed: {{images: ["s3://x/"], registries: [registry.example]}}
"""
ROLE = "arn:aws:iam::123456789012:role/edge-pull"


@pytest.mark.parametrize(
    ("registry", "source", "address"),
    [
        (f'{{type: ecr, region: eu-central-1, pullRole: "{ROLE}"}}', EcrTokens, None),
        ("{type: ecr, region: eu-central-1}", type(None), None),
        ('{type: oci, url: "https://r.example", pullSecret: edge/pull}', SecretToken, "https://r.example"),
        ('{type: oci, url: "https://r.example"}', type(None), "https://r.example"),
    ],
)
def test_a_token_is_given_where_the_settings_say_of_whom(
    registry: str, source: type, address: str | None, tmp_path: Path
) -> None:
    (tmp_path / "reconciler.yaml").write_text(SETTINGS.format(registry=registry))
    settings = load_settings(tmp_path / "reconciler.yaml")
    assert type(_token_source(settings, DirectorySecrets(tmp_path))) is source
    assert _registry_address(settings) == address


@pytest.mark.parametrize("role", ["edge-pull", "arn:aws:iam::1:role/x", "arn:aws:iam::123456789012:user/eve"])
def test_a_role_that_is_none_is_refused_at_the_start(role: str, tmp_path: Path) -> None:
    (tmp_path / "reconciler.yaml").write_text(SETTINGS.format(registry=f'{{type: ecr, pullRole: "{role}"}}'))
    with pytest.raises(InvalidInput, match="pullRole"):
        load_settings(tmp_path / "reconciler.yaml")
