#!/bin/bash
# Takes everything out of a root filesystem that belongs to one machine, or to one run of the builder. After setup.sh and
# healthcheck.sh, before the snapshot. Running it twice changes nothing.
#
#   ROOT=DIR SOURCE_DATE_EPOCH=SECONDS sysprep.sh     ("/" only inside the builder's sandbox: it removes a machine's
#                                                     identity, and refuses to run where systemd does)
#
# Exit codes: 0 done, 1 a step failed, 2 wrong usage.
set -euo pipefail
export LC_ALL=C
umask 022
shopt -s nullglob

ROOT=${ROOT:?sysprep.sh: ROOT is not set; name the root filesystem}
[ -d "$ROOT" ] || { printf 'sysprep.sh: ROOT=%s is no folder\n' "$ROOT" >&2 && exit 2; }
ROOT=$(cd "$ROOT" && pwd)
if [ "$ROOT" = / ] && [ -d /run/systemd/system ]; then
  printf 'sysprep.sh: ROOT=/ is a running machine, which would lose its identity; run it in the sandbox of a build\n' >&2
  exit 2
fi
ROOT=${ROOT%/}

# empty FOLDER...: what is in it goes, the folder stays. What the sandbox mounted there is no part of the image.
empty() {
  local folder
  for folder in "$@"; do
    if [ -d "$folder" ] && ! mountpoint -q "$folder"; then find "$folder" -xdev -mindepth 1 -delete; fi
  done
}

# --- identity
# Made anew at a device's first boot; one key in every device would be no key.
rm -f "$ROOT"/etc/ssh/ssh_host_* "$ROOT"/data/ssh/*
# Empty, not absent: systemd fills an empty one, and an absent one makes the first boot a "first boot" with questions.
mkdir -p "$ROOT/etc"
: >"$ROOT/etc/machine-id"
rm -f "$ROOT"/var/lib/dbus/machine-id "$ROOT"/data/machine-id "$ROOT"/etc/hostid "$ROOT"/etc/nvme/host{id,nqn}
rm -f "$ROOT"/var/lib/systemd/{random-seed,credential.secret} "$ROOT"/var/lib/urandom/random-seed
# mmdebstrap copies the builder's. A link: systemd-resolved knows the servers that DHCP names.
if [ -e "$ROOT/etc/hostname" ] || [ -e "$ROOT/usr/bin/systemctl" ]; then printf 'golden\n' >"$ROOT/etc/hostname"; fi
if [ -e "$ROOT/usr/bin/systemctl" ]; then
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$ROOT/etc/hosts"
  ln -sfn ../run/systemd/resolve/stub-resolv.conf "$ROOT/etc/resolv.conf"
  rm -f "$ROOT/etc/adjtime"
fi

# --- what cloud-init and the network did
# cloud-init shall take the device for a new instance. The link to the data partition's seed stays.
if [ -d "$ROOT/var/lib/cloud" ]; then find "$ROOT/var/lib/cloud" -xdev -mindepth 1 -maxdepth 1 ! -name seed -exec rm -rf {} +; fi
rm -f "$ROOT"/etc/netplan/50-cloud-init.yaml "$ROOT"/etc/sudoers.d/90-cloud-init-users \
  "$ROOT"/etc/ssh/sshd_config.d/50-cloud-init.conf "$ROOT"/etc/cloud/cloud-init.disabled
empty "$ROOT"/var/lib/dhcp "$ROOT"/var/lib/NetworkManager "$ROOT"/var/lib/systemd/network "$ROOT"/var/lib/chrony \
  "$ROOT"/data/cidata "$ROOT"/data/log "$ROOT"/data/edge "$ROOT"/data/docker "$ROOT"/var/lib/docker "$ROOT"/var/lib/containerd \
  "$ROOT"/var/lib/edge-agent

# --- logs, caches, and what people typed
if [ -d "$ROOT/var/log" ]; then
  find "$ROOT/var/log" -xdev -type f -delete
  rm -rf "$ROOT"/var/log/journal/*
fi
empty "$ROOT"/var/lib/apt/lists "$ROOT"/var/cache/apt "$ROOT"/var/cache/ldconfig "$ROOT"/tmp "$ROOT"/var/tmp "$ROOT"/run \
  "$ROOT"/var/crash "$ROOT"/var/lib/systemd/coredump "$ROOT"/var/backups "$ROOT"/var/mail
rm -f "$ROOT"/var/cache/debconf/*-old "$ROOT"/var/lib/dpkg/*-old "$ROOT"/var/cache/man/*/* "$ROOT"/var/lib/apt/extended_states.*
rm -f "$ROOT"/etc/{passwd,shadow,group,gshadow,subuid,subgid}- "$ROOT"/etc/.pwd.lock
for home in "$ROOT"/root "$ROOT"/home/*; do
  rm -rf "$home"/.{bash_history,python_history,lesshst,viminfo,wget-hsts,cache,gnupg,aws,docker} "$home/.ssh"
done
# The mirrors are the builder's, and a device changes by a new image.
if [ -d "$ROOT/etc/apt" ]; then
  rm -f "$ROOT"/etc/apt/sources.list "$ROOT"/etc/apt/sources.list.d/* "$ROOT"/etc/apt/apt.conf.d/99mmdebstrap
  printf '# None: a device runs a known version, and changes by a new image.\n' >"$ROOT/etc/apt/sources.list"
fi

# --- the day of the build
# When an account's password was last changed: never, and there is none. useradd writes the day.
if [ -f "$ROOT/etc/shadow" ]; then
  day=$((${SOURCE_DATE_EPOCH:-0} / 86400))
  awk -F: -v OFS=: -v day=$day '{ $3 = day; print }' "$ROOT/etc/shadow" >"$ROOT/etc/shadow.new"
  cat "$ROOT/etc/shadow.new" >"$ROOT/etc/shadow" # keeps owner and mode
  rm -f "$ROOT/etc/shadow.new"
fi
