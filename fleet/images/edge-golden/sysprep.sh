#!/bin/bash
# Takes everything out of a root filesystem that belongs to one machine, or to one run of the builder. After setup.sh and
# healthcheck.sh, before the snapshot. Running it twice changes nothing.
#
#   ROOT=DIR sysprep.sh        ("/" only inside the builder's own system: it removes this machine's identity)
#
# Exit codes: 0 done, 1 a step failed, 2 wrong usage.
set -euo pipefail

ROOT=${ROOT:?sysprep.sh: ROOT is not set; name the root filesystem}
[ -d "$ROOT" ] || { printf 'sysprep.sh: ROOT=%s is no folder\n' "$ROOT" >&2 && exit 2; }
ROOT=${ROOT%/}

# Made anew at the first boot of a slot; one key in every device would be no key.
rm -f "$ROOT"/etc/ssh/ssh_host_*_key "$ROOT"/etc/ssh/ssh_host_*_key.pub
# Empty, not absent: systemd fills an empty one, and an absent one makes the first boot a "first boot" with questions.
mkdir -p "$ROOT/etc"
: >"$ROOT/etc/machine-id"
rm -f "$ROOT/var/lib/dbus/machine-id" "$ROOT/var/lib/systemd/random-seed"
# cloud-init shall take the device for a new instance.
rm -rf "$ROOT/var/lib/cloud"
# Logs, caches, leases and what root typed.
if [ -d "$ROOT/var/log" ]; then find "$ROOT/var/log" -xdev -type f -delete; fi
rm -rf "$ROOT"/var/lib/apt/lists/* "$ROOT"/var/cache/apt/* "$ROOT"/var/lib/dhcp/* "$ROOT"/tmp/* "$ROOT"/var/tmp/*
rm -f "$ROOT/root/.bash_history" "$ROOT/root/.ssh/authorized_keys"
