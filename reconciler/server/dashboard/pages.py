"""All pages of the dashboard, wired. Each module adds its own routes; who may use them stands in `access.ROUTES`.

Called by `server.app`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from reconciler.server.access import Callers
from reconciler.server.dashboard.frame import Pages
from reconciler.server.dashboard.pages_commits import serve_commits
from reconciler.server.dashboard.pages_controller import serve_controller
from reconciler.server.dashboard.pages_devices import serve_devices
from reconciler.server.dashboard.pages_flagged import serve_flagged
from reconciler.server.dashboard.pages_now import serve_now
from reconciler.server.dashboard.pages_releases import serve_releases
from reconciler.server.dashboard.pages_rollout import serve_rollout
from reconciler.server.dashboard.pages_sites import serve_sites
from reconciler.server.dashboard.shell import Shell
from reconciler.server.foreseen import Forecasts
from reconciler.server.options import Options


def serve_pages(
    app: FastAPI,
    options: Options,
    callers: Callers,
    shell: Shell,
    forecasts: Forecasts,
    listeners: Callable[[], int],
) -> None:
    """Add all of them. `forecasts` are shared by those that show what is to come; `listeners` is how many follow the stream."""
    pages = Pages(options, shell, forecasts)
    serve_now(app, callers, pages)
    serve_devices(app, callers, pages)
    serve_flagged(app, callers, pages)
    serve_rollout(app, callers, pages)
    serve_sites(app, callers, pages)
    serve_releases(app, callers, pages)
    serve_commits(app, callers, pages)
    serve_controller(app, callers, pages, listeners)
