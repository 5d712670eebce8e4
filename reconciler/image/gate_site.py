"""Rules of the sysprep gate about what belongs to one site or one user: settings, networks, logins. Data alone.

Called by `image.gate_rules`, which joins the tables.
"""

from __future__ import annotations

from reconciler.image.gate_look import Look, Rule, authorized, holds, hostname, hosts, in_homes, says, shadow, site_id

_SEED_NAMES = ("user-data", "meta-data", "network-config", "vendor-data")

SITE: tuple[Rule, ...] = (
    Rule(
        "site-data",
        "what belongs to one site: its SITE_ID, cameras, seed, configuration and state",
        "the image is neutral: its bytes are the same on every site, and a site's data comes from its seed",
        "build with SITE_ID=golden, and keep the site's data in the fleet repo",
        (
            Look(
                (
                    "etc/environment",
                    "etc/environment.d/**",
                    "etc/default/**",
                    "etc/profile",
                    "etc/profile.d/**",
                    "etc/edge/**",
                    "etc/systemd/**",
                    "usr/lib/edge/**",
                    "usr/local/lib/edge/**",
                    "root/.profile",
                    "root/.bashrc",
                    "etc/skel/**",
                ),
                site_id,
            ),
            Look(("etc/edge/cameras", "etc/edge/cameras*", "etc/edge/cameras*/**"), holds("a site's cameras")),
            Look(("etc/edge/site*", "etc/edge/site*/**"), holds("a site's settings")),
            Look(("etc/edge/token*", "etc/edge/device*", "etc/edge/identity*"), holds("a device's identity")),
            Look(("var/lib/edge-agent/**", "data/edge/**"), holds("a device's state")),
            Look(
                tuple(
                    f"{top}/**/{name}"
                    for top in ("var", "data", "boot", "etc", "media", "mnt", "srv")
                    for name in _SEED_NAMES
                )
                + _SEED_NAMES,
                holds("a seed"),
            ),
            Look(
                ("etc/cloud/**",),
                says(
                    r"^[^#\n]*\b(?:userdata_raw|user-data|seedfrom|instance-id)[\"']?\s*:\s*\S", "a seed for cloud-init"
                ),
            ),
            Look(("var/lib/cloud/seed/**", "data/**", "media/**", "mnt/**"), holds("a file of a site or a device")),
        ),
    ),
    Rule(
        "vpn",
        "configurations of a VPN",
        "a tunnel's addresses and keys belong to one site",
        "name the site's tunnel in the fleet repo (`spec.vpn`), and leave these folders as the package made them",
        (
            Look(("etc/wireguard/**",), holds("a VPN's configuration")),
            Look(("etc/openvpn/**",), holds("a VPN's configuration")),
            Look(
                (
                    "etc/ipsec.d/*/**",
                    "etc/ipsec.secrets.d/**",
                    "var/lib/strongswan/*.inc",
                    "etc/swanctl/*/**",
                    "etc/racoon/**",
                ),
                holds("a VPN's configuration"),
            ),
            Look(("etc/ipsec.conf", "etc/ipsec.d/*"), says(r"^\s*conn\s+(?!%default)\S", "a site's tunnel")),
            Look(
                ("etc/ipsec.secrets", "etc/ipsec.d/*"),
                says(r"^[^#\n]*:\s*(?:PSK|RSA|ECDSA|EAP|XAUTH|P12|PIN)\s+\S", "a tunnel's secret"),
            ),
            Look(
                ("etc/swanctl/*.conf", "etc/strongswan.conf"),
                says(r"^\s*(?:remote_addrs|secret\w*)\s*=\s*\S", "a site's tunnel"),
            ),
            Look(
                ("etc/NetworkManager/system-connections/**", "etc/netctl/**", "var/lib/iwd/**"),
                holds("a connection"),
            ),
        ),
    ),
    Rule(
        "time-source",
        "time servers of a site",
        "the image is neutral: a site's time servers come from its seed, and those of another may not answer",
        "leave /etc/chrony/sources.d empty, and name `spec.ntp` in the fleet repo",
        (
            Look(
                (
                    "etc/chrony/sources.d/**",
                    "etc/chrony/conf.d/**",
                    "etc/chrony/chrony.conf",
                    "etc/chrony.conf",
                    "var/lib/chrony/*.sources",
                ),
                says(r"^[ \t]*(?:server|peer|pool|refclock)[ \t]+\S", "a time server"),
            ),
            Look(("etc/ntp.conf", "etc/ntpsec/**"), says(r"^[ \t]*(?:server|peer)[ \t]+(?!127\.)\S", "a time server")),
            Look(
                ("etc/systemd/timesyncd.conf", "etc/systemd/timesyncd.conf.d/**"),
                says(r"^[ \t]*(?:Fallback)?NTP[ \t]*=[ \t]*\S", "a time server"),
            ),
        ),
    ),
    Rule(
        "network",
        "addresses, routes and names of a site's or the builder's network",
        "a device would take an address of another network, or answer to another's name",
        "let the image ask for its address by DHCP, and remove the builder's resolv.conf, hosts and hostname in sysprep.sh",
        (
            Look(
                ("etc/netplan/**", "lib/netplan/**", "usr/lib/netplan/**", "etc/cloud/cloud.cfg.d/**"),
                says(
                    r"^[^#\n]*\b(?:addresses|gateway4|gateway6|routes|macaddress|access-points|password|nameservers)[\"']?\s*:",
                    "a network's addresses",
                ),
            ),
            Look(
                ("etc/systemd/network/**",),
                says(
                    r"^[ \t]*(?:Address|Gateway|DNS|MACAddress|PrivateKey|PublicKey|Endpoint)[ \t]*=[ \t]*\S",
                    "a network's addresses",
                ),
            ),
            Look(
                ("etc/network/interfaces", "etc/network/interfaces.d/**"),
                says(r"^[ \t]*(?:address|gateway|dns-nameservers|wpa-psk|hwaddress)[ \t]+\S", "a network's addresses"),
            ),
            Look(("etc/udev/rules.d/*persistent-net*",), says(r"^[^#\n]*ATTR\{address\}", "a machine's network card")),
            Look(
                ("etc/resolv.conf",),
                says(
                    r"^[ \t]*(?:nameserver[ \t]+(?!127\.|::1)|search[ \t]+(?!\.\s*$)|domain[ \t]+)\S", "a name server"
                ),
            ),
            Look(("etc/hosts",), hosts),
            Look(("etc/hostname", "etc/mailname"), hostname),
        ),
    ),
    Rule(
        "ssh-user",
        "SSH keys and hosts of users, and authorized keys other than the fleet's own in /etc/ssh/authorized_keys.d/ACCOUNT",
        "whoever has the other half could log in to every device; those whom the fleet lets in are named by its recipe alone",
        "remove them in sysprep.sh; public keys for the whole fleet belong into the recipe's rootfs/etc/ssh/authorized_keys.d",
        (
            Look(("**/.ssh/**",), holds("a user's SSH file")),
            Look(
                ("etc/ssh/authorized_keys*", "etc/ssh/authorized_keys*/**", "**/authorized_keys"),
                authorized,
            ),
            Look(
                ("etc/cloud/**",),
                says(
                    r"^[^#\n]*\b(?:ssh_authorized_keys|ssh_import_id|ssh-authorized-keys)[\"']?\s*:", "authorized keys"
                ),
            ),
            Look(("etc/ssh/ssh_known_hosts*", "etc/ssh/shosts.equiv"), holds("known hosts")),
            Look(("**/.rhosts", "**/.shosts", "etc/hosts.equiv"), holds("trusted hosts")),
        ),
    ),
    Rule(
        "password",
        "passwords of users: a hash, locked or not, an account without one, or one in clear",
        "it would be the same on every device, and a hash that left the house can be tried offline",
        "lock the account (passwd -l of one that has no hash, or ! in /etc/shadow), and remove backups of the file",
        (
            Look(("etc/shadow", "etc/shadow[-.~]*"), shadow(empty_is_open=True)),
            Look(("etc/passwd", "etc/passwd[-.~]*"), shadow(empty_is_open=True)),
            Look(
                ("etc/gshadow", "etc/gshadow[-.~]*", "etc/group", "etc/group[-.~]*"),
                shadow(empty_is_open=False),
            ),
            Look(("var/backups/*shadow*", "var/backups/passwd*", "**/shadow.bak"), shadow(empty_is_open=False)),
            Look(("etc/security/opasswd",), holds("old passwords")),
            Look(("etc/fstab", "etc/auto.*"), says(r"^[^#\n]*[\s,](?:password|pass)=[^\s,]", "a share's password")),
            Look(("var/cache/debconf/passwords.dat*",), says(r"^Value:[ \t]*\S", "an answer to a password question")),
            Look(
                ("etc/cloud/**",),
                says(
                    r"^\s*(?:-\s*)?(?:plain_text_passwd|passwd|hashed_passwd|password)\s*:\s*[\"']?[^\s\"'#*!]",
                    "a user's password",
                ),
            ),
            Look(
                ("etc/cloud/**",), says(r"^\s*chpasswd\s*:\s*$(?:\n\s+.*)*?\n\s+(?:list|users)\s*:", "users' passwords")
            ),
        ),
    ),
    Rule(
        "credentials-file",
        "files in which programs keep a user's or a machine's credentials",
        "whoever gets one device, or one image, has them",
        "remove the file, and give a device its credentials with its site's configuration",
        (
            Look(
                in_homes(
                    ".aws/**",
                    ".azure/**",
                    ".config/gcloud/**",
                    ".config/gh/hosts.yml",
                    ".config/git/credentials",
                    ".git-credentials",
                    ".netrc",
                    "_netrc",
                    ".pgpass",
                    ".my.cnf",
                    ".mylogin.cnf",
                    ".s3cfg",
                    ".boto",
                    ".pypirc",
                    ".vault-token",
                    ".kube/config",
                    ".cargo/credentials*",
                    ".config/rclone/**",
                    ".terraform.d/credentials*",
                    ".htpasswd",
                    ".smbcredentials",
                    ".gnupg/private-keys-v1.d/**",
                    ".gnupg/secring.gpg",
                    ".password-store/**",
                    ".docker/trust/private/**",
                    "*.keytab",
                    "*.kdbx",
                    "*.p12",
                    "*.pfx",
                    "*.jks",
                ),
                holds("credentials"),
            ),
            Look(
                in_homes(".npmrc", ".yarnrc*"),
                says(r"_(?:authToken|auth|password)\s*=\s*\S", "a registry's credentials"),
            ),
            Look(
                (
                    "etc/apt/auth.conf",
                    "etc/credstore/**",
                    "etc/credstore.encrypted/**",
                    "usr/lib/credstore/**",
                    "etc/apt/auth.conf.d/**",
                    "etc/docker/key.json",
                    "etc/ppp/*-secrets",
                    "var/lib/samba/private/**",
                    "var/lib/ubuntu-advantage/private/**",
                    "var/lib/NetworkManager/secret_key",
                    "etc/brlapi.key",
                    "etc/krb5.keytab",
                    "var/lib/amazon/ssm/**",
                    "var/lib/rancher/**",
                    "var/lib/kubelet/**",
                    "var/lib/tailscale/**",
                    "var/lib/zerotier-one/*.secret",
                    "run/secrets/**",
                ),
                holds("credentials"),
            ),
            Look(("etc/chrony/chrony.keys", "etc/chrony.keys"), says(r"^\s*\d+\s+\S+", "an NTP key")),
            Look(
                ("etc/wpa_supplicant/**", "etc/hostapd/**"),
                says(r"^\s*(?:psk|password|wpa_passphrase)\s*=\s*\S", "a key"),
            ),
        ),
    ),
)
