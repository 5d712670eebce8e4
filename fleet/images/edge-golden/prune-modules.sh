#!/bin/bash
# Removes the kernel modules that the lists don't name, and the firmware that no module asks for any more. Running it
# twice changes nothing. Called by setup.sh.
#
#   ROOT=DIR prune-modules.sh PATTERN-FILE...      (format: modules.txt; "-" is standard input)
#
# What a module that stays depends on stays too (modules.dep, and the soft dependencies that modprobe knows). Without
# kernel modules below ROOT it does nothing. Exit codes: 0 done, 1 failed, 2 wrong usage.
set -euo pipefail
export LC_ALL=C

ROOT=${ROOT:?prune-modules.sh: ROOT is not set; name the root file system}
ROOT=${ROOT%/}
[ $# -gt 0 ] || { printf 'prune-modules.sh: name a file of patterns, as modules.txt\n' >&2 && exit 2; }
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# The patterns as one regular expression over "path/without/suffix".
EXPRESSION=$(cat -- "$@" | awk '
  { sub(/[ \t]*#.*/, "") }
  NF {
    pattern = $1
    gsub(/[.+^$()|{}\\]/, "\\\\&", pattern)
    gsub(/\*/, ".*", pattern)
    gsub(/\?/, ".", pattern)
    all = all (all == "" ? "" : "|") pattern
  }
  END { print all }')
[ -n "$EXPRESSION" ] || { printf 'prune-modules.sh: %s: no pattern in it; it would remove every module\n' "$*" >&2 && exit 2; }

# kept FOLDER: the paths of the modules that stay, as modules.dep writes them.
kept() {
  EXPRESSION="^($EXPRESSION)\$" awk '
    function name(path) { sub(/.*\//, "", path); sub(/\.ko(\.[a-z0-9]+)?$/, "", path); gsub(/-/, "_", path); return path }
    FILENAME ~ /modules\.dep$/ {
      path = $1
      sub(/:$/, "", path)
      $1 = ""
      needs[path] = $0
      at[name(path)] = path
      bare = path
      sub(/^kernel\//, "", bare)
      sub(/\.ko(\.[a-z0-9]+)?$/, "", bare)
      if (bare ~ ENVIRON["EXPRESSION"]) wanted[++count] = path
      next
    }
    # softdep NAME pre: OTHER… post: OTHER…
    $1 == "softdep" { who = $2; gsub(/-/, "_", who); for (i = 3; i <= NF; i++) if ($i !~ /:/) soft[who] = soft[who] " " $i }
    END {
      for (at_ = 1; at_ <= count; at_++) {
        path = wanted[at_]
        if (path in done) continue
        done[path] = 1
        print path
        total = split(needs[path], more, " ")
        for (i = 1; i <= total; i++) wanted[++count] = more[i]
        total = split(soft[name(path)], more, " ")
        for (i = 1; i <= total; i++) if (name(more[i]) in at) wanted[++count] = at[name(more[i])]
      }
    }' "$1/modules.dep" "$1/modules.softdep" | sort
}

kilobytes() { du -sk --apparent-size -- "$@" 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }'; }

prune_modules() {
  local folder=$1 before after
  [ -s "$folder/modules.dep" ] || depmod ${ROOT:+-b "$ROOT"} "${folder##*/}"
  before=$(kilobytes "$folder")
  kept "$folder" >"$SCRATCH/kept"
  (cd "$folder" && find kernel -type f -name '*.ko*' | sort) >"$SCRATCH/there"
  comm -13 "$SCRATCH/kept" "$SCRATCH/there" >"$SCRATCH/gone"
  if [ -s "$SCRATCH/gone" ]; then
    (cd "$folder" && tr '\n' '\0' <"$SCRATCH/gone" | xargs -0 rm -f -- && find kernel -depth -type d -empty -delete)
  fi
  depmod ${ROOT:+-b "$ROOT"} "${folder##*/}"
  after=$(kilobytes "$folder")
  printf 'modules: %s: %d of %d stay; %d MB of %d MB went\n' "${folder##*/}" \
    "$(comm -12 "$SCRATCH/kept" "$SCRATCH/there" | wc -l)" "$(wc -l <"$SCRATCH/there")" \
    $(((before - after) / 1024)) $((before / 1024))
}

# Firmware that no module below any kernel names. The processor's microcode belongs to no module.
prune_firmware() {
  local firmware="$ROOT/usr/lib/firmware" before name target
  [ -d "$firmware" ] || return 0
  before=$(kilobytes "$firmware")
  find "$ROOT/usr/lib/modules" -name '*.ko*' -type f -print0 | xargs -0r modinfo -F firmware | sort -u >"$SCRATCH/named"
  (
    cd "$firmware"
    shopt -s nullglob globstar
    # The names are patterns in some modules; a link's target stays with the link.
    while IFS= read -r name; do
      for name in $name{,.xz,.zst}; do
        while [ -e "$name" ] || [ -L "$name" ]; do
          printf '%s\n' "$name"
          [ -L "$name" ] || break
          target=$(readlink "$name")
          case $target in
            /*) break ;;
            *) name=$(realpath -sm --relative-to=. "$(dirname "$name")/$target") ;;
          esac
        done
      done
    done <"$SCRATCH/named"
    printf '%s\n' intel-ucode/* amd-ucode/*
  ) | sort -u >"$SCRATCH/kept"
  (cd "$firmware" && find . \( -type f -o -type l \) -printf '%P\n' | sort) >"$SCRATCH/there"
  comm -13 "$SCRATCH/kept" "$SCRATCH/there" >"$SCRATCH/gone"
  if [ -s "$SCRATCH/gone" ]; then
    (cd "$firmware" && tr '\n' '\0' <"$SCRATCH/gone" | xargs -0 rm -f -- && find . -mindepth 1 -depth -type d -empty -delete)
  fi
  printf 'firmware: %d of %d files stay; %d MB of %d MB went\n' "$(comm -12 "$SCRATCH/kept" "$SCRATCH/there" | wc -l)" \
    "$(wc -l <"$SCRATCH/there")" $(((before - $(kilobytes "$firmware")) / 1024)) $((before / 1024))
}

found=false
for folder in "$ROOT"/usr/lib/modules/*/; do
  [ -d "$folder/kernel" ] || continue
  found=true
  prune_modules "${folder%/}"
done
if $found; then prune_firmware; else printf 'modules: no kernel below %s\n' "${ROOT:-/}"; fi
