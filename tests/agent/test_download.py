"""An image comes in pieces, from several addresses, wrong, or without an end: it ends as the one that was signed, or nowhere."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest

from tests.agent.conftest import Releases
from tests.agent.world import START, Office, Site, send

pytestmark = pytest.mark.system


def _broken_after(office: Office, size: int, times: int) -> list[str | None]:
    """Downloads of the image break off after `size` bytes, so often; returns the ranges asked for."""
    asked: list[str | None] = []

    def breaking(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(".zst"):
            return False
        asked.append(request.headers.get("Range"))
        if len(asked) > times:
            return False
        data = (office.root / request.path.replace("/v1/artifacts/", "artifacts/").lstrip("/")).read_bytes()
        start = int((asked[-1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked[-1] else {}
        request.send_response(206 if asked[-1] else 200)
        for name, value in {"Content-Length": str(len(data) - start), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data[start : start + size])
        request.close_connection = True
        return True

    office.before = breaking
    return asked


def test_a_broken_download_goes_on_where_it_broke_off(site: Site, office: Office, releases: Releases) -> None:
    asked = _broken_after(office, 300, 2)
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=20))
    assert asked == [None, "bytes=300-", "bytes=600-"]
    assert (office.last().image, office.last().attempts) == ("v2", {})
    assert "not-fetched" in {item.code for report in office.reports for item in report.refusals}
    assert office.last().refusals == ()


def test_a_broken_download_goes_on_after_a_power_cut(site: Site, office: Office, releases: Releases) -> None:
    asked = _broken_after(office, 300, 1)
    office.assign(releases.v2)
    site.settle()
    site.device.power_cycle()
    site.settle(START + timedelta(minutes=20))
    assert asked == [None, "bytes=300-"]
    assert office.last().image == "v2"


def test_a_server_that_cannot_resume_sends_all_of_it_again(site: Site, office: Office, releases: Releases) -> None:
    asked = _broken_after(office, 300, 1)
    breaking = office.before

    def deaf(request: BaseHTTPRequestHandler) -> bool:
        if breaking(request):
            return True
        del request.headers["Range"]
        return False

    office.before = deaf
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=20))
    assert asked == [None, "bytes=300-"]
    assert office.last().image == "v2"


def test_a_second_address_is_tried_when_the_first_is_dead(site: Site, office: Office, releases: Releases) -> None:
    name = releases.v2.folder.name
    alive = f"{office.url}/v1/artifacts/{name}/"
    # Presigned addresses, one a file, beside a folder that is gone.
    files = [f"{alive}{path.name}?sig=1" for path in sorted(releases.v2.folder.iterdir())]
    office.sources_of_image = ["http://127.0.0.1:9/gone/", *files]
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=3))
    assert office.last().image == "v2"


def _wrong_below(office: Office, prefix: str) -> list[str]:
    """Addresses below `prefix` give an image of other bytes, whole or from where they are asked to go on."""
    asked: list[str] = []

    def lying(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(".zst"):
            return False
        asked.append(f"{request.path.split('/')[1]} {request.headers['Range']}")
        if not request.path.startswith(prefix):
            return False
        file = office.root / "artifacts" / request.path.split("/", 2)[2]
        start = int((request.headers["Range"] or "bytes=0-")[6:-1])
        size = file.stat().st_size
        body, headers = b"x" * (size - start), {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        send(request, 206 if start else 200, body, headers if start else None)
        return True

    office.before = lying
    return asked


def test_an_address_that_gives_wrong_bytes_does_not_speak_for_the_others(
    site: Site, office: Office, releases: Releases
) -> None:
    asked = _wrong_below(office, "/bad/")
    papers = f"{office.url}/v1/artifacts/{releases.v2.folder.name}/"
    name = f"{releases.v2.folder.name}/{releases.v2.folder.name}.img.zst"
    office.sources_of_image = [f"{office.url}/bad/{name}", papers]
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=3))
    assert office.last().image == "v2"
    assert asked == ["bad None", "v1 None"]


def test_bytes_of_several_addresses_that_do_not_fit_are_fetched_again_from_one(
    site: Site, office: Office, releases: Releases
) -> None:
    """The first breaks off, the second goes on with other bytes: neither alone was asked for the whole yet."""
    asked = _wrong_below(office, "/bad/")
    lying, broken = office.before, [0]

    def breaking(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(".zst") or request.path.startswith("/bad/") or broken[0]:
            return lying(request)
        asked.append("v1 broken")
        broken[0] = 1
        data = next(releases.v2.folder.glob("*.zst")).read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[:300])
        request.close_connection = True
        return True

    office.before = breaking
    papers = f"{office.url}/v1/artifacts/{releases.v2.folder.name}/"
    name = f"{releases.v2.folder.name}/{releases.v2.folder.name}.img.zst"
    office.sources_of_image = [papers, f"{office.url}/bad/{name}"]
    office.assign(releases.v2)
    site.settle(START + timedelta(minutes=3))
    assert office.last().image == "v2"
    assert asked == ["v1 broken", "bad bytes=300-", "v1 None"]


def test_a_part_that_went_bad_is_fetched_again(site: Site, office: Office, releases: Releases) -> None:
    asked = _broken_after(office, 300, 1)
    office.assign(releases.v2)
    site.settle()
    (part,) = (site.root / "agent" / "cache").rglob("part")
    part.write_bytes(b"y" + part.read_bytes()[1:])
    site.settle(START + timedelta(minutes=20))
    assert asked == [None, "bytes=300-", None]
    assert (office.last().image, office.last().attempts) == ("v2", {})


def test_wrong_bytes_from_everywhere_are_refused(site: Site, office: Office, releases: Releases) -> None:
    asked = _wrong_below(office, "/")
    name = f"{releases.v2.folder.name}/{releases.v2.folder.name}.img.zst"
    papers = [f"{office.url}/v1/artifacts/{releases.v2.folder.name}/{file}" for file in ("SHA256SUMS", "manifest.json")]
    signature = f"{office.url}/v1/artifacts/{releases.v2.folder.name}/SHA256SUMS.gpg"
    office.sources_of_image = [f"{office.url}/{place}/{name}" for place in ("one", "two")] + [*papers, signature]
    office.assign(releases.v2)
    site.settle()
    assert [item.code for item in office.last().refusals] == ["artifact-digest"]
    assert asked == ["one None", "two None"]
    assert not list(site.root.rglob("part"))


def test_an_image_without_an_end_is_cut_at_its_size(site: Site, office: Office, releases: Releases) -> None:
    size = next(releases.v2.folder.glob("*.zst")).stat().st_size

    def endless(request: BaseHTTPRequestHandler) -> bool:
        if not request.path.endswith(".zst"):
            return False
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        with suppress(OSError):
            while True:
                request.wfile.write(b"x" * 65536)
        return True

    office.before = endless
    office.assign(releases.v2)
    site.settle()
    assert [item.code for item in office.last().refusals] == ["not-fetched"]
    assert all(path.stat().st_size <= size for path in site.root.rglob("part"))
