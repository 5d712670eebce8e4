#!/bin/bash
# Turns a minimal root filesystem of a variant's distribution into the golden image. Non-interactive; running it twice
# changes nothing.
#
#   ROOT=DIR SITE_ID=golden RELEASE=v1.4.2 SOURCE_DATE_EPOCH=SECONDS [IMAGE_ID=TEXT] [PINS=FILE] setup.sh
#
#   ROOT                the root filesystem to work on. "/" (default) is the system itself, in one of two ways. Where no
#                       systemd runs it is the builder's sandbox: the whole image is made. Where one runs it is a machine
#                       that is set up by hand: its kernel's modules, its initrd and its fstab are left alone. Any other
#                       folder is a staging root: only files are written, all of them below it, by any user.
#   SITE_ID             "golden" (default) suppresses the site steps. A site's name is for a device set up by hand.
#   RELEASE             the image's release, written to etc/edge-release.
#   SOURCE_DATE_EPOCH   the time that files of a staging root get, so that the same input gives the same image.
#   IMAGE_ID            what tells this image from every other, written to usr/lib/edge/image-id; by default made of
#                       release and time.
#   PINS                file of "name version" lines, from the Image document: they win over every other version.
#
# Packages that are missing are installed with apt-get; where none is missing, apt is not asked.
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
IMAGE_ID=${IMAGE_ID:-edge-golden-$RELEASE-${SOURCE_DATE_EPOCH:-0}}
[[ $IMAGE_ID =~ ^[A-Za-z0-9:._-]{1,200}$ ]] || usage "IMAGE_ID='$IMAGE_ID' is no identity; use letters, digits and :._-"
ROOT=$(cd "$ROOT" && pwd)
LIVE=false IMAGE=true
if [ "$ROOT" = / ]; then
  LIVE=true
  [ "$(id -u)" -eq 0 ] || usage "ROOT=/ changes this system and needs root; name a staging folder in ROOT to try it out"
  if [ -d /run/systemd/system ]; then IMAGE=false; fi
fi
ROOT=${ROOT%/} # the system's own root is then the empty string

# ---------------------------------------------------------------- the variant

VARIANT=
# The variant whose distribution and suite are this root's. A staging root has no distribution, and so no variant.
find_variant() {
  local file release="$ROOT/etc/os-release" distribution suite
  [ -r "$release" ] || return 0
  distribution=$(sed -n 's/^ID=//p' "$release" | tr -d \")
  suite=$(sed -n 's/^VERSION_CODENAME=//p' "$release" | tr -d \")
  for file in "$HERE"/*.yaml; do
    if grep -qx "distribution: $distribution" "$file" && grep -qx "suite: $suite" "$file"; then VARIANT=$file; fi
  done
  [ -n "$VARIANT" ] || usage "$distribution $suite has no variant here; the recipe knows $(cd "$HERE" && echo ./*.yaml)"
}

# entries KEY: the items below KEY in the variant's file, one a line, without their reasons.
entries() {
  [ -n "$VARIANT" ] || return 0
  awk -v key="$1:" '
    /^[^ #]/ { inside = ($1 == key) }
    inside && /^  [^ #]/ { sub(/^  (- )?/, ""); sub(/[ \t]+#.*/, ""); print }' "$VARIANT"
}

# names FILE: the first word of every line that says something.
names() { awk 'NF && $1 !~ /^#/ { print $1 }' "$1"; }

# ---------------------------------------------------------------- steps

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
  local wanted=() missing=() name
  mapfile -t wanted < <(names "$HERE/packages.txt" && entries packages | sed 's/:.*//')
  for name in "${wanted[@]}"; do
    # A name that another package provides would not be held, and not be found here: the lists name packages.
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    printf 'setup: installing %s\n' "${missing[*]}"
    apt-get update -q
    # Our own configuration files come with the overlay; --force-confold keeps apt from asking about them the second time.
    apt-get install -q -y --no-install-recommends --allow-downgrades \
      -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing[@]}"
    apt-get clean
  else
    printf 'setup: all %d packages are installed\n' "${#wanted[@]}"
  fi
  printf '%s hold\n' "${wanted[@]}" | dpkg --set-selections
}

copy_files() {
  mkdir -p "$ROOT/etc/edge" "$ROOT/usr/local/bin" "$ROOT/usr/local/lib/edge/health.d" "$ROOT/usr/lib/edge" \
    "$ROOT/var/lib/edge-agent" "$ROOT/var/lib/video-ingest"
  cp -Rf "$HERE/rootfs/." "$ROOT/"
  install -m 0755 "$HERE/healthcheck.sh" "$ROOT/usr/local/bin/healthcheck.sh"
  chmod 0640 "$ROOT/etc/ufw/user.rules" "$ROOT/etc/ufw/user6.rules"
  chmod 0440 "$ROOT/etc/sudoers.d/50-edge"
  # The agent's command, for people.
  ln -sfn /usr/lib/edge-agent/edge-agent.pyz "$ROOT/usr/local/bin/edge-agent"
  # The builder has put it there; by hand it is for us to do.
  [ -e "$ROOT/usr/lib/edge/recipe.env" ] || entries variables | sed 's/: */=/' >"$ROOT/usr/lib/edge/recipe.env"
}

# What belongs to the device and not to a slot lies on the data partition, and is seen at its usual place.
write_data_layout() {
  local pair
  for pair in log:0755 docker:0710 edge:0700 ssh:0700 cidata:0700 video-ingest:0755; do
    mkdir -p "$ROOT/data/${pair%%:*}"
    chmod "${pair##*:}" "$ROOT/data/${pair%%:*}"
  done
  mkdir -p "$ROOT/var/lib/cloud/seed" "$ROOT/var/lib/docker" "$ROOT/var/log"
  ln -sfn /data/cidata "$ROOT/var/lib/cloud/seed/nocloud"
  # The root itself is mounted before fstab is read, by the initrd; the EFI system partition by edge-esp.service.
  cat >"$ROOT/etc/fstab" <<'FSTAB'
/data/log           /var/log               none  bind  0 0
/data/docker        /var/lib/docker        none  bind  0 0
/data/edge          /var/lib/edge-agent    none  bind  0 0
/data/video-ingest  /var/lib/video-ingest  none  bind  0 0
FSTAB
}

# One person's account, without a password: who may use it, the fleet's etc/ssh/authorized_keys.d/edge says.
make_account() {
  id edge >/dev/null 2>&1 || useradd --uid 1000 --user-group --create-home --shell /bin/bash --password '*' edge
}

# The overlay's preset says which units start. What the distribution left out is not missed.
enable_units() {
  local word unit name target
  if ! $LIVE; then
    # As systemctl would, from the units of the overlay that the preset enables.
    while read -r word unit; do
      if [ "$word" != enable ] || [ ! -e "$ROOT/etc/systemd/system/$unit" ]; then continue; fi
      while IFS='=' read -r name target; do
        [ "$name" = WantedBy ] || continue
        mkdir -p "$ROOT/etc/systemd/system/$target.wants"
        ln -sfn "/etc/systemd/system/$unit" "$ROOT/etc/systemd/system/$target.wants/$unit"
      done <"$ROOT/etc/systemd/system/$unit"
    done <"$HERE/rootfs/etc/systemd/system-preset/10-edge.preset"
    return
  fi
  while read -r word unit; do
    case $word in enable | disable) ;; *) continue ;; esac
    if [ -e "/etc/systemd/system/$unit" ] || [ -e "/usr/lib/systemd/system/$unit" ] || [ -e "/lib/systemd/system/$unit" ]; then
      systemctl --quiet "$word" "$unit"
    fi
  done <"$HERE/rootfs/etc/systemd/system-preset/10-edge.preset"
}

prune_modules() {
  { cat "$HERE/modules.txt" && entries modules; } | ROOT=$ROOT/ "$HERE/prune-modules.sh" - | sed 's/^/setup: /'
}

# The newest kernel's initrd, and the two links that the boot loader follows.
make_initrd() {
  local kernel version initrd
  kernel=$(find "$ROOT/boot" -maxdepth 1 -name 'vmlinuz-*' | sort -V | tail -n 1)
  [ -n "$kernel" ] || { printf 'setup: no kernel in /boot; needed to start the image\n' >&2 && return 1; }
  version=${kernel##*/vmlinuz-}
  initrd=$ROOT/boot/initrd.img-$version
  # Not in the overlay: on a machine set up by hand the distribution's own initrd, with every driver, is right.
  cat >"$ROOT/etc/initramfs-tools/conf.d/edge" <<'CONF'
# A small initrd: what hooks/edge adds, and not a driver for every machine there is.
MODULES=list
COMPRESS=zstd
RESUME=none
CONF
  mkinitramfs -o "$initrd.new" "$version"
  mv "$initrd.new" "$initrd"
  # update-initramfs would take another file for somebody's own.
  if [ -d "$ROOT/var/lib/initramfs-tools" ]; then
    (cd / && sha1sum "$initrd") >"$ROOT/var/lib/initramfs-tools/$version"
  fi
  ln -sfn "vmlinuz-$version" "$ROOT/boot/vmlinuz"
  ln -sfn "initrd.img-$version" "$ROOT/boot/initrd.img"
  rm -f "$ROOT"/boot/*.old "$ROOT"/boot/*.old-dkms "$ROOT"/{vmlinuz,initrd.img}{,.old}
  printf 'setup: initrd of %s: %d MB\n' "$version" $(($(stat -c %s "$initrd") >> 20))
}

write_release() {
  printf 'FAMILY=edge-golden\nRELEASE=%s\nBUILT_AT=%s\n' "$RELEASE" \
    "$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)" >"$ROOT/etc/edge-release"
  printf '%s\n' "$IMAGE_ID" >"$ROOT/usr/lib/edge/image-id"
  # On a device it is the agent's: written after every update, with the release that ran before.
  if $IMAGE || [ ! -e /etc/edge-image-version ]; then
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
  if ! $IMAGE; then systemctl start --no-block video-ingest.service; fi
}

step "packages"
find_variant
write_pins
if $LIVE; then
  install_packages
else
  printf 'setup: %s is a staging root; packages are left to the builder\n' "$ROOT"
fi

step "files"
copy_files
if $IMAGE; then write_data_layout; fi
if $LIVE; then make_account; fi

step "units"
enable_units

if $LIVE && $IMAGE; then
  step "modules"
  prune_modules
  step "initrd"
  make_initrd
fi

step "release"
write_release

step "site"
site_steps

step "times"
if ! $LIVE && [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
  find "$ROOT" -xdev -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
fi
step "done"
