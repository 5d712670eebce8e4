"""What the help of each command ends with: what it needs, and an example. Tables of text; looks at nothing and calls nothing.

`reconciler --help` and the help of each command shall suffice to work from: `cli.lazy` puts these under them, and a test holds that
every command has its lines, and that every example is one that the command's own parser takes.
"""

from __future__ import annotations

import click

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Try it", ("demo", "simulate")),
    ("Change the fleet, by a pull request", ("promote", "rollback", "pause", "pin", "withdraw", "site", "image")),
    ("Check a fleet repo", ("validate", "test", "diff", "plan", "schema")),
    ("See what is, and why", ("status", "explain", "snapshot", "audit")),
    ("Run it", ("run", "token", "device", "notify", "adopt", "monitoring", "systemd-units")),
    ("Called by others than people", ("builder", "signer", "relay", "publish-review")),
)
"""The commands by what one wants. What stands in no section is shown after them."""

START = """\b
Where to begin:
  reconciler demo                       see a fleet at work on this machine
  reconciler validate --fleet fleet     check a fleet repo
  reconciler promote v1.4.2 --dry-run   see what a promotion would change
  reconciler status                     on the controller: where everything stands

Every command has --help, with what it needs and an example. Settings come from reconciler.yaml (--config); results go to standard
output, problems to standard error. Exit codes: 0 fine, 1 the input is invalid, 2 wrong usage, 3 a needed system did not answer."""

_PROPOSAL = (
    "a clone of the fleet repo with a remote that you may push to (or --write: a folder alone); a token of GitHub, in "
    "GITHUB_TOKEN or --token-file, if it shall open the pull request."
)
_FOLDER = "the fleet repo's folder, and nothing else: no store, no network, no account."
_STORE = "the controller's settings and the right to read its store, so the controller's user on its machine."

GUIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "adopt": (
        "the controller's settings, as its user; the loop stopped; devices that have reported.",
        ("reconciler adopt --dry-run", "reconciler adopt"),
    ),
    "audit": (_STORE, ("reconciler audit", "reconciler audit --since 7d --output json")),
    "builder": (
        "a request on standard input, as the controller's `builder.command` sends it; mmdebstrap and bubblewrap.",
        ("reconciler builder --work /var/lib/reconciler-builder < request",),
    ),
    "completion": (
        "nothing.",
        (
            "reconciler completion bash > ~/.local/share/bash-completion/completions/reconciler",
            "reconciler completion zsh > ~/.zfunc/_reconciler",
            "reconciler completion fish > ~/.config/fish/completions/reconciler.fish",
        ),
    ),
    "demo": (
        "git, gpg, gpgv, zstd and mke2fs; a few hundred megabytes. No root, no account, no network.",
        ("reconciler demo", "reconciler demo --follow --dir build/try"),
    ),
    "device enrol": (
        "the controller's settings and its store, as its user; the device in its site's document.",
        ("reconciler device enrol SITE-2855-1 --out enrol/SITE-2855-1 --server https://reconciler.example:8470",),
    ),
    "diff": (
        "a git repository around the fleet's folder, or two folders; nothing else unless --server or --config is given.",
        (
            "reconciler diff origin/main origin/promote/v1.4.2-all",
            "reconciler diff main --observed observed.json --output markdown",
        ),
    ),
    "explain": (
        "a fleet's folder and a snapshot, or the controller's settings and store.",
        ("reconciler explain SITE-2847-1", "reconciler explain canary --fleet fleet --observed observed.json"),
    ),
    "image build": (
        "Debian or Ubuntu with mmdebstrap, bubblewrap, uidmap, e2fsprogs and zstd; the recipe's mirrors. No root.",
        ("reconciler image build v1.5.0 --out build/images",),
    ),
    "image bump": (
        _PROPOSAL + " With --refresh: apt, and the recipe's mirrors.",
        ("reconciler image bump --package docker-ce=5:24.0.7-1", "reconciler image bump --refresh --dry-run"),
    ),
    "image changed": (
        "a git repository around the fleet's folder.",
        ("reconciler image changed --since HEAD~1",),
    ),
    "image check": (
        "the image; zstd where it is packed. No root, no mount.",
        ("reconciler image check build/images/artifacts/edge-golden-v1.5.0-20260115 --fleet fleet",),
    ),
    "image disk": (
        "an artifact; fdisk, dosfstools, mtools and zstd. No root.",
        ("reconciler image disk edge-golden-v1.5.0-20260115 --out disk.img.zst --seed seed --enrol enrol/SITE-2855-1",),
    ),
    "image list": ("the controller's settings, and the right to read the image store.", ("reconciler image list",)),
    "image prune": (
        "the controller's settings and store, as its user; the right to delete in the image store.",
        ("reconciler image prune --dry-run", "reconciler image prune --keep 5 --older-than 180d"),
    ),
    "image sign": (
        "your own gpg with a release key; the way to the image store, or the artifact's folder carried here. A release that "
        "waits shows this command filled in: `reconciler status`.",
        (
            "reconciler image sign v1.5.0 --config reconciler.yaml --key 0123456789ABCDEF0123456789ABCDEF01234567",
            "reconciler image sign v1.5.0 --from edge-golden-v1.5.0-20260115 --key 0123456789ABCDEF0123456789ABCDEF01234567",
        ),
    ),
    "image upload": (
        "an artifact's folder, and the right to write the image store.",
        (
            "reconciler image upload edge-golden-v1.5.0-20260115 --config reconciler.yaml",
            "reconciler image upload edge-golden-v1.5.0-20260115 --store s3://vlt-edge-images/ --region eu-central-1",
        ),
    ),
    "notify test": (
        "the controller's settings with `notifications`, and the right to read their secrets, so the controller's user.",
        ("reconciler notify test", "reconciler notify test ops-chat --output json"),
    ),
    "monitoring alerts": (
        "nothing; Prometheus to use them, with the scrape job called `reconciler`.",
        (
            "reconciler monitoring alerts > reconciler.rules.yaml",
            "reconciler monitoring alerts --runbook https://book.example/how-to/recover.html > reconciler.rules.yaml",
        ),
    ),
    "monitoring grafana": (
        "nothing; Grafana 10 or newer to use it.",
        ("reconciler monitoring grafana > reconciler.json",),
    ),
    "pause": (_PROPOSAL, ("reconciler pause", "reconciler pause --wave tenth", "reconciler pause --wave tenth --off")),
    "pin": (
        _PROPOSAL,
        (
            "reconciler pin SITE-2847 v1.4.1 --why 'decoder test until Friday'",
            "reconciler pin SITE-2847 --remove",
        ),
    ),
    "plan": (
        "a fleet's folder and a snapshot, or the controller's settings and store.",
        ("reconciler plan --fleet fleet --observed observed.json --at 2026-01-15T01:30:00Z", "reconciler plan"),
    ),
    "promote": (
        _PROPOSAL,
        (
            "reconciler promote v1.4.2",
            "reconciler promote v1.4.2 --all --dry-run",
            "reconciler promote video-ingest@2.8.0 --wave canary",
        ),
    ),
    "publish-review": (
        "a token that may comment and set statuses (GITHUB_TOKEN), and the forge.",
        ("reconciler publish-review review.md --pull-request 7 --sha 4f0c0f6d2b1f6d2b1f6d2b1f6d2b1f6d2b1f6d2b",),
    ),
    "relay answer": (
        "a connection as standard input, from a unit with Accept=yes and StandardInput=socket.",
        ("reconciler relay answer -- reconciler signer --config /etc/reconciler/signer.yaml",),
    ),
    "relay ask": (
        "the right to connect to the socket; a unit that answers there.",
        ("reconciler relay ask /run/reconciler/signer.sock",),
    ),
    "rollback": (_PROPOSAL, ("reconciler rollback", "reconciler rollback v1.4.2 --to v1.4.1 --dry-run")),
    "run": (
        "settings in reconciler.yaml, the keys that they name, git, gpg, gpgv and zstd; the stores that they name.",
        ("reconciler run --once", "reconciler run --config /etc/reconciler/reconciler.yaml --log json"),
    ),
    "schema": ("nothing.", ("reconciler schema Waves", "reconciler schema --write schemas")),
    "signer": (
        "its own settings with a key (`keys.signer` of type `key`), git, gpg and zstd; read access to the image store.",
        ("""echo '{"release": "v1.5.0", "commit": "<40 hex digits>"}' | reconciler signer > SHA256SUMS.gpg""",),
    ),
    "simulate": (
        "the fleet repo's folder; matplotlib (extra `pictures`) for --picture and --distribution. No store, no network.",
        (
            "reconciler simulate --fleet fleet --promote v1.4.2",
            "reconciler simulate --fleet fleet --promote v1.4.2 --bad-from 30h --picture rollout.svg",
            "reconciler simulate main promote/v1.4.2-all --chaos --seeds 50",
        ),
    ),
    "site add": (
        _PROPOSAL,
        ("reconciler site add SITE-2855 --timezone Europe/Berlin --device SITE-2855-1 --device SITE-2855-2 --dry-run",),
    ),
    "site render": (
        "the fleet repo's folder; for --secrets or --config, the right to read the site's secrets; for --iso, xorriso.",
        (
            "reconciler site render SITE-2847",
            "reconciler site render SITE-2855 --device SITE-2855-2 --config reconciler.yaml --output seed",
        ),
    ),
    "snapshot": (
        "a running service and an operator's token, or the controller's settings and store.",
        (
            "reconciler snapshot --server https://reconciler.example --token-file token --output observed.json",
            "reconciler snapshot --config reconciler.yaml > observed.json",
        ),
    ),
    "status": (_STORE, ("reconciler status", "reconciler status --watch", "reconciler status --output json")),
    "systemd-units": (
        "nothing; systemd 250 or newer to use them.",
        (
            "reconciler systemd-units --output units",
            "reconciler systemd-units --output units --program /opt/bin/reconciler",
        ),
    ),
    "test": (_FOLDER, ("reconciler test --fleet fleet", "reconciler test fleet/tests --output junit")),
    "token add": (
        "the controller's settings and the right to write its store, as its user.",
        ("reconciler token add SITE-2855-1 SITE-2855-2 --out tokens", "reconciler token add SITE-2855-1 --replace"),
    ),
    "token list": (_STORE, ("reconciler token list",)),
    "token operator": (
        "the controller's settings, as its user.",
        ("reconciler token operator anna", "reconciler token operator checks --scope read --expires 365d"),
    ),
    "token revoke": (
        "the controller's settings and the right to write its store, as its user.",
        ("reconciler token revoke SITE-2855-1",),
    ),
    "validate": (_FOLDER, ("reconciler validate --fleet fleet", "reconciler validate fleet/sites/SITE-2847.yaml")),
    "withdraw": (_PROPOSAL, ("reconciler withdraw v1.4.2 --why 'leaks memory after 70 hours'",)),
}


def attach(command: click.Command, path: str) -> None:
    """Put its lines under a command's help; under those below it too, where it is a group that is loaded already."""
    if path in GUIDES and command.epilog is None:
        needs, examples = GUIDES[path]
        lines = "\n".join(f"  {example}" for example in examples)
        command.epilog = f"Needs: {needs}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n{lines}"
    for name, below in getattr(command, "commands", {}).items():
        attach(below, f"{path} {name}")
