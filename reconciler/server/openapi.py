"""`GET /v1/openapi.json`: the API's own description, made from the routes, their models and the table of who may use them.

Describes what is there and decides nothing. It is given to readers alone: a stranger who finds the service learns nothing of it.
No page that shows it is served: those load scripts from elsewhere. Called by `server.app`.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import JSONResponse, Response

from reconciler import __version__
from reconciler.server.access import ROUTES, Callers, Need
from reconciler.server.documents import STATUSES
from reconciler.server.options import Options
from reconciler.server.sessions import CSRF_HEADER, cookie_name

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_SECURITY: dict[Need, list[dict[str, list[str]]]] = {
    Need.DEVICE: [{"deviceToken": []}],
    Need.METRICS: [{"operatorToken": []}, {"session": []}, {}],
}
_BY_OPERATORS: list[dict[str, list[str]]] = [{"operatorToken": []}, {"session": []}]


def describe(app: FastAPI, options: Options) -> dict[str, Any]:
    """The description of all routes that are meant for programs, in OpenAPI 3.1."""
    made = get_openapi(
        title="reconciler",
        version=__version__,
        description="Devices report here and fetch; operators read where the rollout stands, and acknowledge flags. Desired "
        "state is changed by git alone.",
        routes=app.routes,
    )
    components = made.setdefault("components", {})
    components["securitySchemes"] = {
        "deviceToken": {"type": "http", "scheme": "bearer", "description": "A device's token, `reconciler token add`"},
        "operatorToken": {
            "type": "http",
            "scheme": "bearer",
            "description": "An operator's token, `reconciler token operator`, with the scope that the route asks for",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie_name(options),
            "description": f"A browser's session, of POST /login. What changes anything needs `{CSRF_HEADER}` too",
        },
    }
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            _complete(f"{'GET' if method == 'head' else method.upper()} {path}", operation)
    return made


def _complete(key: str, operation: dict[str, Any]) -> None:
    need = next(need for route, need in ROUTES.items() if route.replace(":path}", "}") == key)
    if need is not Need.ANYBODY:
        operation["security"] = _SECURITY.get(need, _BY_OPERATORS)
        if need is not Need.DEVICE:
            operation["x-scope"] = need.value
    codes = (429, 500, 503) if need is Need.ANYBODY else (401, 403, 429, 500, 503)
    told: dict[str, Any] = operation["responses"]
    # What the framework writes for a body or parameter of its own: here that is a 400.
    if told.pop("422", None) is not None:
        told.setdefault("400", {"description": STATUSES[400], "content": _ERROR})
    for code in codes:
        told.setdefault(str(code), {"description": STATUSES[code], "content": _ERROR})
    for waiting in ("429", "503"):
        told[waiting].setdefault("headers", {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds"}})


def serve_description(app: FastAPI, options: Options, callers: Callers) -> None:
    """Add `GET /v1/openapi.json`."""

    @app.get(
        "/v1/openapi.json", dependencies=[Depends(callers.reader)], responses={200: {"description": "OpenAPI 3.1"}}
    )
    async def get_description() -> Response:
        # Made once: the routes do not change while the app runs.
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, options)
        return JSONResponse(app.openapi_schema, headers={"cache-control": "private, no-cache"})
