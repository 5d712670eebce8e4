"""Which of a device's reports the store may take for newer, from boot ids and sequences alone. Pure.

Late, doubled and reordered reports are normal. Under one boot id the sequence must rise; a boot id never seen is
newer; an earlier one must at least go beyond what it has sent before. Whether that last case is a straggler from
before the reboot or a second device under the same name takes times to tell, and is decided by the controller's fold,
which sees them. Called by the stores. Source: design §5, "A report: device, boot id, rising
sequence".
"""

from __future__ import annotations

import json

REMEMBERED = 8
"""Boot ids kept a device. An older one would count as new again, and no report is eight reboots late."""

Boots = tuple[tuple[str, int], ...]
"""(boot id, its last sequence), the latest boot first."""


def newer(boots: Boots, boot_id: str, sequence: int) -> Boots | None:
    """What to remember once the report is taken, or None where it repeats what is recorded."""
    last = dict(boots).get(boot_id)
    if last is not None and sequence <= last:
        return None
    return ((boot_id, sequence), *(pair for pair in boots if pair[0] != boot_id))[:REMEMBERED]


def to_json(boots: Boots) -> str:
    """For the store's row."""
    return json.dumps(boots, separators=(",", ":"))


def from_json(text: str) -> Boots:
    """From the store's row. ValueError or TypeError: not what `to_json` wrote."""
    return tuple((str(boot), int(sequence)) for boot, sequence in json.loads(text))
