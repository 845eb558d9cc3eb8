"""A stand-in for the W&B service, on loopback: enough of its protocol for online runs, resume, the Stop button, alerts and sync.

As the service does, it keeps a run's points by their `_step`: of two points with the same one, the later is kept.

A fake, because the service itself cannot be had in a test; wandb on this side of it is the real one. `Server.fails` makes it answer
with a status, `Server.mute` lets it take requests and never answer.
"""

import gzip
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """What has been sent, by run id: `history` rows by `_step`, `config`, `summary`, how it `ended`, and `upserts`; and `alerts`.

    `ended` is the exit status of the newest start; of a run that said it would be preempted, it is in `preempted`. Agents of the
    `sweep`, which holds what its file says, get the `trials`, one at a time.
    """

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.ended: dict[str, int] = {}
        self.preempted: set[str] = set()
        self.upserts: dict[str, dict[str, Any]] = {}
        self.config: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.sweep: dict[str, Any] = {}
        self.trials: list[dict[str, Any]] = []
        self.stopped = False
        self.fails: int | None = None
        self.mute = False
        self._alive = threading.Event()
        self._http = _Quiet(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens: WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()

    def rows(self, run: str) -> list[dict[str, Any]]:
        """A run's points, in order."""
        return [row for _, row in sorted(self.history.get(run, {}).items())]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of one GraphQL operation."""
        known: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": lambda v: {"viewer": {"id": "u", "entity": "lab", "flags": "{}", "teams": {"edges": []}}},
            "ServerInfo": lambda v: {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}},
            "ServerFeaturesQuery": lambda v: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda v: {"entity": {"organization": {"coreWeaveOrganizationId": None}}},
            "RunResumeStatus": self._resume,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._files,
            "ProjectInternalId": lambda v: {"project": {"id": "p", "internalId": "UDox"}},
            "NotifyScriptableRunAlert": self._alert,
            "UpsertView2": self._view,
            "UpsertView": self._view,
            "SweepWithRuns": self._sweep,
            "CreateAgent": lambda v: {"createAgent": {"agent": {"id": "a1"}}},
            "Heartbeat": self._heartbeat,
        }
        return known[operation](variables) if operation in known else None

    def take(self, run: str, tree: dict[str, Any]) -> None:
        """Lines of a run's files, and how it ended."""
        if "exitcode" in tree:
            self.ended[run] = tree["exitcode"]
        if tree.get("preempting"):
            self.preempted.add(run)
        for name, part in (tree.get("files") or {}).items():
            for line in part["content"]:
                if name == "wandb-history.jsonl":
                    row = json.loads(line)
                    self.history.setdefault(run, {})[row["_step"]] = row
                elif name == "wandb-summary.json":
                    self.summary.setdefault(run, {}).update(json.loads(line))

    def _model(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"id": "p", "name": v.get("project"), "entity": {"id": "e", "name": v.get("entity") or "lab"}}

    def _resume(self, v: dict[str, Any]) -> dict[str, Any]:
        run = v["name"]
        if run not in self.config:
            return {"model": self._model(v) | {"bucket": None}}
        rows = self.history.get(run, {})
        bucket = {
            "id": "b", "name": run, "displayName": run, "summaryMetrics": json.dumps(self.summary.get(run, {})), "logLineCount": 0,
            "historyLineCount": len(rows), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(r) for r in self.rows(run)][-1:]),
            "eventsTail": "[]", "config": json.dumps(self.config[run]), "tags": [], "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        return {"model": self._model(v) | {"bucket": bucket}}

    def _upsert(self, v: dict[str, Any]) -> dict[str, Any]:
        run = v.get("name") or v.get("id") or ""
        new = run not in self.config
        self.upserts.setdefault(run, {}).update({name: value for name, value in v.items() if value is not None})
        self.config.setdefault(run, {}).update(json.loads(v.get("config") or "{}"))
        self.summary.setdefault(run, {}).update(json.loads(v.get("summaryMetrics") or "{}"))
        bucket = {
            "id": "b", "name": run, "displayName": v.get("displayName") or run, "description": None, "sweepName": None,
            "config": json.dumps(self.config[run]), "historyLineCount": len(self.history.get(run, {})), "project": self._model(v),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _sweep(self, v: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "s", "name": v["sweep"], "config": json.dumps(self.sweep), "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _heartbeat(self, v: dict[str, Any]) -> dict[str, Any]:
        commands, self.trials = self.trials[:1], self.trials[1:]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    def _files(self, v: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _alert(self, v: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(v)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _view(self, v: dict[str, Any]) -> dict[str, Any]:
        self.views.append(v)
        view = {"id": "Vmll", "name": v.get("name"), "type": v.get("type"), "displayName": v.get("displayName")}
        return {"upsertView": {"view": view, "inserted": True}}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:  # noqa: C901  the branches of six methods are counted together
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Silence."""

        def _body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline() or b"0", 16):
                    raw += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def _send(self, tree: Any, status: int = 200) -> None:
            text = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._send({}, 404)

        def do_PUT(self) -> None:
            self._body()
            self._send({})

        def do_POST(self) -> None:
            body = self._body()
            if server.mute:
                server._alive.wait()
            if server.fails:
                self._send({"errors": [{"message": "as the test asked"}]}, server.fails)
                return
            stream = re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if not stream and self.path != "/graphql":
                self._send({}, 404)
                return
            tree = json.loads(body or b"{}")
            if stream:
                server.take(stream[1], tree)
                self._send({"stopped": server.stopped})
                return
            named = re.search(r"(?:query|mutation)\s+(\w+)", tree.get("query", ""))
            operation = tree.get("operationName") or (named[1] if named else "")
            found = server.answer(operation, tree.get("variables") or {})
            self._send({"data": found} if found is not None else {"data": None, "errors": [{"message": f"no {operation} here"}]})

    return Handler
