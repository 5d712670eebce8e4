"""What devices that are in the middle of something when a run begins were told: the words that they act on.

A snapshot names what is in flight and not the assignments behind it; without them the loop would take such a device for one that
was never told, and the device would have nothing to go on with. Called by `simulate.controller`. Source: timing model, 7.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from reconciler.controller.assign import Assigner, Draft, Target
from reconciler.model.desired import Desired
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.planner import waves_of_sites
from reconciler.ports import AssignmentRow
from reconciler.protocol.assignment import AppTarget, ImageTarget

Serial = tuple[int, int]


def standing_words(
    desired: Desired,
    observed: Snapshot,
    now: datetime,
    serial: Serial,
    image: Callable[[str], ImageTarget | None],
    assigner: Assigner,
    sign: Callable[[bytes], bytes],
) -> tuple[AssignmentRow, ...]:
    """An assignment, from `serial` on, for each device that is being updated, restarted or configured.

    `desired` with the digests of its configurations; `image` gives a published release as an assignment names it. A device whose
    release is not published, or that git does not name, has no word to act on.
    """
    waves = waves_of_sites(desired, observed, now)
    sites = {name: site for site, spec in desired.sites.items() for name in spec.devices}
    drafts = []
    for device in sorted(observed.devices, key=lambda each: each.name):
        site = sites.get(device.name)
        target = None if site is None else _target(desired, device, site, waves.get(site), image)
        if target is None or site is None:
            continue
        window = assigner.window(desired, site, now)
        # It has begun, so it may go on, whether the window is open now or not.
        is_open = any(start <= now < end for start, end in window)
        drafts.append(Draft(device.name, target, window, waived=not is_open))
    return assigner.seal(drafts, serial[0], serial[1], now, sign)


def _target(
    desired: Desired,
    device: DeviceObservation,
    site: str,
    wave: str | None,
    image: Callable[[str], ImageTarget | None],
) -> Target | None:
    if device.updating_to is not None and device.updating_to != device.image:
        found = image(device.updating_to)
        return None if found is None else Target(image=found, acts=True)
    if device.restarting_since is not None and device.restarting_app is not None:
        return _app(desired, device.restarting_app, wave)
    if device.configuring_since is not None and site in desired.config:
        return Target(config=desired.config[site], acts=True)
    return None


def _app(desired: Desired, app: str, wave: str | None) -> Target | None:
    """The release of an app that a wave asks for."""
    for number, spec in enumerate(desired.waves.waves):
        if spec.name == wave and app in spec.apps and app in desired.apps:
            of, version = desired.apps[app], spec.apps[app]
            return Target(
                apps={app: AppTarget(of.repository, desired.tag_of(number), of.releases[version], version)}, acts=True
            )
    return None
