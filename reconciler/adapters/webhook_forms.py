"""The two forms of a notification on the wire: what Slack's incoming webhooks take, and JSON for a service of one's own. Pure.

Slack: `text` is what every chat shows that takes the same, `blocks` what Slack shows instead. In mrkdwn three characters are
control characters, `&`, `<` and `>`; escaped, no text can become a mention or a link, and `verbatim` keeps Slack from making one
of what only looks so. Other chats read Markdown and plain `@all`: an invisible joiner takes both apart. A header holds 150
characters, a section 3,000, a text 4,000. Called by `webhook`.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from reconciler.model.notices import Message
from reconciler.model.scalars import format_instant

MOST_HEADER = 150
MOST_SECTION = 3000
MOST_TEXT = 4000
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MORE = "…"
_JOINER = "\u2060"
# A mention begins a word; a link or an image of Markdown is `[…](…)`, `[…][…]` or `[…]: …`.
_SEAMS = re.compile(r"(?<!\w)@(?=\w)|](?=[(\[:])")


def slack(message: Message) -> bytes:
    """The body for an incoming webhook of Slack, or of what takes the same."""
    commit = f" · commit `{mrkdwn(message.commit[:12], 50)}`" if message.commit else ""
    about = f"reason `{mrkdwn(message.reason, 300)}`{commit} · {format_instant(message.at)}"
    way = f"<{_linked(message.link)}|Open the dashboard> · `{mrkdwn(message.command, 300)}`"
    if message.link is None:
        way = f"Look closer: `{mrkdwn(message.command, 300)}`"
    tail = f"\n{about}\n{way}"
    title = mrkdwn(message.title, 300)
    text = f"*{title}*\n" + mrkdwn(message.text, MOST_TEXT - len(tail) - len(title) - 3) + tail
    blocks: list[dict[str, Any]] = [
        {
            "type": "header",
            "text": {"type": "plain_text", "text": _cut(_plain(message.title), MOST_HEADER), "emoji": False},
        },
        {"type": "section", "text": _verbatim(mrkdwn(message.text, MOST_SECTION))},
        {"type": "context", "elements": [_verbatim(about), _verbatim(way)]},
    ]
    # `parse` is for `text` what `verbatim` is for blocks.
    body = {"text": text, "blocks": blocks, "parse": "none", "unfurl_links": False, "unfurl_media": False}
    return json.dumps(body, ensure_ascii=False).encode()


def webhook(message: Message) -> bytes:
    """The body for a service of one's own. The same message gives the same bytes: they are signed at each attempt."""
    body = {
        "type": message.kind,
        "timestamp": format_instant(message.at),
        "data": {
            "title": message.title,
            "text": message.text,
            "reason": message.reason,
            "commit": message.commit,
            "count": message.count,
            "link": message.link,
            "command": message.command,
            "events": [event.to_dict() for event in message.events],
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


def mrkdwn(text: str, most: int) -> str:
    """Text that Slack shows as it is, at most so many characters with what the escapes take. No escape is cut in two."""
    parts: list[str] = []
    length = 0
    text = _SEAMS.sub(lambda found: found[0] + _JOINER, _plain(text))
    for character in text:
        part = _ENTITIES.get(character, character)
        if length + len(part) > most - len(_MORE):
            # What is left may just fit without the mark.
            rest = "".join(_ENTITIES.get(c, c) for c in text[len(parts) :])
            return "".join(parts) + (rest if length + len(rest) <= most else _MORE)
        parts.append(part)
        length += len(part)
    return "".join(parts)


def _verbatim(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain(text: str) -> str:
    """Without control characters, which no text of ours needs but a line's end."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - len(_MORE)] + _MORE


def _linked(address: str | None) -> str:
    """An address within `<…|…>`, which `|` and `>` would end."""
    return quote(address or "", safe=":/?#[]@!$&'()*+,;=%~").replace("&", "&amp;")
