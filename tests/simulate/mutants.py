"""The kill matrix: for each rule of the oracle, mutants that remove what protects it, and the plays on which it must be seen.

Where two layers protect, the mutant removes both, and `alone` names each layer: without one of them the rule must still hold.
"""

from __future__ import annotations

from reconciler.agent.machine import Effect, Event, State
from reconciler.model.plan import Reason
from reconciler.simulate.truth import Rule
from tests.simulate.mutating import Cut, Follows, Mutant, without

# ruff: noqa: E501 - what is cut is the code's own text

PLANNER, AGENT, CONTROLLER, WORLD = (
    "reconciler.planner",
    "reconciler.agent",
    "reconciler.controller",
    "reconciler.simulate",
)
_GOOD = (Effect.MARK_GOOD, Effect.SET_VERSION, Effect.DROP_CACHE, Effect.CLEAR_INTENT)
_SUPPLY = f"{WORLD}.supply:MemorySupply"
_WORK = f"{AGENT}.work:Work"

RELEASED = (
    Mutant(
        "the digest of what was fetched and written is not compared",
        Rule.RELEASED,
        (
            Cut(f"{_SUPPLY}.fetch_image", "if given != image.digest:", "if False:"),
            Cut(f"{_SUPPLY}.write_image", "if bytes_of != image.digest:", "if False:"),
        ),
        ("other bytes",),
        alone=(0, 1),
    ),
    Mutant(
        "whoever signs is believed",
        Rule.RELEASED,
        (Cut(f"{WORLD}.signing:verify", "name != _fingerprint(keyring) or name not in allowed_fingerprints", "False"),
         Cut(f"{WORLD}.signing:verify", "if not hmac.compare_digest(found, _hash(keyring, data)):", "if False:")),
        ("attacker",),
    ),
    Mutant(
        "assignments are not verified",
        Rule.RELEASED,
        (Cut(f"{AGENT}.judge:judge", "prove(bundle, lambda data, signature: verify(data, signature, keyring.data, keyring.fingerprints, now))",
             "prove(bundle, lambda data, signature: None)"),),
        ("attacker", "attacker of apps"),
    ),
    Mutant(
        "a signature of other bytes is taken",
        Rule.RELEASED,
        (Cut(f"{WORLD}.signing:verify", "if not hmac.compare_digest(found, _hash(keyring, data)):", "if False:"),),
        ("attacker with a signature",),
    ),
)  # fmt: skip

SLOT = (
    Mutant(
        "a trial is good without its healthcheck",
        Rule.SLOT,
        (Follows(State.BOOTING, Event.ON_TRIAL, State.IDLE, _GOOD),),
        ("ill on trial",),
    ),
    Mutant(
        "a trial that is worse is good",
        Rule.SLOT,
        (Follows(State.TRIAL, Event.WORSE, State.IDLE, _GOOD),),
        ("ill on trial",),
    ),
    Mutant(
        "a slot is good before it is booted",
        Rule.SLOT,
        (Cut(f"{_WORK}.__init__", "Effect.ARM: lambda _: hardware.arm(self._inactive()),",
             "Effect.ARM: lambda _: (hardware.arm(self._inactive()), hardware.mark_good(self._inactive())),"),),
        ("nights", "does not boot"),
    ),
    Mutant(
        "the booted slot is written",
        Rule.SLOT,
        (
            Cut(f"{_WORK}._inactive", '"b" if', '"a" if'),
            Cut(f"{WORLD}.hardware:MemoryHardware._only_inactive", "if slot in (self._booted, self._flags.default):", "if False:"),
        ),
        ("suspended",),
        alone=(0, 1),
    ),
    Mutant(
        "a slot that does not hold what was written is armed",
        Rule.SLOT,
        (Follows(State.WRITING, Event.SPOILED, State.REBOOTING, (Effect.RECORD_INTENT, Effect.ARM)),),
        ("bad disks",),
    ),
    Mutant(
        "a slot is switched to unread",
        Rule.SLOT,
        (Follows(State.IDLE, Event.SWITCH, State.WRITTEN),),
        ("rotten slots",),
    ),
)  # fmt: skip

SERIAL = (
    Mutant(
        "serials are not compared",
        Rule.SERIAL,
        (Cut(f"{AGENT}.judge:_check_serial", "if last is None:", "if True:"),),
        ("replayed",),
    ),
    Mutant(
        "the last serial is forgotten",
        Rule.SERIAL,
        (Cut(f"{AGENT}.agent:Agent._receive", "last=memory.last_serial", "last=None"),),
        ("replayed",),
    ),
)

WINDOW = (
    Mutant(
        "no rung waits for the window, and the device does not either",
        Rule.WINDOW,
        (without(Reason.OUTSIDE_WINDOW, Reason.NO_WINDOW),
         Cut(f"{AGENT}.look:Look.opens", "if window.waives(", "if True or window.waives(")),
        ("nights", "suspended"),
        alone=(0,),
    ),
    Mutant(
        "the device does not wait for its window",
        Rule.WINDOW,
        (Cut(f"{AGENT}.look:Look.opens", "if window.waives(", "if True or window.waives("),),
        ("nights", "suspended"),
    ),
    Mutant(
        "what is begun too late is booted after the window",
        Rule.WINDOW,
        (
            Cut(f"{PLANNER}.ground:Nights.at", "_judge_all(roster, now, roster.flash_length)", "_judge_all(roster, now, _MOMENT)"),
            Cut(f"{_WORK}._await_reboot", "if opens == now else", "if True else"),
        ),
        ("late merge",),
        alone=(0, 1),
    ),
    Mutant(
        "windows know no summer time",
        Rule.WINDOW,
        (Cut(f"{PLANNER}.windows:_to_utc", "    utc = local.astimezone(UTC)\n",
             "    utc = local.astimezone(UTC)\n    return micros(naive.replace(tzinfo=UTC)"
             " - datetime(day.year, 1, 1, tzinfo=tz).utcoffset())\n"),),
        ("march",),
    ),
    Mutant(
        "whoever goes back needs no window",
        Rule.WINDOW,
        (Cut(f"{PLANNER}.want_image:waived_back", 'if policy == "all":', "if True:"),),
        ("bad and rescued",),
    ),
    Mutant(
        "apps restart at any hour",
        Rule.WINDOW,
        (Cut(f"{PLANNER}.want_app:want_app", "waived_back(ground, back, critical) if app.in_window else ~nothing", "~nothing"),),
        ("app",),
    ),
)  # fmt: skip

BUDGET = (
    Mutant(
        "all devices of a site start at once",
        Rule.BUDGET,
        (Cut(f"{PLANNER}.ration:site_picks", "if first.all():", "if True:"),),
        ("nights",),
    ),
    Mutant(
        "a site where one is at it is free",
        Rule.BUDGET,
        (Cut(f"{PLANNER}.ration:Blocked.at", "self.busy_in[sites] > 0", "self.busy_in[sites] > 99"),),
        ("nights", "limited"),
    ),
    Mutant(
        "maxInFlight is ignored",
        Rule.BUDGET,
        (Cut(f"{PLANNER}.state:State._room", "wave.spec.max_in_flight.slots(self.able_in[wave.index])", "1_000_000"),),
        ("limited",),
    ),
    Mutant(
        "those in flight use up no budget",
        Rule.BUDGET,
        (Cut(f"{PLANNER}.state:State._room", " - int(self.flying_in[wave.index])", ""),),
        ("limited", "bad canary"),
    ),
    Mutant(
        "percentages of a budget round up",
        Rule.BUDGET,
        (Cut("reconciler.model.scalars:Budget.slots", "(self.percent or 0) * of // 100", "-(-(self.percent or 0) * of // 100)"),),
        ("limited",),
    ),
)  # fmt: skip

ASKED = (
    Mutant(
        "sites are drawn in another order",
        Rule.ASKED,
        (Cut(f"{PLANNER}.roster:draw_key", ".digest()", ".digest()[::-1]"),),
        ("some waves",),
    ),
    Mutant("a paused fleet moves", Rule.ASKED, (without(Reason.PAUSED),), ("paused",)),
    Mutant(
        "a paused wave moves",
        Rule.ASKED,
        (Cut(f"{PLANNER}.ground:Ground.settle", "[fleet_paused or wave.spec.paused for", "[fleet_paused for"),),
        ("wave paused",),
    ),
    Mutant("a frozen fleet moves", Rule.ASKED, (without(Reason.FROZEN),), ("frozen",)),
    Mutant("suspended sites move", Rule.ASKED, (without(Reason.SUSPENDED),), ("suspended",)),
    Mutant("withdrawn releases are moved to", Rule.ASKED, (without(Reason.WITHDRAWN),), ("withdrawn",)),
    Mutant(
        "pins are ignored",
        Rule.ASKED,
        (Cut(f"{PLANNER}.roster:Roster._pin", "if pinned is None or device in pinned:", "if False:"),),
        ("pinned",),
    ),
    Mutant(
        "any lower release was there before",
        Rule.ASKED,
        (Cut(f"{PLANNER}.want_image:_ran_before", "np.asarray(out, np.bool_)", "np.ones(len(target), np.bool_)"),),
        ("never had",),
    ),
    Mutant(
        "failed devices are rescued though the fleet says hold",
        Rule.ASKED,
        (Cut(f"{PLANNER}.want_image:_targets", 'if roster.desired.fleet.on_failure == "rollback":', "if True:"),),
        ("bad canary", "bad later"),
    ),
)  # fmt: skip

ORDER = (
    Mutant(
        "waves do not wait for one another",
        Rule.ORDER,
        (Cut(f"{PLANNER}.gates:_entry", "if code < 0:", "if True:"),),
        ("nights",),
    ),
    Mutant(
        "silence counts as health",
        Rule.ORDER,
        (Cut(f"{CONTROLLER}.observe:_received", "received_at - last_seen > stale", "False"),),
        ("silent canary",),
    ),
    Mutant(
        "tolerated silence shortens the soak",
        Rule.ORDER,
        (Cut(f"{PLANNER}.judge:classify",
             "np.copyto(start, obs.last_seen[rows], where=(seen == Seen.SILENT) | (seen == Seen.SILENT_AFTER))", "pass"),),
        ("silent one",),
    ),
    Mutant(
        "the soak starts with the flash",
        Rule.ORDER,
        (Cut(f"{CONTROLLER}.observe:_image", "(at if report.image is not None else None)", "(before.updating_since or at)"),
         Cut(f"{PLANNER}.judge:classify", "begin = np.maximum(since, run)", "begin = since")),
        ("suspended",),
    ),
    Mutant(
        "nothing soaks",
        Rule.ORDER,
        (Cut(f"{PLANNER}.judge:judge_wave", "ends = start + wave.soak_of(track)", "ends = start"),),
        ("suspended", "app"),
    ),
    Mutant(
        "a failed check does not start the soak again",
        Rule.ORDER,
        (Cut(f"{CONTROLLER}.observe:_health", "before.health in _GOOD and not rebooted if", "True if"),),
        ("blip",),
    ),
    Mutant(
        "any silence is tolerated",
        Rule.ORDER,
        (Cut(f"{PLANNER}.judge:judge_wave", "wave.spec.max_offline.exceeded_by(offline, devices)", "False"),),
        ("silent, not tolerated",),
    ),
    Mutant(
        "closed proofs count",
        Rule.ORDER,
        (Cut(f"{PLANNER}.columns:Columns.is_open", "not verdict.closed and ", ""),),
        ("raised again",),
    ),
)  # fmt: skip

STOPPED = (
    Mutant(
        "critical devices fail no gate",
        Rule.STOPPED,
        (Cut(f"{PLANNER}.judge:classify", "failed = exhausted | (long_critical & mine & ~before)", "failed = exhausted"),),
        ("bad canary",),
    ),
    Mutant(
        "green checks clear a failed gate",
        Rule.STOPPED,
        (Cut(f"{PLANNER}.gates:gates", "failed = {code for code in codes if roster.key(track, code) in stopped}", "failed = set()"),),
        ("well again",),
    ),
    Mutant(
        "edited thresholds clear a failed gate",
        Rule.STOPPED,
        (Cut(f"{PLANNER}.gates:gates", "failed = {code for code in codes if roster.key(track, code) in stopped}", "failed = set()"),),
        ("well again, edited",),
    ),
    Mutant("no rung stops at a failed gate", Rule.STOPPED, (without(Reason.GATE_FAILED),), ("bad canary", "bad later")),
    Mutant(
        "the device counts no attempts",
        Rule.STOPPED,
        (Cut(f"{_WORK}._count_failure", "self._notes.remember(self._notes.memory.after_failure(intent))", "self._notes.clear_intent()"),),
        ("one does not boot", "does not boot"),
    ),
    Mutant(
        "attempts are never used up",
        Rule.STOPPED,
        (without(Reason.ATTEMPTS_EXHAUSTED),),
        ("one does not boot",),
    ),
)  # fmt: skip

REFUSED = (
    Mutant(
        "a rewritten branch is followed",
        Rule.REFUSED,
        (Cut(f"{CONTROLLER}.source:Source._consider", "self._git.is_ancestor(last, head.sha)", "True"),),
        ("rewritten",),
    ),
    Mutant(
        "a commit with errors comes into force",
        Rule.REFUSED,
        (Cut("reconciler.repo.load:_judged", 'problem.severity == "error"', "False"),),
        ("unknown site",),
    ),
    Mutant(
        "sites are removed unconfirmed",
        Rule.REFUSED,
        (Cut("reconciler.repo.accept:accept", "if confirmed != len(removed):", "if False:"),),
        ("sites removed",),
    ),
)

CONVERGES = (
    Mutant(
        "marks are never cleared",
        Rule.CONVERGES,
        (
            Cut(f"{CONTROLLER}.observe:_marks", "if before.updating_to is not None and (arrived or before.updating_to in counted):", "if False:"),
            Cut(f"{PLANNER}.judge:in_flight", "update_timed_out = wanted & (timeout_at <= now)", "update_timed_out = wanted & False"),
        ),
        ("suspended",),
    ),
    Mutant(
        "serials are lost with the controller's memory",
        Rule.CONVERGES,
        (Cut(f"{WORLD}.memory_store:MemoryStore.begin_epoch", "return self.raise_epoch(0)",
             "self.book.put(self.book.words, 'serial', 0)\n    self.book.put(self.book.words, 'epoch', 1)\n    return 1"),
         Cut(f"{CONTROLLER}.loop:Loop._follow_epochs", "if recorder.epoch < told", "if False and recorder.epoch < told")),
        ("crashes",),
        alone=(0, 1),
    ),
    Mutant(
        "what is intended is not written down",
        Rule.CONVERGES,
        (Cut(f"{AGENT}.notes:Notes.record_intent", "self.remember(replace(self.memory, intent=intent, checks_before=before))",
             "self.memory = replace(self.memory, intent=intent, checks_before=before)"),),
        ("suspended", "power cuts"),
    ),
    Mutant(
        "silent devices fail the gate",
        Rule.CONVERGES,
        (Cut(f"{PLANNER}.judge:classify", "failed = exhausted | (long_critical & mine & ~before)",
             "failed = exhausted | (long_critical & mine & ~before) | silent"),),
        ("silent canary", "silent, not tolerated"),
    ),
)  # fmt: skip

MUTANTS = (
    *RELEASED, *SLOT, *SERIAL, *WINDOW, *BUDGET, *ASKED, *ORDER, *STOPPED, *REFUSED, *CONVERGES,
)  # fmt: skip
