"""What devices pull apps with: a role's token from ECR's and STS's API (moto), and a registry's own user kept as a secret."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reconciler.adapters.aws import Aws
from reconciler.adapters.registry_tokens import EcrTokens, SecretToken
from reconciler.adapters.secrets_dir import DirectorySecrets
from reconciler.ports import TerminalError, TransientError
from tests.adapters.conftest import aws_at

ROLE = "arn:aws:iam::222233334444:role/edge-pull"


def at_ecr(patch: pytest.MonkeyPatch, expires_at: datetime) -> None:
    """moto's tokens have all ended in 2015."""
    patch.setattr("moto.ecr.responses.datetime", lambda *_date, **_zone: expires_at)


def test_the_token_is_the_roles_and_not_the_controllers(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    at_ecr(monkeypatch, datetime.now(UTC) + timedelta(hours=12))
    own = aws.client("ecr").get_authorization_token()["authorizationData"][0]["proxyEndpoint"]
    found = EcrTokens(aws, aws, ROLE).fetch()
    assert found.address == "https://222233334444.dkr.ecr.eu-central-1.amazonaws.com" != own
    assert found.secret == "AWS:222233334444-auth-token"
    assert "auth-token" not in repr(found)


def test_it_ends_with_the_roles_session_where_ecr_says_later(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now(UTC)
    at_ecr(monkeypatch, before + timedelta(hours=12))
    expires_at = EcrTokens(aws, aws, ROLE).fetch().expires_at
    assert expires_at is not None and timedelta(minutes=59) < expires_at - before < timedelta(minutes=61)
    at_ecr(monkeypatch, before + timedelta(minutes=20))
    expires_at = EcrTokens(aws, aws, ROLE).fetch().expires_at
    assert expires_at is not None and expires_at - before < timedelta(minutes=21)


@pytest.mark.slow
def test_another_accounts_registry_is_asked_for(aws: Aws) -> None:
    found = EcrTokens(aws, aws, ROLE, registry_id="555566667777").fetch()
    assert found.address.startswith("https://555566667777.dkr.ecr.")


def test_aws_that_does_not_answer_is_transient(aws: Aws) -> None:
    away = aws_at("http://127.0.0.1:9", attempts=1)
    for ecr, sts, step in ((aws, away, f"assume {ROLE}"), (away, aws, "get a registry token")):
        with pytest.raises(TransientError, match=step) as caught:
            EcrTokens(ecr, sts, ROLE).fetch()
        assert caught.value.needed_for == "devices' access to the registry"
    away.close()


def store(folder: Path, value: str) -> None:
    (folder / "pull").write_text(value)
    (folder / "pull").chmod(0o600)


def test_a_secret_is_read_as_it_is_now(tmp_path: Path) -> None:
    store(tmp_path, "edge:one\n")
    source = SecretToken(DirectorySecrets(tmp_path), "pull", "https://registry.example/")
    first = source.fetch()
    assert (first.address, first.secret, first.expires_at) == ("https://registry.example", "edge:one", None)
    store(tmp_path, "edge:two")
    assert source.fetch().secret == "edge:two"


@pytest.mark.parametrize(
    "value", ["sentinel", "edge:", ":sentinel", "edge:sen tinel", "edge:sentinel\nmore", "é:sentinel"]
)
def test_a_secret_that_is_no_user_with_a_password_is_refused_unseen(tmp_path: Path, value: str) -> None:
    store(tmp_path, value)
    with pytest.raises(TerminalError, match="the secret pull is no USER:PASSWORD") as caught:
        SecretToken(DirectorySecrets(tmp_path), "pull", "https://registry.example").fetch()
    assert "sentinel" not in str(caught.value)
