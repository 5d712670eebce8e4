"""Rules of the sysprep gate about what a build leaves behind: a machine's identity, logs, caches, state. Data alone.

Called by `image.gate_rules`, which joins the tables.
"""

from __future__ import annotations

from reconciler.image.gate_look import Look, Rule, anything, exists, holds, in_homes, says

TRACES: tuple[Rule, ...] = (
    Rule(
        "ssh-host-key",
        "SSH host keys, private or public",
        "every device made from the image would have the same key, so that each could pass for any other",
        "delete them in sysprep.sh; a device makes its own at its first boot",
        (
            Look(("etc/ssh/ssh_host_*", "**/ssh_host_*_key", "**/ssh_host_*_key.pub"), holds("an SSH host key")),
            Look(("etc/dropbear/dropbear_*_host_key", "etc/dropbear/initramfs/dropbear_*"), holds("an SSH host key")),
        ),
    ),
    Rule(
        "machine-id",
        "a machine id, or what is derived from one",
        "devices that share it get the same DHCP lease and the same name in logs and metrics",
        "empty /etc/machine-id in sysprep.sh (leave the file), and remove the others",
        (
            Look(("etc/machine-id", "var/lib/dbus/machine-id"), holds("a machine id")),
            Look(("data/machine-id", "usr/lib/machine-id", "var/lib/systemd/machine-id"), holds("a machine id")),
            Look(("etc/kernel/entry-token",), says(r"^\s*[0-9a-f]{32}\s*$", "a machine id")),
            Look(("etc/hostid", "etc/nvme/hostid", "etc/nvme/hostnqn"), holds("a host's id")),
            Look(("etc/iscsi/initiatorname.iscsi",), says(r"^\s*InitiatorName\s*=\s*\S", "an initiator's name")),
        ),
    ),
    Rule(
        "random-seed",
        "a saved random seed, or the key that systemd's credentials are sealed with",
        "devices that start from one seed draw the same numbers, keys among them",
        "remove it in sysprep.sh",
        (
            Look(
                (
                    "var/lib/systemd/random-seed",
                    "var/lib/systemd/credential.secret",
                    "var/lib/urandom/**",
                    "var/lib/random-seed",
                    "etc/random-seed",
                    "boot/**/random-seed",
                    "efi/**/random-seed",
                    "var/lib/**/random-seed",
                    "etc/entropy",
                    "data/random-seed",
                    "**/.gnupg/random_seed",
                    "**/.rnd",
                ),
                holds("a random seed"),
            ),
        ),
    ),
    Rule(
        "cloud-init",
        "what cloud-init wrote when it ran: instances, semaphores, and files that it made from a seed",
        "cloud-init on the device would take the work for done, and apply nothing of the site",
        "remove /var/lib/cloud's instance, instances, data and sem, and what cloud-init wrote, in sysprep.sh",
        (
            Look(
                ("var/lib/cloud/instance", "var/lib/cloud/instances/*", "var/lib/cloud/sem/*", "run/cloud-init/*"),
                anything("cloud-init's state"),
                whatever=True,
            ),
            Look(("var/lib/cloud/data/**", "var/lib/cloud/instances/**"), exists("cloud-init's state"), whatever=True),
            Look(
                (
                    "etc/netplan/50-cloud-init.yaml",
                    "etc/sudoers.d/90-cloud-init-users",
                    "etc/ssh/sshd_config.d/50-cloud-init.conf",
                    "etc/network/interfaces.d/50-cloud-init*",
                ),
                exists("a file that cloud-init wrote for an instance"),
                whatever=True,
            ),
        ),
    ),
    Rule(
        "log",
        "logs with anything in them, journals, crash reports and core dumps (these two by their form as well, in any place)",
        "they tell of the builder, not of the device, and may hold what programs were given",
        "delete or truncate them in sysprep.sh, after the last program of the build has run",
        (
            Look(("var/log/**", "data/log/**"), holds("a log")),
            Look(("var/log/journal/*/", "run/log/journal/*/"), anything("a machine's journal"), whatever=True),
            Look(("**/*.journal", "**/*.journal~"), holds("a journal")),
            Look(
                tuple(
                    f"{top}/**/*.log{end}"
                    for top in ("etc", "root", "home", "opt", "srv", "var", "boot", "usr/local")
                    for end in ("", ".[0-9]*", ".gz", ".xz", ".zst", ".old")
                ),
                holds("a log"),
            ),
            Look(
                ("var/crash/**", "var/lib/systemd/coredump/**", "var/lib/systemd/pstore/**", "var/lib/apport/**"),
                holds("a crash report"),
            ),
            Look(("run/**",), holds("a running system's state")),
        ),
    ),
    Rule(
        "shell-history",
        "histories of shells and other programs, in any folder",
        "people type secrets, and the builder's commands are nobody's business on a device",
        "delete them in sysprep.sh, and build with HISTFILE unset",
        (
            Look(
                in_homes(".*_history", ".*_history-*", ".*_history.*", ".history", ".histfile", "fish_history"),
                holds("a history"),
            ),
            Look(in_homes(".lesshst", ".viminfo", ".wget-hsts", ".recently-used", ".zhistory"), holds("a history")),
        ),
    ),
    Rule(
        "apt-list",
        "package lists of apt, and the caches made from them",
        "they age, differ between two builds, and hold a hundred megabytes that every device would be sent",
        "apt-get clean, and empty /var/lib/apt/lists and /var/cache/apt in sysprep.sh",
        (
            Look(("var/lib/apt/lists/**",), holds("a package list")),
            Look(("var/cache/apt/*.bin", "var/cache/apt/*.bin.*", "var/cache/apt-show-versions/**"), holds("a cache")),
        ),
    ),
    Rule(
        "package-file",
        "downloaded packages and download caches",
        "they are installed already, and every device would be sent them a second time",
        "apt-get clean, and remove them in sysprep.sh",
        (
            Look(("var/cache/apt/archives/**", "var/lib/apt/periodic/**"), holds("a downloaded package")),
            Look(
                tuple(
                    f"{top}/**/*.{kind}"
                    for top in ("root", "home", "opt", "srv", "var", "data")
                    for kind in ("deb", "udeb", "ddeb", "rpm", "snap", "whl")
                ),
                holds("a downloaded package"),
            ),
            Look(("**/.cache/**", "var/cache/pip/**", "**/.npm/_cacache/**"), holds("a download cache")),
        ),
    ),
    Rule(
        "dhcp-lease",
        "DHCP leases and client ids, of any client",
        "a device would ask for the builder's address, or answer with its id",
        "remove them in sysprep.sh",
        (
            Look(
                (
                    "var/lib/dhcp/**",
                    "var/lib/dhcp3/**",
                    "var/lib/dhclient/**",
                    "var/lib/dhcpcd*/**",
                    "var/db/dhcpcd/**",
                    "var/lib/udhcpc/**",
                    "var/lib/systemd/network/**",
                    "run/systemd/netif/**",
                    "var/lib/NetworkManager/*lease*",
                    "**/*.leases",
                    "**/dhclient*.lease",
                ),
                holds("a DHCP lease"),
            ),
            Look(("etc/dhcpcd.duid", "etc/dhcpcd.secret", "**/dhcp6.duid", "**/*.duid"), holds("a DHCP client's id")),
        ),
    ),
    Rule(
        "machine-state",
        "state that services made while they ran: containers, databases, drift files, mail",
        "it is the builder's, and a device would go on from it",
        "remove it in sysprep.sh, and start no service in the build",
        (
            Look(
                ("var/lib/docker/**", "var/lib/containerd/**", "data/docker/**", "var/lib/containers/**"),
                holds("a container engine's state"),
            ),
            Look(("var/lib/fail2ban/**", "var/lib/chrony/**", "var/lib/private/**"), holds("a service's state")),
            Look(
                ("var/lib/NetworkManager/**", "var/lib/bluetooth/**", "var/lib/snapd/state.json"),
                holds("a service's state"),
            ),
            Look(
                ("var/lib/systemd/timesync/**", "var/lib/systemd/rfkill/**", "var/lib/systemd/backlight/**"),
                holds("a service's state"),
            ),
            Look(("var/lib/sudo/ts/**", "var/lib/sudo/lectured/**"), exists("a user's login"), whatever=True),
            Look(("var/mail/**", "var/spool/mail/**", "var/spool/postfix/**", "**/dead.letter"), holds("mail")),
            Look(
                ("var/lib/logrotate/status", "var/lib/prometheus/**", "opt/aws/amazon-cloudwatch-agent/var/**"),
                holds("a service's state"),
            ),
        ),
    ),
    Rule(
        "leftover",
        "temporary files, swap, what an editor or a clone left (.git), and files that a repair of the file system found",
        "they are the builder's, and nobody knows what is in them",
        "empty /tmp, /var/tmp and lost+found in sysprep.sh; leave out a clone's .git, which holds all that was ever in it",
        (
            Look(("tmp/**", "var/tmp/**"), exists("a temporary file"), whatever=True),
            Look(("lost+found/**",), anything("something without a name"), whatever=True),
            Look(("**/.nfs*",), holds("a deleted file")),
            Look(("**/.git/HEAD", "**/.git", "**/.hg/requires", "**/.svn/wc.db"), holds("a clone with its history")),
            Look(("**/.*.sw[op]",), holds("what an editor left")),
        ),
    ),
    # The rules below look at more than one file's name and text: see `image.gate_secrets`, `image.gate_keys`, `image.gate`.
)
