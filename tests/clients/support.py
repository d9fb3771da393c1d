"""Starts what a test needs, and stops it: the proxy, nginx as an origin, free ports.

Everything listens on 127.0.0.1 and keeps its files in one temporary folder. Nothing here judges
the proxy, except that it must stop cleanly.
"""

import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# auto, io_uring or epoll; tests/run runs all tests once with each.
DRIVER = os.environ.get("OUTRIGGER_TEST_DRIVER", "auto")
# Smaller bodies and shorter loads.
QUICK = bool(os.environ.get("OUTRIGGER_TEST_QUICK"))
# How long wrk runs in one test. Minutes make it a soak test.
LOAD_SECONDS = int(os.environ.get("OUTRIGGER_TEST_LOAD_SECONDS", "2" if QUICK else "5"))
# `nginx` puts nginx in the proxy's place: a test that fails then too is itself in doubt.
PROXY = os.environ.get("OUTRIGGER_TEST_PROXY", "outrigger")
BINARY = Path(os.environ.get("OUTRIGGER_TEST_BINARY", ROOT / "target" / "debug" / "outrigger"))

# Longest wait for something that must happen, in seconds. Only a failure ever takes so long.
PATIENCE_S = 30

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


handed_out = set()


def free_port():
    """A port that nobody listens on now, another one each time."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        if port not in handed_out:
            handed_out.add(port)
            return port


def wait_until(what, condition, patience_s=PATIENCE_S):
    """Waits for `condition` to be true; `what` is said if it never is."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"after {patience_s} s: {what}")
        time.sleep(0.02)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Process:
    """A child in the foreground, its output in a file."""

    def __init__(self, name, command, folder, **options):
        self.name = name
        self.log_path = folder / f"{name}.log"
        with open(self.log_path, "wb") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    @property
    def pid(self):
        return self.child.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def assert_running(self):
        if self.child.poll() is not None:
            raise AssertionError(f"{self.name} exited {self.child.returncode}:\n{self.log()}")

    def wait_for(self, what, condition):
        def check():
            self.assert_running()
            return condition()

        return wait_until(f"{self.name}: {what}\n{self.log()}", check)

    def stop(self, how=signal.SIGTERM):
        """Asks it to stop and returns its exit status; kills it if it does not."""
        self.child.send_signal(how)
        try:
            return self.child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.log()}") from None


NGINX_CONFIG = """
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; tcp_nodelay on;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    types {{ text/html html; text/plain txt; }}
    default_type application/octet-stream;
    {http}
}}
"""


class Nginx(Process):
    """nginx with the given `http` block, one process."""

    def __init__(self, folder, http, port, name="nginx"):
        folder = folder / name
        folder.mkdir()
        self.folder = folder
        self.port = port
        config = folder / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(folder=folder, http=http))
        error_log = str(folder / "early.log")
        super().__init__(name, [NGINX, "-e", error_log, "-p", str(folder), "-c", str(config)], folder)
        self.wait_for("listens", lambda: listens(port))


ORIGIN_HTTP = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {files};
        location = /nginx/small {{ default_type text/plain; return 200 "{small}"; }}
        location = /nginx/headers {{
            default_type text/plain;
            return 200 "$http_x_forwarded_for|$http_x_forwarded_proto|$http_x_request_id|$http_connection|$server_protocol";
        }}
        location = /nginx/status {{ stub_status; }}
        location /nginx/files/ {{ alias {files}/; }}
        location /nginx/gzip/ {{ alias {files}/; gzip on; gzip_proxied any; gzip_types text/plain; }}
        location /nginx/ssi/ {{ alias {files}/; ssi on; }}
        location /nginx/upload/ {{
            alias {uploads}/; dav_methods PUT DELETE;
        }}
    }}
    # Closes each connection after ten requests: what is reused must be watched.
    server {{
        listen 127.0.0.1:{closing_port} backlog=4096;
        keepalive_requests 10;
        location / {{ default_type text/plain; return 200 "{small}"; }}
    }}
    # An origin of the old kind: HTTP/1.1, but no connection is kept.
    server {{
        listen 127.0.0.1:{once_port} backlog=4096;
        keepalive_timeout 0;
        location / {{ default_type text/plain; return 200 "{small}"; }}
    }}
"""

SMALL = "0123456789" * 10


class NginxOrigin(Nginx):
    """Static files, compression, includes, uploads, counters: a real origin."""

    def __init__(self, folder):
        self.files = folder / "files"
        self.uploads = folder / "uploads"
        self.files.mkdir()
        self.uploads.mkdir()
        self.closing_port = free_port()
        self.once_port = free_port()
        port = free_port()
        http = ORIGIN_HTTP.format(
            port=port,
            closing_port=self.closing_port,
            once_port=self.once_port,
            files=self.files,
            uploads=self.uploads,
            small=SMALL,
        )
        super().__init__(folder, http, port, name="nginx-origin")

    def accepted(self):
        """Connections ever accepted, by all servers of this nginx, this question's included."""
        url = f"http://127.0.0.1:{self.port}/nginx/status"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return int(answer.read().split(b"\n")[2].split()[0])


OUTRIGGER_CONFIG = """
admin: {{address: 127.0.0.1:0}}
shards: {{count: 2, driver: {driver}}}
listeners:
  - name: edge
    address: 127.0.0.1:0
    reason_header: true
    access_log: {{path: {folder}/access.log}}
    forwarded: {{via: outrigger}}
routes:
  - {{match: {{prefix: /nginx}}, cluster: nginx}}
  - {{match: {{prefix: /rewritten}}, prefix_rewrite: /nginx, cluster: nginx}}
  - {{match: {{prefix: /closing}}, cluster: closing}}
  - {{match: {{prefix: /once}}, cluster: once}}
  - {{match: {{prefix: /ws}}, cluster: websocket}}
  - {{match: {{prefix: /stream}}, cluster: stream}}
  - {{cluster: python}}
clusters:
  - {{name: nginx, endpoints: ["127.0.0.1:{nginx}"]}}
  - {{name: closing, endpoints: ["127.0.0.1:{closing}"]}}
  - {{name: once, endpoints: ["127.0.0.1:{once}"]}}
  - {{name: websocket, endpoints: ["127.0.0.1:{websocket}"]}}
  - {{name: stream, endpoints: ["127.0.0.1:{stream}"]}}
  - {{name: python, endpoints: ["127.0.0.1:{python}"]}}
"""


class Outrigger(Process):
    """The proxy under test, in front of all origins."""

    def __init__(self, folder, ports):
        self.folder = folder / "outrigger"
        self.folder.mkdir()
        config = self.folder / "outrigger.yaml"
        config.write_text(OUTRIGGER_CONFIG.format(folder=self.folder, driver=DRIVER, **ports))
        listen_path = self.folder / "listen"
        admin_path = self.folder / "admin"
        super().__init__(
            "outrigger",
            [
                str(BINARY), "run", "-c", str(config),
                "--listen-address-path", str(listen_path),
                "--admin-address-path", str(admin_path),
            ],
            self.folder,
        )
        self.port = self.wait_for("listens", lambda: port_in(listen_path))
        self.admin_port = self.wait_for("serves its admin address", lambda: port_in(admin_path))
        self.wait_for("is ready", lambda: self.admin("/ready") is not None)

    def admin(self, path):
        """An admin page's text, or None while it is not served with 200."""
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def stop_cleanly(self):
        status = self.stop()
        log = self.log()
        assert status == 0, f"outrigger exited {status}:\n{log}"
        assert "panicked" not in log, log


NGINX_PROXY = """
    map $http_upgrade $upgrade_or_none {{ default upgrade; '' ''; }}
    upstream nginx {{ server 127.0.0.1:{nginx}; keepalive 256; }}
    upstream closing {{ server 127.0.0.1:{closing}; keepalive 256; }}
    upstream once {{ server 127.0.0.1:{once}; }}
    upstream python {{ server 127.0.0.1:{python}; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off;
        proxy_set_header Host $http_host;
        proxy_set_header Connection $upgrade_or_none;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto http;
        proxy_set_header X-Request-Id $request_id;
        location /nginx {{ proxy_pass http://nginx; }}
        location /rewritten {{ proxy_pass http://nginx/nginx; }}
        location /closing {{ proxy_pass http://closing; }}
        location /once {{ proxy_pass http://once; }}
        location /ws {{ proxy_pass http://127.0.0.1:{websocket}; }}
        location /stream {{ proxy_pass http://127.0.0.1:{stream}; }}
        location / {{ proxy_pass http://python; }}
    }}
"""


class NginxProxy(Nginx):
    """nginx in the proxy's place, to try the tests themselves."""

    def __init__(self, folder, ports):
        port = free_port()
        super().__init__(folder, NGINX_PROXY.format(port=port, **ports), port, name="nginx-proxy")

    def stop_cleanly(self):
        self.stop()


def start_proxy(folder, ports):
    return {"outrigger": Outrigger, "nginx": NginxProxy}[PROXY](folder, ports)


def port_in(path):
    """The first port in a file of addresses, or None while there is none."""
    try:
        found = re.search(r"127\.0\.0\.1:(\d+)\s", path.read_text())
    except FileNotFoundError:
        return None
    return int(found.group(1)) if found else None


def raise_descriptor_limit():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_tool(command, patience_s=PATIENCE_S * 4, **options):
    """Runs a client to its end; a failure shows all that it said."""
    done = subprocess.run(command, capture_output=True, timeout=patience_s, **options)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}\nexited {done.returncode}\n"
        f"{done.stdout[-4000:].decode(errors='replace')}\n{done.stderr[-4000:].decode(errors='replace')}"
    )
    return done
