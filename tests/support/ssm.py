"""A stand-in for AWS Systems Manager's Run Command: a server on loopback that speaks its JSON 1.1 protocol for three operations.

It holds requests to botocore's own model of the service (types, required members, lengths, ranges, enumerations) and to what AWS
documents besides: a node that is not managed spoils a whole SendCommand with InvalidInstanceId, `$LATEST` is not accepted here,
pages have at most `page` rows, a command's invocations appear with their states one after another as they are polled. What it
cannot show is IAM, real delivery, and the true rates at which AWS throttles.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

_MODEL = botocore.session.get_session().get_service_model("ssm")


@dataclass
class Node:
    """A managed node. `states` are the (Status, StatusDetails) that its invocations go through; the last one stays."""

    id: str
    computer_name: str
    name: str = ""
    last_ping: float = 1_768_440_000.0
    tags: dict[str, str] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=lambda: [("Success", "Success")])
    gone: bool = False


class SsmStandIn:
    """`with SsmStandIn(nodes) as ssm:` then `ssm.url`. `calls` counts operations, `sent` keeps SendCommand requests."""

    def __init__(self, nodes: list[Node], *, documents: dict[str, str] | None = None, page: int = 50) -> None:
        self.reset(nodes, documents=documents, page=page)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(
        self, nodes: list[Node] | None = None, *, documents: dict[str, str] | None = None, page: int = 50
    ) -> None:
        """Forget everything. `throttle` counts refusals to come, by operation; `deny` names operations not allowed;
        after `throttle_after_sends` commands every further one is throttled."""
        self.nodes, self.page = nodes or [], page
        self.documents = documents or {"EdgeCallIn": "3"}
        self.sent: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.throttle: Counter[str] = Counter()
        self.throttle_after_sends: int | None = None
        self.deny: set[str] = set()
        self._commands: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def __enter__(self) -> SsmStandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, operation: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body for one request."""
        with self._lock:
            self.calls[operation] += 1
            if self.throttle[operation] > 0:
                self.throttle[operation] -= 1
                return _error("ThrottlingException", "Rate exceeded")
            if operation in self.deny:
                return _error("AccessDeniedException", f"not authorized to perform: ssm:{operation}")
            act = {
                "SendCommand": self._send,
                "ListCommandInvocations": self._invocations,
                "DescribeInstanceInformation": self._describe,
            }.get(operation)
            if act is None:
                return _error("UnknownOperationException", operation)
            if problem := _invalid(operation, request):
                return _error("ValidationException", problem)
            return act(request)

    def _send(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.throttle_after_sends is not None and len(self.sent) >= self.throttle_after_sends:
            return _error("ThrottlingException", "Rate exceeded")
        pinned = self.documents.get(request["DocumentName"])
        if pinned is None:
            return _error("InvalidDocument", "no such document")
        if request.get("DocumentVersion") != pinned:
            return _error("InvalidDocumentVersion", "no such version")
        known = {node.id: node for node in self.nodes if not node.gone}
        if any(each not in known for each in request["InstanceIds"]):
            return _error("InvalidInstanceId", "")
        command = f"00000000-0000-4000-8000-{next(self._numbers):012}"
        self._commands[command] = {each: list(known[each].states) for each in request["InstanceIds"]}
        self.sent.append(request)
        return 200, {"Command": {"CommandId": command, "Status": "Pending"}}

    def _invocations(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        rows = []
        for node, states in sorted(self._commands[request["CommandId"]].items()):
            status, details = states[0]
            rows.append(
                {
                    "CommandId": request["CommandId"],
                    "InstanceId": node,
                    "Status": status,
                    "StatusDetails": details,
                }
            )
        page, more = self._paged(rows, request)
        if more is None:  # a whole reading is over: time goes on for this command
            for states in self._commands[request["CommandId"]].values():
                if len(states) > 1:
                    states.pop(0)
        return 200, {"CommandInvocations": page} | ({"NextToken": more} if more else {})

    def _describe(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        rows = []
        for node in self.nodes:
            fits = all(node.tags.get(each["Key"][4:]) in each["Values"] for each in request.get("Filters", []))
            if fits:
                row = {"InstanceId": node.id, "ComputerName": node.computer_name, "LastPingDateTime": node.last_ping}
                rows.append(row | ({"Name": node.name} if node.name else {}))
        page, more = self._paged(rows, request)
        return 200, {"InstanceInformationList": page} | ({"NextToken": more} if more else {})

    def _paged(self, rows: list[dict[str, Any]], request: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
        start = int(request.get("NextToken", "0"))
        end = start + min(self.page, request.get("MaxResults", 50))
        return rows[start:end], str(end) if end < len(rows) else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                target = self.headers["X-Amz-Target"]
                service, operation = target.split(".")
                if service != "AmazonSSM" or self.headers["Content-Type"] != "application/x-amz-json-1.1":
                    status, answer = _error("UnknownOperationException", target)
                else:
                    status, answer = stand_in.answer(operation, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        return Handler


def _error(code: str, message: str) -> tuple[int, dict[str, Any]]:
    return 400, {"__type": code, "message": message}


def _invalid(operation: str, request: dict[str, Any]) -> str:
    """What botocore's model of the operation says against a request, or an empty text."""
    shape = _MODEL.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        return str(report.generate_report())
    return next(_beyond(shape, request, operation), "")


def _beyond(shape: Shape, value: Any, where: str) -> Any:
    """Upper limits, patterns and enumerations, which botocore leaves to the service."""
    limits = shape.metadata
    size = value if isinstance(value, int) else len(value) if isinstance(value, (str, list, dict)) else 0
    if "max" in limits and size > limits["max"]:
        yield f"{where} is larger than {limits['max']}"
    if isinstance(value, str) and "enum" in limits and value not in limits["enum"]:
        yield f"{where} is none of {limits['enum']}"
    if isinstance(value, str) and "pattern" in limits and not re.search(limits["pattern"], value):
        yield f"{where} does not match {limits['pattern']}"
    if shape.type_name == "structure":
        for name in value:
            yield from _beyond(shape.members[name], value[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for each in value:
            yield from _beyond(shape.member, each, where)
    elif shape.type_name == "map":
        for key, each in value.items():
            yield from _beyond(shape.value, each, f"{where}.{key}")
