#!/bin/bash
# Is this device, or this root filesystem, in order? One line a check, or one JSON document; changes nothing.
#
#   healthcheck.sh [--json] [--root DIR]
#
#   --root DIR   judge the root filesystem below DIR instead of the running system. What only a running system can tell
#                is reported as skipped. So it is without --root where no systemd runs: in the sandbox of a build.
#   --json       {"checks":[{"name":"disk","status":"ok|warning|critical|skipped","message":"…"}],"status":"ok|warning|critical"}
#
# SITE_ID=golden marks an image that belongs to no site: the site checks (video-ingest, vpn, cameras) are skipped.
# Without SITE_ID in the environment it is read from etc/environment of the root.
#
# Exit codes as Nagios plugins have them: 0 all well, 1 warning, 2 critical, 3 the check itself could not run (wrong usage).
# Run by: the image builder on the finished root, the agent before and after an update, people.
set -u
export LC_ALL=C

readonly CAMERA_PORT=554 # RTSP
readonly METRICS_PORT=9100
readonly DISK_WARNING=85 DISK_CRITICAL=95
readonly AGENT_SILENCE_S=300 # its unit's WatchdogSec; systemd then starts it anew
# What a program may take to answer: slow hardware starts a Python program in seconds. The agent waits for a minute in all.
readonly PATIENCE_S=10

ROOT=/
JSON=false

die() {
  printf 'healthcheck.sh: %s\n' "$1" >&2
  exit 3
}

while [ $# -gt 0 ]; do
  case $1 in
    --json) JSON=true ;;
    --root)
      [ $# -ge 2 ] || die "--root needs a folder; write --root DIR"
      ROOT=$2
      shift
      ;;
    -h | --help)
      sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *) die "unknown argument '$1'; it knows --json, --root DIR and --help" ;;
  esac
  shift
done
[ -d "$ROOT" ] || die "--root $ROOT is no folder; name the top of a root filesystem"
ROOT=${ROOT%/} # the top itself is then the empty string, so that "$ROOT/etc" is right for both

NAMES=()
STATUSES=()
MESSAGES=()
WORST=0

# report NAME STATUS MESSAGE
report() {
  local message=$3
  message=${message//[^[:print:]]/ } # a message is one line of ASCII, whatever a program printed
  NAMES+=("$1")
  STATUSES+=("$2")
  MESSAGES+=("${message:0:200}")
  case $2 in
    warning) [ "$WORST" -ge 1 ] || WORST=1 ;;
    critical) WORST=2 ;;
  esac
}

# Is the root the system that runs now? A build's chroot has no systemd running and counts as a folder.
running() { [ -z "$ROOT" ] && [ -d /run/systemd/system ]; }

# value FILE KEY: print KEY's value of a KEY=value file, quotes removed; no fork, since 52 agents may run this at once.
VALUE=
value() {
  local line
  VALUE=
  [ -r "$1" ] || return 1
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      "$2="*)
        VALUE=${line#*=}
        VALUE=${VALUE#\"}
        VALUE=${VALUE%\"}
        ;;
    esac
  done <"$1"
  [ -n "$VALUE" ]
}

# Every check of a running system begins with this.
only_running() {
  running && return 0
  report "$1" skipped "not a running system"
  return 1
}

only_at_a_site() {
  if [ "$SITE" = golden ]; then
    report "$1" skipped "golden image: belongs to no site"
    return 1
  fi
  if [ -z "$SITE" ] && running; then
    report "$1" critical "no SITE_ID in /etc/environment: cloud-init has not configured this device"
    return 1
  fi
  only_running "$1"
}

# ---------------------------------------------------------------- the image

check_image() {
  if ! value "$ROOT/etc/edge-release" RELEASE; then
    report image critical "etc/edge-release names no RELEASE"
    return
  fi
  local release=$VALUE
  if running && value /etc/edge-image-version current && [ "$VALUE" != "$release" ]; then
    report image warning "the image is $release, but /etc/edge-image-version says $VALUE"
    return
  fi
  report image ok "$release"
}

check_files() {
  local path missing=""
  for path in etc/systemd/system/video-ingest.service etc/systemd/system/edge-agent.service \
    etc/systemd/system/edge-esp.service etc/systemd/system/edge-ssh-keys.service etc/systemd/system/edge-trial.service \
    etc/systemd/system/edge-trial.timer etc/ssh/sshd_config.d/50-edge.conf etc/fail2ban/jail.d/edge.conf \
    etc/chrony/chrony.conf etc/ufw/user.rules etc/cloud/cloud.cfg.d/99-edge.cfg etc/logrotate.d/edge \
    etc/default/prometheus-node-exporter usr/lib/edge/image-id usr/local/bin/healthcheck.sh; do
    [ -s "$ROOT/$path" ] || missing+=" $path"
  done
  if [ -n "$missing" ]; then
    report files critical "missing or empty:$missing"
  else
    report files ok "all in place"
  fi
}

# Can the boot loader start it? A root without a distribution, a staging root, has no kernel at all.
check_boot() {
  local name version
  if [ ! -d "$ROOT/usr/lib/modules" ]; then
    report boot skipped "no kernel here"
    return
  fi
  for name in vmlinuz initrd.img; do
    if [ ! -s "$ROOT/boot/$name" ]; then
      report boot critical "boot/$name is missing or leads nowhere"
      return
    fi
  done
  version=$(readlink "$ROOT/boot/vmlinuz")
  version=${version##*vmlinuz-}
  if [ ! -s "$ROOT/usr/lib/modules/$version/modules.dep" ]; then
    report boot critical "the kernel $version has no modules"
  else
    report boot ok "kernel $version"
  fi
}

check_packages() {
  local answer
  if [ -n "$ROOT" ] || ! command -v dpkg >/dev/null; then
    report packages skipped "not this system's"
  elif answer=$(timeout $PATIENCE_S dpkg --audit 2>&1) && [ -z "$answer" ]; then
    report packages ok "all configured"
  else
    report packages critical "dpkg --audit: ${answer%%$'\n'*}"
  fi
}

# ---------------------------------------------------------------- the running system

check_disk() {
  only_running disk || return
  local used path worst=0 where=/
  for path in / /data /var/lib/docker; do
    [ -d "$path" ] || continue
    used=$(df --output=pcent "$path" 2>/dev/null | tail -n 1)
    used=${used//[!0-9]/}
    [ "${used:-0}" -ge "$worst" ] && worst=${used:-0} where=$path
  done
  if [ "$worst" -ge $DISK_CRITICAL ]; then
    report disk critical "$where is $worst % full"
  elif [ "$worst" -ge $DISK_WARNING ]; then
    report disk warning "$where is $worst % full"
  else
    report disk ok "$where is $worst % full"
  fi
}

# Does what must survive an update lie on the data partition? Where the initrd stacked no layer there is none.
check_data() {
  only_running data || return
  local slot='' device place options state=""
  if ! value /run/edge/storage data; then
    report data skipped "not started from a slot: /data is a folder"
    return
  fi
  device=$VALUE
  value /run/edge/storage slot && slot=$VALUE
  if [ "$device" = memory ]; then
    report data critical "the data partition is missing or broken: nothing survives the next boot"
    return
  fi
  # After an error the kernel lets nobody write any more. It is the file system's own options, the last ones, that tell: the
  # agent, whose sandbox this may run in, sees the place itself read-only.
  while read -r _ _ _ _ place options; do
    [ "$place" = /data ] && state=,${options##* },
  done </proc/self/mountinfo
  if [[ $state != *,rw,* ]]; then
    report data critical "/data on $device cannot be written"
  else
    report data ok "slot $slot, /data on $device"
  fi
}

check_memory() {
  only_running memory || return
  local key number total=0 available=0
  while read -r key number _; do
    case $key in
      MemTotal:) total=$number ;;
      MemAvailable:) available=$number ;;
    esac
  done </proc/meminfo
  if [ "$total" -eq 0 ]; then
    report memory warning "/proc/meminfo cannot be read"
  elif [ $((available * 100 / total)) -lt 5 ]; then
    report memory critical "$((available / 1024)) MiB of $((total / 1024)) MiB available"
  else
    report memory ok "$((available / 1024)) MiB of $((total / 1024)) MiB available"
  fi
}

check_time() {
  only_running time || return
  local answer
  if answer=$(timeout 5 chronyc -n waitsync 1 0.5 2>&1); then
    report time ok "within 0.5 s of its sources"
  else
    report time warning "not synchronised: ${answer##*$'\n'}"
  fi
}

# service NAME UNIT
check_service() {
  only_running "$1" || return
  local state
  state=$(timeout 5 systemctl is-active "$2" 2>/dev/null)
  case $state in
    active) report "$1" ok "$2 is active" ;;
    activating) report "$1" warning "$2 is starting" ;; # video-ingest may be pulling for minutes
    *) report "$1" critical "$2 is ${state:-unknown}: see journalctl -u $2" ;;
  esac
}

check_agent() {
  only_running agent || return
  if [ ! -e /var/lib/edge-agent/agent.json ]; then
    report agent skipped "not enrolled: there is no /var/lib/edge-agent/agent.json"
    return
  fi
  local key text now fed silence
  local -A unit=()
  while IFS='=' read -r key text; do unit[$key]=$text; done < <(timeout 5 systemctl show edge-agent.service \
    --property=ActiveState,SubState,WatchdogTimestampMonotonic,NRestarts 2>/dev/null)
  read -r now _ </proc/uptime
  fed=$((${unit[WatchdogTimestampMonotonic]:-0} / 1000000)) # 0: a drop-in of somebody's has no watchdog
  silence=$((${now%.*} - fed))
  if [ "${unit[SubState]:-}" = auto-restart ]; then
    report agent critical "edge-agent.service has failed, ${unit[NRestarts]} times so far: see journalctl -u edge-agent.service"
  elif [ "${unit[ActiveState]:-}" = active ] && [ $fed -gt 0 ] && [ $silence -gt $AGENT_SILENCE_S ]; then
    report agent critical "edge-agent.service has not fed its watchdog for $silence s"
  else
    check_service agent edge-agent.service
  fi
}

check_gpu() {
  if value "$ROOT/usr/lib/edge/recipe.env" GPU && [ "$VALUE" = none ]; then
    report gpu skipped "this variant has no GPU driver"
    return
  fi
  only_running gpu || return
  local answer
  if ! command -v nvidia-smi >/dev/null; then
    report gpu critical "nvidia-smi is not installed"
  elif answer=$(timeout $PATIENCE_S nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1); then
    report gpu ok "${answer%%$'\n'*}"
  else
    report gpu critical "nvidia-smi: ${answer%%$'\n'*}"
  fi
}

# ufw asks iptables, which waits for whoever writes rules: for Docker, whenever a container starts. No answer in time is no
# firewall that is down.
check_firewall() {
  only_running firewall || return
  local answer status
  answer=$(timeout $PATIENCE_S ufw status 2>&1)
  status=$?
  case $answer in
    *"Status: active"*) report firewall ok "active" ;;
    *) if [ $status -eq 124 ]; then
      report firewall warning "ufw did not answer within $PATIENCE_S s"
    else
      report firewall critical "ufw is not active: ${answer%%$'\n'*}"
    fi ;;
  esac
}

# sshd_settings: what sshd makes of its configuration. Where it doesn't run it needs its folder, and a host key, which a
# golden image hasn't: for the question alone.
sshd_settings() {
  local folder status made=false
  if running; then
    timeout $PATIENCE_S sshd -T 2>&1
    return
  fi
  folder=$(mktemp -d) || return
  mkdir /run/sshd 2>/dev/null && made=true
  ssh-keygen -q -t ed25519 -N '' -f "$folder/key" && timeout $PATIENCE_S sshd -T -h "$folder/key" 2>"$folder/errors"
  status=$?
  [ $status -eq 0 ] || grep -v 'Unable to load host key' "$folder/errors"
  if $made; then rmdir /run/sshd; fi
  rm -rf "$folder"
  return $status
}

check_ssh() {
  local answer
  if ! running && { [ -n "$ROOT" ] || ! command -v sshd ssh-keygen >/dev/null || [ "$(id -u)" -ne 0 ]; }; then
    report ssh skipped "not a running system"
  elif ! answer=$(sshd_settings); then
    report ssh critical "sshd -T: ${answer%%$'\n'*}"
  elif [[ $answer == *"passwordauthentication no"* && $answer == *"kbdinteractiveauthentication no"* ]]; then
    report ssh ok "no passwords"
  else
    report ssh critical "sshd takes passwords"
  fi
}

check_fail2ban() {
  only_running fail2ban || return
  local answer
  if answer=$(timeout $PATIENCE_S fail2ban-client status sshd 2>&1); then
    report fail2ban ok "watches sshd"
  else
    report fail2ban critical "no jail sshd: ${answer%%$'\n'*}"
  fi
}

check_metrics() {
  only_running metrics || return
  local answer
  if answer=$(timeout $PATIENCE_S curl -fsS -o /dev/null "http://127.0.0.1:$METRICS_PORT/" 2>&1); then
    report metrics ok "the node exporter answers"
  else
    report metrics critical "the node exporter does not answer: ${answer%%$'\n'*}"
  fi
}

# ---------------------------------------------------------------- the site

check_vpn() {
  only_at_a_site vpn || return
  value /etc/edge/site.env VPN_TYPE || VALUE=unknown
  local last answer
  case $VALUE in
    none) report vpn ok "this site has none" ;;
    wireguard)
      # WireGuard renews its handshake every two minutes while there is traffic; three without one is a dead tunnel.
      last=$(timeout 5 wg show wg0 latest-handshakes 2>/dev/null | awk '{ if ($2 > m) m = $2 } END { print m + 0 }')
      if [ $(($(date +%s) - ${last:-0})) -le 180 ]; then
        report vpn ok "last handshake at $(date -u -d "@$last" +%H:%M:%SZ)"
      else
        report vpn critical "no WireGuard handshake in the last 180 s"
      fi
      ;;
    ipsec)
      answer=$(timeout 5 swanctl --list-sas 2>/dev/null)
      case $answer in
        *ESTABLISHED*) report vpn ok "IPsec established" ;;
        *) report vpn critical "no IPsec connection is established" ;;
      esac
      ;;
    *) report vpn critical "/etc/edge/site.env names no VPN_TYPE" ;;
  esac
}

# reaches ADDRESS: does a camera accept a connection? Address as in the site's spec: HOST, HOST:PORT, IPv6, [IPv6]:PORT.
reaches() {
  local host=$1 port=$CAMERA_PORT
  case $1 in
    \[*\]:*) host=${1%]:*} host=${host#[} port=${1##*]:} ;;
    \[*\]) host=${1#[} host=${host%]} ;;
    *:*:*) ;;
    *:*) host=${1%:*} port=${1##*:} ;;
  esac
  # shellcheck disable=SC2016 # the inner shell expands them
  timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$host" "$port" 2>/dev/null
}

check_cameras() {
  only_at_a_site cameras || return
  local camera i silent="" cameras=() pids=()
  while IFS= read -r camera || [ -n "$camera" ]; do
    case $camera in "" | \#*) continue ;; esac
    cameras+=("$camera")
  done </etc/edge/cameras 2>/dev/null
  if [ "${#cameras[@]}" -eq 0 ]; then
    report cameras ok "this site lists none"
    return
  fi
  for camera in "${cameras[@]}"; do
    reaches "$camera" &
    pids+=($!)
  done
  local count=0
  for i in "${!pids[@]}"; do
    wait "${pids[$i]}" || { silent+=" ${cameras[$i]}" && count=$((count + 1)); }
  done
  # A camera that is off is the site's trouble; none at all is likely to be ours.
  if [ "$count" -eq "${#cameras[@]}" ]; then
    report cameras critical "none of $count answers"
  elif [ "$count" -gt 0 ]; then
    report cameras warning "$count of ${#cameras[@]} do not answer:$silent"
  else
    report cameras ok "all ${#cameras[@]} answer"
  fi
}

# ---------------------------------------------------------------- checks that a release adds

# Executables in health.d: exit 0, 1 or 2 as above, the first line printed is the message. They see ROOT and SITE_ID.
check_added() {
  local script answer code
  for script in "$ROOT"/usr/local/lib/edge/health.d/*; do
    [ -f "$script" ] || continue
    if [ ! -x "$script" ]; then
      report "${script##*/}" warning "in health.d, but not executable"
      continue
    fi
    answer=$(ROOT=${ROOT:-/} SITE_ID=$SITE timeout 10 "$script" 2>&1 </dev/null)
    code=$?
    answer=${answer%%$'\n'*}
    case $code in
      0) report "${script##*/}" ok "${answer:-ok}" ;;
      1) report "${script##*/}" warning "${answer:-no message}" ;;
      2) report "${script##*/}" critical "${answer:-no message}" ;;
      124) report "${script##*/}" critical "no answer within 10 s" ;;
      *) report "${script##*/}" critical "exit code $code: ${answer:-no message}" ;;
    esac
  done
}

print_json() {
  local i name message separator="" words=(ok warning critical)
  printf '{"checks":['
  for i in "${!NAMES[@]}"; do
    name=${NAMES[$i]//\\/\\\\}
    message=${MESSAGES[$i]//\\/\\\\}
    printf '%s{"name":"%s","status":"%s","message":"%s"}' "$separator" "${name//\"/\\\"}" "${STATUSES[$i]}" "${message//\"/\\\"}"
    separator=,
  done
  printf '],"status":"%s"}\n' "${words[$WORST]}"
}

print_lines() {
  local i
  for i in "${!NAMES[@]}"; do
    printf '%-8s %s: %s\n' "${STATUSES[$i]^^}" "${NAMES[$i]}" "${MESSAGES[$i]}"
  done
}

SITE=${SITE_ID:-}
if [ -z "$SITE" ]; then
  value "$ROOT/etc/environment" SITE_ID && SITE=$VALUE
fi

check_image
check_files
check_boot
check_packages
check_disk
check_data
check_memory
check_time
check_service docker docker.service
check_agent
check_gpu
check_firewall
check_ssh
check_fail2ban
check_metrics
only_at_a_site video-ingest && check_service video-ingest video-ingest.service
check_vpn
check_cameras
check_added

if $JSON; then print_json; else print_lines; fi
exit "$WORST"
