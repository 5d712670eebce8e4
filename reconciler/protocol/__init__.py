"""What device and controller say to each other, and the one strict signature verifier.

Python 3.10, standard library only: this package ships in the image and runs as root on a device. It parses untrusted
bytes into frozen dataclasses and back; it opens no network connection and keeps no state. Called by agent, server,
controller, signer and store adapters alike, so that both ends read a document by the same lines. Source: design,
section 5.

Compatibility. A fleet always holds old agents, and a controller may be rolled back under newer ones. Within protocol 1:
keys may be added and are ignored by whoever does not know them; no key is removed, renamed or given another meaning,
and the closed sets of words (phases, health, slots) do not grow. A key that an old agent must not ignore is named in
the assignment's `critical` list: an agent that does not know it refuses the assignment and says so. Anything else
needs protocol 2, spoken beside 1 until no device reports 1. `tests/protocol/previous/` holds the documents of the
previous release; they never change.
"""

PROTOCOL = 1
"""The number that every document carries."""
