"""A stand-in for a Kubernetes API server: pods by HTTP as the API documents them, their commands run on this host.

Not Kubernetes: it has no scheduler, kubelet or images, and supports only the provider's requests (create, read and
delete a pod, read its log). Its answers have the form of the API reference, v1 `Pod` and `Status`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class Api:
    """`pods` has the created pods by name, as the client sent them, with their status; `asked` has every request."""

    def __init__(self, directory: Path) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.refuse: int = 0
        """Answer every request with this status, unless 0."""
        self.runs = True
        """Whether pods that are created begin to run."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._directory = directory
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def kubeconfig(self) -> Path:
        """Return the path of a configuration that leads here."""
        named = [{"name": "c", "cluster": {"server": self.url}}], [{"name": "u", "user": {"token": "secret"}}]
        contexts = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
        text = {"apiVersion": "v1", "kind": "Config", "clusters": named[0], "users": named[1], "contexts": contexts}
        path = self._directory / "kubeconfig"
        path.write_text(json.dumps({**text, "current-context": "x"}))
        return path

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._processes):
            self.end(name)
        self._server.shutdown()
        self._server.server_close()

    def create(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Take a pod, and run its command."""
        name = pod["metadata"]["name"]
        self.pods[name] = {**pod, "apiVersion": "v1", "kind": "Pod", "status": {"phase": "Pending"}}
        if self.runs:
            (container,) = pod["spec"]["containers"]
            with (self._directory / f"{name}.log").open("wb") as log:
                self._processes[name] = subprocess.Popen(
                    [*container["command"], *container["args"]], stdout=log, stderr=log, start_new_session=True
                )
        return self.pods[name]

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a pod with its phase as it is now."""
        pod = self.pods.get(name)
        process = self._processes.get(name)
        if pod is not None and process is not None:
            status = process.poll()
            phase = "Running" if status is None else "Failed" if status else "Succeeded"
            pod["status"] = {**pod["status"], "phase": phase}
        return pod

    def log(self, name: str) -> str:
        """Return the output of a pod."""
        path = self._directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def end(self, name: str) -> dict[str, Any] | None:
        """Delete a pod."""
        process = self._processes.pop(name, None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return self.pods.pop(name, None)


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def _answer(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        self.api.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].split("/")  # /api/v1/namespaces/NAMESPACE/pods/NAME[/log]
        name = path[6] if len(path) > 6 else ""
        if self.api.refuse:
            reason = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.api.refuse}
            self._answer(self.api.refuse, {**reason, "message": "not now"})
        elif self.command == "POST":
            self._answer(201, self.api.create(json.loads(body)))
        elif path[-1] == "log":
            self._answer(200, self.api.log(name))
        elif (pod := self.api.end(name) if self.command == "DELETE" else self.api.read(name)) is not None:
            self._answer(200, pod)
        else:
            details = {"name": name, "kind": "pods"}
            what = {"status": "Failure", "message": f'pods "{name}" not found', "reason": "NotFound", "code": 404}
            self._answer(404, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "details": details, **what})

    do_GET = do_POST = do_DELETE = _serve
