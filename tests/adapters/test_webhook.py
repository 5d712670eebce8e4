"""Posting notifications: the two forms, signatures, and what becomes of every kind of answer. Against a real receiver."""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.webhook import WebhookSender, read_keys
from reconciler.adapters.webhook_forms import MOST_HEADER, MOST_SECTION, MOST_TEXT, mrkdwn, slack
from reconciler.model.events import Event, EventKind
from reconciler.model.notices import Message
from reconciler.ports import TerminalError, TransientError
from tests.support.webhooks import Receiver, Says, make_certificate, verify

AT = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(b"y" * 24).decode()
FLAG = Event(
    7,
    AT,
    EventKind.DEVICE_FLAGGED,
    "k",
    "c0ffee" * 6,
    "all",
    "SITE-1",
    "SITE-1-1",
    "v1.4.2",
    "critical",
    "it <failed> & burns",
)
MESSAGE = Message(
    "device-flagged", "Device SITE-1-1 is flagged on v1.4.2", FLAG.message, "critical", AT, 1,
    "https://fleet.example/devices/SITE-1-1", "reconciler explain SITE-1-1", FLAG.commit, (FLAG,),
)  # fmt: skip


def chat(url: str, **more: float) -> WebhookSender:
    return WebhookSender("chat", "slack", lambda: url, read_timeout_s=more.get("read_timeout_s", 60))


def service(url: str, secret: str = SECRET, **more: object) -> WebhookSender:
    given = {"read_timeout_s": 60} | more
    return WebhookSender("svc", "webhook", lambda: url, lambda: secret, **given)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the forms


def test_a_chat_gets_text_and_blocks_in_which_nothing_can_become_a_mention() -> None:
    with Receiver() as receiver:
        hostile = replace(MESSAGE, text="<!channel> & <https://evil.example|click>", title="<@U1> fell")
        assert chat(receiver.url).send("msg_1", hostile).accepted
        (request,) = receiver.received
    assert request.headers["content-type"] == "application/json; charset=utf-8"
    body = request.json
    header, section, context = body["blocks"]
    assert header["text"] == {"type": "plain_text", "text": "<@U1> fell", "emoji": False}
    assert section["text"]["text"] == "&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt;"
    assert "reason `critical`" in context["elements"][0]["text"]
    assert context["elements"][1]["text"].startswith("<https://fleet.example/devices/SITE-1-1|Open the dashboard>")
    # What a chat without blocks shows says all of it too.
    assert body["text"].startswith("*&lt;@\u2060U1&gt; fell*\n&lt;!channel&gt;")
    assert "reason `critical`" in body["text"] and "|Open the dashboard>" in body["text"]


def test_what_other_chats_read_as_a_mention_or_a_link_is_taken_apart() -> None:
    hostile = "@all see [here](https://evil.example) ![x][y]\n[y]: https://evil.example/p.png of video@1.0.0"
    body = json.loads(slack(replace(MESSAGE, text=hostile, title="(@channel)", link=None)))
    section, context = body["blocks"][1:]
    for text in (body["text"], section["text"]["text"]):
        assert not re.search(r"(?<!\w)@\w|]\(|]\[|]:", text)
        assert text.replace("\u2060", "").find("@all see [here](https://evil.example) ![x][y]") >= 0
        assert "video@1.0.0" in text
    # Nor does Slack make a link of what only looks like one.
    assert all(part["verbatim"] for part in (section["text"], *context["elements"]))
    assert body["parse"] == "none"


def test_without_a_dashboard_a_command_says_where_to_look() -> None:
    body = json.loads(slack(replace(MESSAGE, link=None)))
    assert "`reconciler explain SITE-1-1`" in body["text"] and "Open" not in body["text"]


def test_a_long_message_fits_and_no_escape_is_cut_in_two() -> None:
    body = json.loads(slack(replace(MESSAGE, text="&<>" * 3000, title="t" * 400)))
    assert len(body["text"]) <= MOST_TEXT and len(body["blocks"][0]["text"]["text"]) == MOST_HEADER
    section = body["blocks"][1]["text"]["text"]
    assert MOST_SECTION - 6 <= len(section) <= MOST_SECTION
    assert section.rstrip("…").endswith(("&amp;", "&lt;", "&gt;"))
    assert [mrkdwn("a&b", most) for most in (7, 6, 3)] == ["a&amp;b", "a…", "a…"]
    assert mrkdwn("tab\tand \x1b[31mred", 100) == "tab and  [31mred"


def test_a_service_gets_json_whose_signature_holds() -> None:
    with Receiver() as receiver:
        assert service(receiver.url).send("msg_1", MESSAGE).accepted
        (request,) = receiver.received
    found = verify(SECRET, request, time.time())
    assert request.headers["webhook-id"] == "msg_1"
    assert (found["type"], found["timestamp"]) == ("device-flagged", "2026-01-15T01:30:00Z")
    assert found["data"]["events"] == [FLAG.to_dict()]
    assert {name: found["data"][name] for name in ("reason", "count", "link", "command")} == {
        "reason": "critical", "count": 1, "link": MESSAGE.link, "command": "reconciler explain SITE-1-1",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no signature"):
        verify(SECRET, replace(request, body=request.body + b" "), time.time())
    with pytest.raises(ValueError, match="no signature"):
        verify("whsec_" + base64.b64encode(b"x" * 32).decode(), request, time.time())
    with pytest.raises(ValueError, match="too far"):
        verify(SECRET, request, time.time() + 301)


def test_the_receiver_that_the_guide_shows_takes_it_and_refuses_what_was_changed() -> None:
    guide = (Path(__file__).parents[2] / "docs/how-to/get-notified.md").read_text()
    shown: dict[str, Any] = {}
    exec(re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S)[0], shown)
    verified = shown["verified"]
    with Receiver() as receiver:
        service(receiver.url, f"{OTHER}\n{SECRET}").send("msg_1", MESSAGE)
        (request,) = receiver.received
    old = request.headers | {"webhook-timestamp": str(int(time.time()) - 301)}
    assert verified(SECRET, request.headers, request.body) and verified(OTHER, request.headers, request.body)
    assert not verified(SECRET, request.headers, request.body + b" ")
    assert not verified(SECRET, old, request.body)


def test_with_two_keys_both_sign_so_that_either_side_may_change_first() -> None:
    with Receiver() as receiver:
        service(receiver.url, f"{OTHER}\n{SECRET}").send("msg_1", MESSAGE)
        (request,) = receiver.received
    assert verify(SECRET, request, time.time()) == verify(OTHER, request, time.time())


@pytest.mark.parametrize("text", ["", "topsecret", "whsec_", "whsec_c2hvcnQ=", "whsec_####", f"{SECRET}\nplain"])
def test_a_secret_that_is_no_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(TerminalError, match=r"svc.*openssl rand") as caught:
        read_keys(text, "telling svc")
    assert text in ("", "whsec_") or text not in str(caught.value)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("says", "gone", "words"),
    [
        (Says(404, body=b"no_service"), False, r"answered 404 \(no_service\): there is nothing at its address"),
        (Says(403, body=b"x" * 100_000), False, r"answered 403 \(x{200}\): it does not allow this"),
        (Says(410), True, "answered 410 .*wants no more"),
        (Says(400, body=b"\x00\xffinvalid\n payload"), False, r"answered 400 \(.*invalid payload\)"),
    ],
)
def test_a_refusal_is_an_answer(says: Says, gone: bool, words: str) -> None:
    with Receiver([says]) as receiver:
        answer = chat(receiver.url).send("msg_1", MESSAGE)
    assert (answer.accepted, answer.gone, answer.status) == (False, gone, says.status)
    assert re.search(words, answer.said), answer.said


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_by_itself_is_tried_again(status: int) -> None:
    with Receiver([Says(status)]) as receiver, pytest.raises(TransientError, match=f"answered {status}") as caught:
        chat(receiver.url).send("msg_1", MESSAGE)
    assert caught.value.retry_after_s is None


def test_a_wish_to_be_called_later_is_passed_on() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3600), usegmt=True)
    for wish, least, most in (("7", 7, 7), (later, 3000, 3600), ("Mon, 01 Jan 2001 00:00:00 GMT", 0, 0)):
        with Receiver([Says(429, {"Retry-After": wish})]) as receiver, pytest.raises(TransientError) as caught:
            chat(receiver.url).send("msg_1", MESSAGE)
        assert caught.value.retry_after_s is not None and least <= caught.value.retry_after_s <= most
    with Receiver([Says(429, {"Retry-After": "soon"})]) as receiver, pytest.raises(TransientError) as caught:
        chat(receiver.url).send("msg_1", MESSAGE)
    assert caught.value.retry_after_s is None


def test_no_address_stands_in_an_error_whatever_the_target_repeats() -> None:
    with Receiver() as receiver:
        path = receiver.url.partition("0.0.1")[2].partition("/")[2]
        for status in (400, 500):
            receiver.says = [Says(status, body=f"cannot POST /{path} at {receiver.url}".encode())]
            said = ""
            try:
                said = chat(receiver.url).send("msg_1", MESSAGE).said
            except TransientError as error:
                said = str(error)
            assert "cannot POST ***" in said and "hush" not in said


def test_nor_does_a_part_of_it() -> None:
    with Receiver() as receiver:
        for key, echo in (
            ("a-long-key", "a-long-key"),
            ("a%2Dlong-key", "a-long-key"),
            ("x?t=a-long-key", "a-long-key"),
        ):
            receiver.says = [Says(400, body=f"there is no hook <{echo}> here".encode())]
            assert "no hook <***> here" in chat(f"{receiver.url}/{key}").send("msg_1", MESSAGE).said


def test_a_target_that_answers_nonsense_breaks_nothing() -> None:
    for headers, says in (
        ({"Location": "http://["}, "sends on, which is not followed"),
        ({"Location": "https://" + "a" * 9000 + "/"}, "which is not followed"),
    ):
        with Receiver([Says(307, headers)]) as receiver:
            answer = chat(receiver.url).send("msg_1", MESSAGE)
        assert says in answer.said and len(answer.said) < 250
    for wish in ("Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2026 99999999999999999999:00:00"):
        with Receiver([Says(503, {"Retry-After": wish})]) as receiver, pytest.raises(TransientError) as caught:
            chat(receiver.url).send("msg_1", MESSAGE)
        assert caught.value.retry_after_s is None


def test_a_redirect_is_followed_within_the_origin_alone() -> None:
    with Receiver() as receiver, Receiver() as elsewhere:
        receiver.says = [Says(308, {"Location": "/hook/"}), Says(200)]
        assert service(receiver.url).send("msg_1", MESSAGE).accepted
        assert [request.path for request in receiver.received] == ["/services/T0/B0/hush", "/hook/"]
        assert receiver.received[0].body == receiver.received[1].body
        receiver.says = [Says(307, {"Location": elsewhere.url})]
        answer = service(receiver.url).send("msg_2", MESSAGE)
        assert not answer.accepted and "sends on to 127.0.0.1, which is not followed" in answer.said
        # A redirect that would turn the message into a question.
        receiver.says = [Says(302, {"Location": "/login"})]
        assert "answered 302" in service(receiver.url).send("msg_3", MESSAGE).said
        # One without an end.
        receiver.says = [Says(308, {"Location": f"/{number}"}) for number in range(9)]
        assert "without an end" in service(receiver.url).send("msg_4", MESSAGE).said
        assert elsewhere.received == []


def test_a_target_that_hangs_or_is_not_there_did_not_answer() -> None:
    with Receiver([Says(after_s=120)]) as receiver, pytest.raises(TransientError, match=r"too slow.*telling chat"):
        chat(receiver.url, read_timeout_s=0.2).send("msg_1", MESSAGE)
    with pytest.raises(TransientError, match="connection refused") as caught:
        chat(receiver.url).send("msg_1", MESSAGE)
    assert "hush" not in str(caught.value)


def test_a_refusal_that_never_ends_is_read_to_its_bound() -> None:
    with Receiver([Says(400, {"Content-Length": str(1 << 40)}, body=b"x" * 20_000)]) as receiver:
        assert len(chat(receiver.url).send("msg_1", MESSAGE).said) < 400


def test_a_certificate_is_verified(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with Receiver(certificate=certificate) as receiver:
        with pytest.raises(TransientError, match="certificate is not trusted: self-signed certificate"):
            service(receiver.url).send("msg_1", MESSAGE)
        assert service(receiver.url, ca=certificate[0]).send("msg_1", MESSAGE).accepted
        assert len(receiver.received) == 1
    (tmp_path / "none.pem").write_text("no certificate")
    for name in ("none.pem", "absent.pem"):
        with pytest.raises(TerminalError, match=f"cannot read .*{name}"):
            service(receiver.url, ca=tmp_path / name).send("msg_1", MESSAGE)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example/x",
        "ftp://h/x",
        "https://u:pw@h/x",
        "https:///x",
        "https://h:x/y",
        "http://203.0.113.1/x",
        "https://h/a b",
    ],
)
def test_an_address_from_a_secret_is_held_to_the_same_rules(url: str) -> None:
    with pytest.raises(TerminalError, match="telling chat") as caught:
        chat(url).send("msg_1", MESSAGE)
    assert not url or url not in str(caught.value)
