#!/bin/bash
# Turns a minimal Ubuntu 22.04 root filesystem into the golden image. Non-interactive; running it twice changes nothing.
#
#   ROOT=DIR SITE_ID=golden RELEASE=v1.4.2 SOURCE_DATE_EPOCH=SECONDS [PINS=FILE] setup.sh
#
#   ROOT                the root filesystem to work on. "/" (default) is the system itself: packages are installed, as root.
#                       Any other folder is a staging root: only files are written, all of them below it, by any user.
#   SITE_ID             "golden" (default) suppresses the site steps. A site's name is for a device set up by hand.
#   RELEASE             the image's release, written to etc/edge-release.
#   SOURCE_DATE_EPOCH   the time that files of a staging root get, so that the same input gives the same image.
#   PINS                file of "name version" lines, from the Image document: they win over every other version.
#
# Exit codes: 0 done, 1 a step failed (its name is the last line printed), 2 wrong usage.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${ROOT:-/}
SITE_ID=${SITE_ID:-golden}
RELEASE=${RELEASE:-}
PINS=${PINS:-}

usage() {
  printf 'setup.sh: %s\n' "$1" >&2
  exit 2
}

STEP=start
step() {
  STEP=$1
  printf 'setup: %s\n' "$1"
}
trap '[ $? -eq 0 ] || printf "setup: failed in step: %s\n" "$STEP" >&2' EXIT

[ -d "$ROOT" ] || usage "ROOT=$ROOT is no folder; name the root filesystem to set up"
[[ $RELEASE =~ ^v[0-9]+(\.[0-9]+){0,2}$ ]] || usage "RELEASE='$RELEASE' is no release; write it as v1.4.2"
[[ $SITE_ID =~ ^[A-Za-z0-9][A-Za-z0-9-]{0,62}$ ]] || usage "SITE_ID='$SITE_ID' is no site name; write golden, or as SITE-2847"
[[ ${SOURCE_DATE_EPOCH:-0} =~ ^[0-9]+$ ]] || usage "SOURCE_DATE_EPOCH='$SOURCE_DATE_EPOCH' is no number of seconds"
[ -z "$PINS" ] || [ -r "$PINS" ] || usage "PINS=$PINS cannot be read; name a file of 'name version' lines"
ROOT=$(cd "$ROOT" && pwd)
LIVE=false
[ "$ROOT" = / ] && LIVE=true
ROOT=${ROOT%/} # the system's own root is then the empty string

write_pins() {
  local name version pins="$ROOT/etc/apt/preferences.d/50-edge-pins"
  [ -n "$PINS" ] || return 0
  mkdir -p "$ROOT/etc/apt/preferences.d"
  : >"$pins.new"
  while read -r name version || [ -n "$name" ]; do
    case $name in "" | \#*) continue ;; esac
    # Above 1000, so that apt also goes down to it.
    printf 'Package: %s\nPin: version %s\nPin-Priority: 1001\n\n' "$name" "$version" >>"$pins.new"
  done <"$PINS"
  mv "$pins.new" "$pins"
}

install_packages() {
  local names=() name
  while read -r name _ || [ -n "$name" ]; do
    case $name in "" | \#*) continue ;; esac
    names+=("$name")
  done <"$HERE/packages.txt"
  apt-get update -q
  # Our own configuration files come with the overlay; --force-confold keeps apt from asking about them the second time.
  apt-get install -q -y --no-install-recommends --allow-downgrades \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${names[@]}"
  apt-mark hold "${names[@]}" >/dev/null
  apt-get clean
}

# enable UNIT: what `systemctl enable` does, without a running systemd.
enable() {
  local wants="$ROOT/etc/systemd/system/multi-user.target.wants"
  mkdir -p "$wants"
  ln -sfn "/etc/systemd/system/$1" "$wants/$1"
}

write_release() {
  printf 'FAMILY=edge-golden\nRELEASE=%s\nBUILT_AT=%s\n' "$RELEASE" \
    "$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)" >"$ROOT/etc/edge-release"
  # On a device it is the agent's: written after every update, with the release that ran before.
  if ! $LIVE || [ ! -e /etc/edge-image-version ]; then
    printf 'current=%s\nprevious=\n' "$RELEASE" >"$ROOT/etc/edge-image-version"
  fi
}

site_steps() {
  if [ "$SITE_ID" = golden ]; then
    printf 'setup: site steps suppressed (SITE_ID=golden); cloud-init takes them on the device\n'
    return
  fi
  local file="$ROOT/etc/environment"
  touch "$file"
  sed -i '/^SITE_ID=/d' "$file"
  printf 'SITE_ID="%s"\n' "$SITE_ID" >>"$file"
  if $LIVE; then systemctl start --no-block video-ingest.service; fi
}

step "packages"
write_pins
if $LIVE; then
  [ "$(id -u)" -eq 0 ] || usage "ROOT=/ installs packages and needs root; name a staging folder in ROOT to try it out"
  install_packages
else
  printf 'setup: %s is a staging root; packages are left to the builder\n' "$ROOT"
fi

step "files"
mkdir -p "$ROOT/etc" "$ROOT/usr/local/bin" "$ROOT/usr/local/lib/edge/health.d" "$ROOT/etc/edge" "$ROOT/var/lib/edge-agent"
cp -R "$HERE/rootfs/." "$ROOT/"
install -m 0755 "$HERE/healthcheck.sh" "$ROOT/usr/local/bin/healthcheck.sh"
chmod 0640 "$ROOT/etc/ufw/user.rules" "$ROOT/etc/ufw/user6.rules"

step "units"
enable edge-agent.service
enable video-ingest.service

step "release"
write_release

step "site"
site_steps

step "times"
if ! $LIVE && [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
  find "$ROOT" -xdev -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
fi
step "done"
