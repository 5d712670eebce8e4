"""The demo's story: a fleet that runs v1.4.1 is taken over, promoted, given a bad release, and brought back.

Plays the people (engineer, reviewer) and the world (a decoder that leaks memory), never the reconciler: whatever
moves between two merges was decided by the real controller and done by the real agents. Called by `reconciler demo` and by the
end-to-end tests, which look at the result. Source: design §1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reconciler.demo.director import killer
from reconciler.demo.ground import APP, REPORT_EVERY, STALE_AFTER
from reconciler.demo.stage import OLD, OLD_APP, Say, Stage
from reconciler.demo.summary import read_log, rows, table, when
from reconciler.planner import waves_of_sites

DAYS = 21
GOOD, BAD = "v1.4.2", "v1.4.3"
NEW_APP = "2.8.0"
_CHECK = """\
#!/bin/sh
# New in this release: the decoder tells how much memory it holds.
file="$EDGE_DEVICE_ROOT/faults/decoder-memory"
[ -r "$file" ] || { echo "nothing measured yet"; exit 0; }
read -r _ mib _ <"$file"
[ "$mib" -lt 1000 ] || { echo "the decoder holds $mib MiB and grows: it leaks"; exit 2; }
echo "the decoder holds $mib MiB"
"""


class Demo(Stage):
    """One run of the story. `say(at, text)` is told what happens as it happens."""

    def __init__(
        self,
        root: Path,
        fleet: Path,
        say: Say,
        *,
        kills: Sequence[float] = (),
        start: datetime | None = None,
        debug: bool = False,
    ) -> None:
        """`kills` are the real seconds between `kill -9`s of the controller. `start` is virtual; three weeks ago unless said."""
        noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
        super().__init__(root, fleet, say, start or noon - timedelta(days=DAYS), paced=False, debug=debug)
        self._kills = kills
        self._ended = threading.Event()
        self.killed: Callable[[], int] = lambda: 0
        self._leaking: dict[str, datetime] = {}
        self._released = False

    # ------------------------------------------------ the whole of it

    def play(self) -> None:
        """Everything, in order. TerminalError: something did not happen in time."""
        self.set_up()
        try:
            self.bring_up()
            if self._kills:
                self.killed = killer(self.controller, self._kills, self._ended)
            self._promote_image()
            self._promote_app()
            self._bad_release()
            self._roll_back()
        finally:
            self._ended.set()

    def close(self) -> None:
        """Stop everything; the folder stays."""
        self._ended.set()
        super().close()

    # ------------------------------------------------ the acts

    def _promote_image(self) -> None:
        self.ground.branch(f"promote-{GOOD}")
        self.ground.edit("waves.yaml", f"image: {OLD}", f"image: {GOOD}")
        self._merge(f"promote-{GOOD}", f"Promote {GOOD} in every wave")
        self._until(lambda: self._complete(GOOD), hours=24 * 14, what=f"every wave on {GOOD}")
        self._tell(f"Every wave runs {GOOD} and has soaked.")

    def _promote_app(self) -> None:
        self.ground.branch(f"promote-{APP}-{NEW_APP}")
        self.ground.edit("waves.yaml", f"{APP}: {OLD_APP}", f"{APP}: {NEW_APP}")
        self._merge(f"promote-{APP}-{NEW_APP}", f"Promote {APP} {NEW_APP} in every wave")
        self._until(lambda: self._app_complete(NEW_APP), hours=48, what=f"every wave on {APP} {NEW_APP}")
        self._tell(f"Every device runs {APP} {NEW_APP}: its tags have moved wave by wave.")

    def _bad_release(self) -> None:
        self.ground.branch(f"add-{BAD}")
        text = (self.ground.clone / "images" / f"{GOOD}.yaml").read_text().replace(f"name: {GOOD}", f"name: {BAD}")
        self.ground.write(f"images/{BAD}.yaml", text)
        check = "images/edge-golden/rootfs/usr/local/lib/edge/health.d/decoder"
        self.ground.write(check, _CHECK, 0o755)
        self._merge(f"add-{BAD}", f"Add {BAD}: a decoder that tells its memory")
        self.ground.branch(f"promote-{BAD}")
        self.ground.edit("waves.yaml", f"image: {GOOD}", f"image: {BAD}")
        self._merge(f"promote-{BAD}", f"Promote {BAD} in every wave")
        self._released = True
        self._until(lambda: self._failed(BAD), hours=96, what=f"the failure of {BAD}")
        self._tell(
            f"{BAD} passed its trial boots, and its healthcheck turned critical in the canary: stopped in every wave."
        )
        self._until(lambda: bool(self.ground.branches("revert/*")), hours=2, what="a proposed revert")
        self._tell(f"The reconciler has pushed {self.ground.branches('revert/*')[0]} with its evidence.")

    def _roll_back(self) -> None:
        branch = self.ground.branches("revert/*")[0]
        self._merge(f"origin/{branch}", f"Merge the proposed revert of {BAD}")
        self._until(lambda: self._nobody_on(BAD), hours=72, what=f"leaving {BAD}")
        self._tell(f"No device runs {BAD} any more: they have switched back to the slot that still held {GOOD}.")
        self._until(self._quiet, hours=24, what="a quiet fleet")

    def go_on(self, say: Callable[[str], object]) -> None:
        """Leave everything up, on the system's clock, until interrupted."""
        self.ground.branch("report-each-minute")
        self.ground.edit("fleet.yaml", f"reportEvery: {REPORT_EVERY}", "reportEvery: 60s")
        self.ground.edit("fleet.yaml", f"staleAfter: {STALE_AFTER}", "staleAfter: 15m")
        self._merge("report-each-minute", "Report every minute again")
        self._hang_up()
        self.controller.stop()
        self.ground.on_system_clock()
        self.controller.start()
        self._await_service()
        say(f"The fleet goes on in real time. Watch it: reconciler status --watch --config {self.ground.config}")
        say(f"Merge into {self.ground.remote} (a clone is in {self.ground.clone}). Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            self.director.real_time(self.controller)

    # ------------------------------------------------ what came of it

    def summary(self) -> str:
        """What happened when, wave by wave."""
        seen, digest = self.store.snapshot(), self.desired.apps[APP].releases[NEW_APP]
        wave_of = {
            name: wave
            for site, wave in waves_of_sites(self.desired, seen, self.now).items()
            for name in self.desired.sites[site].devices
        }
        log = read_log(self.ground.log)
        waves = [wave.name for wave in self.desired.waves.waves]
        found = rows(waves, (GOOD,), wave_of, log, seen)
        key = f"{APP}@{NEW_APP}"
        for row in rows(waves, (digest,), wave_of, log, seen.model_copy(update={"proofs": ()})):
            judged = rows((row.wave,), (key,), wave_of, (), seen)[0]
            found.append(replace(row, release=key, outcome=judged.outcome))
        found += rows(waves, (BAD,), wave_of, log, seen)
        back = [line for line in log if line.event == "action" and line.fields.get("why") == "rollback"]
        text = table(found)
        if back:
            text += f"\n\n{len(back)} devices went back to {GOOD}, {when(back[0].at)} to {when(back[-1].at)}, by switching slots."
        return text

    # ------------------------------------------------ the world

    def _weather(self) -> None:
        """In the bad release the decoder leaks 30 MiB a camera and hour. Only what runs for long and looks at much shows it."""
        if not self._released:
            return
        for name, device in self.director.devices.items():
            if device.hardware.version().current != BAD:
                self._leaking.pop(name, None)
                (device.hardware.root / "faults" / "decoder-memory").unlink(missing_ok=True)
                continue
            since = self._leaking.setdefault(name, self.now)
            hours = (self.now - since) // timedelta(hours=1)
            cameras = len(self.desired.sites[device.identity.site].cameras)
            text = f"ok {100 + 30 * cameras * hours} MiB held\n"
            file = device.hardware.root / "faults" / "decoder-memory"
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
