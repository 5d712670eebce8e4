"""What `frames` tells the programs that unpack an image, and what they say (`unpack`): orders, results, and how they end.

Python 3.10, standard library only: runs as root on a device.
"""

from __future__ import annotations

import struct

ORDER = struct.Struct("<4Q?32s")
"""Start and end in the packed file, place and length in the image, whether it is read back, and what its sha256 is then."""
DONE = struct.Struct("<2Q")
"""Place and length of a stretch of the slot that stands."""
PACKING, WRITING, DIFFERS, MISSING = 2, 3, 4, 5
"""How a program ends that has not done all: 1 is Python's own."""
