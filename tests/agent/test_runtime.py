"""What a container runtime says, and what the agent makes of it. The runtimes' words are recorded; a script speaks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.agent.child import NoAnswer, at_once, play
from reconciler.agent.containers import Containers, Limits, runtime_of
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError
from reconciler.agent.runtime import Runtime
from reconciler.agent.transport import NotFound, TransportError
from reconciler.protocol.signature import Refused
from tests.support.processes import runs, wait_until

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
PLACE = "https://registry.example:5000"
REFUSED: type[Exception] = Refused


@pytest.fixture
def runtime(tmp_path: Path) -> Callable[..., Runtime]:
    """A runtime that answers `pull` with `errors` (nothing: it works), and `ps` and `image inspect` with a file's text."""

    def make(errors: str = "", *, ps: str = "", inspect: str = "", name: str = "docker", status: int = 1) -> Runtime:
        (tmp_path / "errors").write_text(errors)
        (tmp_path / "ps").write_text(ps)
        (tmp_path / "inspect").write_text(inspect)
        script = tmp_path / name
        script.write_text(
            f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\ncase $1 in\nps) cat {tmp_path}/ps ;;\nimage) cat {tmp_path}/inspect ;;\n'
            f"pull) cat {tmp_path}/errors >&2; [ ! -s {tmp_path}/errors ] || exit {status} ;;\nesac\n"
        )
        script.chmod(0o755)
        return Runtime([str(script)], private=tmp_path / "private", own=tmp_path / "own", answer_s=5, pull_s=5)

    return make


@pytest.mark.parametrize(
    ("said", "error", "code"),
    [
        # docker 20.10
        ("no matching manifest for linux/amd64 in the manifest list entries", REFUSED, "app-platform"),
        ("manifest verification failed for digest sha256:1", REFUSED, "app-digest"),
        ("filesystem layer verification failed for digest sha256:1", REFUSED, "app-digest"),
        ("failed to register layer: write /bin/x: no space left on device", REFUSED, "no-room"),
        (
            'Error response from daemon: Get "https://r.example/v2/": no basic auth credentials',
            REFUSED,
            "registry-denied",
        ),
        ("Error response from daemon: unauthorized: authentication required", REFUSED, "registry-denied"),
        ("denied: Your authorization token has expired. Reauthenticate and try again.", REFUSED, "registry-denied"),
        ("Error response from daemon: manifest for r/x@sha256:0 not found: manifest unknown", NotFound, ""),
        ("Error response from daemon: Get: dial tcp 127.0.0.1:1: connect: connection refused", TransportError, ""),
        ("error pulling image configuration: unexpected EOF", TransportError, ""),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?", HardwareError, ""),
        ("dial unix /var/run/docker.sock: connect: permission denied", HardwareError, ""),
        ("Error response from daemon: invalid character '|' after object key:value pair", REFUSED, "app-malformed"),
        ("x509: certificate signed by unknown authority", TransportError, ""),
        # podman 4.3
        ("no image found in image index for architecture amd64, variant, OS linux", REFUSED, "app-platform"),
        ("Digest did not match, expected sha256:1, got sha256:2", REFUSED, "app-digest"),
        ("Download config.json digest sha256:1 does not match expected sha256:2", REFUSED, "app-digest"),
        ("unable to retrieve auth token: invalid username/password: unauthorized", REFUSED, "registry-denied"),
        ("reading manifest sha256:0 in r/x: manifest unknown: manifest unknown", NotFound, ""),
        ("something that nobody has seen yet", TransportError, ""),
    ],
)
def test_what_the_runtime_says_is_told_by_code(
    runtime: Callable[..., Runtime], said: str, error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        at_once(runtime(f"noise\n{said}\n").pull(PLACE, "x", DIGEST, None))
    assert type(caught.value) is error
    if isinstance(caught.value, Refused):
        assert caught.value.code == code
    if "x509" in said:
        assert "/etc/docker/certs.d/registry.example:5000/ca.crt" in str(caught.value)


def test_neither_token_nor_presigned_address_gets_into_a_sentence(
    runtime: Callable[..., Runtime], tmp_path: Path
) -> None:
    said = 'Get "https://bucket.example/layer?X-Amz-Signature=cafe&X=1": EOF, token secret-1234'
    with pytest.raises(TransportError) as caught:
        at_once(runtime(said).pull(PLACE, "x", DIGEST, "AWS:secret-1234"))
    assert "cafe" not in str(caught.value)
    assert "secret-1234" not in str(caught.value)
    assert "bucket.example/layer" in str(caught.value)
    assert "secret-1234" not in (tmp_path / "asked").read_text()
    assert list((tmp_path / "private").iterdir()) == []


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("http://registry.example", "needs https"),
        ("http://10.0.0.1:5000", "needs https"),
        ("file:///srv/layouts", "no registry"),
        ("https://registry.example/below", "no registry"),
        ("https://user:pass@registry.example", "no registry"),
        ("https://-x.example", "no registry"),
        ("https://", "no registry"),
    ],
)
def test_an_address_that_cannot_be_used_is_never_asked(
    runtime: Callable[..., Runtime], tmp_path: Path, base: str, words: str
) -> None:
    with pytest.raises(TransportError, match=words):
        at_once(runtime().pull(base, "x", DIGEST, None))
    assert not (tmp_path / "asked").exists()


def test_plain_http_on_loopback_is_told_to_podman_alone(runtime: Callable[..., Runtime], tmp_path: Path) -> None:
    here = f"{'c' * 64} linux/amd64 127.0.0.1:5000/x@{DIGEST}\n"
    for name, told in (("docker", False), ("podman", True)):
        at_once(runtime(inspect=here, name=name).pull("http://127.0.0.1:5000", "x", DIGEST, None))
        pulled = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("pull")][-1]
        assert ("--tls-verify=false" in pulled) is told
    at_once(runtime(inspect=here, name="podman").pull("https://127.0.0.1:5000", "x", DIGEST, None))
    assert "--tls-verify=false" not in (tmp_path / "asked").read_text().splitlines()[-2]


def test_a_pull_that_ends_well_without_the_digest_is_refused(runtime: Callable[..., Runtime]) -> None:
    with pytest.raises(Refused) as caught:
        at_once(runtime(inspect=f"{'c' * 64} linux/amd64 r/x@{OTHER}\n").pull(PLACE, "x", DIGEST, None))
    assert caught.value.code == "app-digest"


def test_what_runs_is_read_with_its_digest_and_nothing_else_passes_for_one(runtime: Callable[..., Runtime]) -> None:
    rows = (
        f"one\tid1\tr:5000/x@{DIGEST}\ntwo\tid2\tsha256:{'c' * 64}\nthree\tid3\tr/x:stable\nfour\tid4\tr/x@sha256:12\n"
    )
    found = at_once(runtime(ps=rows).containers())
    assert {name: held.digest for name, held in found.items()} == {
        "one": DIGEST,
        "two": None,
        "three": None,
        "four": None,
    }


# ---------------------------------------------------------------- programs


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "slow"
    mark = tmp_path / "child"
    mark.write_text("")
    script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! >{mark}\nwait\n")
    script.chmod(0o755)
    # Where the machine has much to do, the script comes to its child in a longer time only.
    for timeout_s in (0.3, 5, 100):
        with pytest.raises(NoAnswer, match=rf"slow gave no answer within {timeout_s:g} s"):
            at_once(play([str(script)], timeout_s))
        if child := mark.read_text().strip():
            break
    wait_until(lambda: not runs(child))


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(HardwareError, match="nothing-of-the-kind cannot be run"):
        at_once(play(["nothing-of-the-kind"], 1))


# ---------------------------------------------------------------- files


def test_the_runtime_is_the_recipes_and_docker_where_it_names_none(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.env"
    assert runtime_of(recipe) == "docker"
    recipe.write_text("GPU=none\n# CONTAINER_RUNTIME=x\nCONTAINER_RUNTIME=podman\n")
    assert runtime_of(recipe) == "podman"


@pytest.mark.parametrize("text", [b"", b"DIGEST=\n", b"DIGEST=sha256:12\n", b"\xff\xfeDIGEST", b"DIGEST"])
def test_a_torn_or_foreign_file_deploys_nothing(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "video-ingest.env").write_bytes(text)
    containers = Containers(tmp_path, Disk(), runtime=["false"], limits=Limits(answer_s=5))
    assert containers.deployed("video-ingest") is None
    assert containers.running() == {}


def test_an_apps_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="not an app's name"):
        Containers(tmp_path, Disk()).deployed("../../etc/passwd")
