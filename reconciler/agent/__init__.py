"""What runs on a device: a pure transition table, and thin hands.

Python 3.10, standard library only, with the programs gpgv and (for packed images) zstd: shipped in the image, runs as
root. `machine` says what follows from what; `judge` which assignments are accepted; `agent` does one step at a time
through three ports (`hardware`, `transport`, and the instant it is given); `device` carries an agent over reboots. It
imports nothing of this project but `protocol`. Source: design, section 5.
"""

VERSION = "1.0"
"""Version of the agent, told in its reports."""
