"""wrk and h2load for some seconds each: not one error. OUTRIGGER_TEST_LOAD_SECONDS makes it
minutes. How fast it is, is not asked here."""

import os
import re

import pytest

from support import KIB, LOAD_SECONDS, MIB, PROXY, QUICK, run_tool, wait_until

CONNECTIONS = 64


def wrk(url, *arguments, connections=CONNECTIONS):
    """Requests done; fails on any error that wrk counts."""
    said = run_tool(
        ["wrk", "-t2", f"-c{connections}", f"-d{LOAD_SECONDS}s", "--timeout", "20s", *arguments, url],
        patience_s=LOAD_SECONDS + 60,
    ).stdout.decode()
    assert "Socket errors" not in said and "Non-2xx" not in said, said
    done = int(re.search(r"(\d+) requests in", said).group(1))
    assert done > connections, said
    return done


def h2load(url, *arguments, count):
    said = run_tool(["h2load", "--h1", "-n", str(count), "-T", "20", "-N", "20", *arguments, url]).stdout.decode()
    assert f"{count} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert f"status codes: {count} 2xx, 0 3xx, 0 4xx, 0 5xx" in said, said


@pytest.fixture(scope="session", autouse=True)
def files(nginx):
    for name, size in {"16k.bin": 16 * KIB, "1m.bin": MIB}.items():
        (nginx.files / name).write_bytes(os.urandom(size))
    (nginx.files / "page.html").write_text('<p><!--#echo var="uri" --></p>' * 200)


@pytest.mark.parametrize("connections", [2, 64, 256])
def test_wrk_small_answers(base, nginx, connections):
    before = nginx.accepted()
    done = wrk(f"{base}/nginx/small", connections=connections)
    opened = nginx.accepted() - before
    # nginx ends a connection after 1000 requests; two shards may each hold one per client.
    assert opened <= 2 * connections + done / 500 + 10, f"{opened} connections for {done} requests"


@pytest.mark.parametrize("path", [
    "/nginx/files/16k.bin", "/nginx/files/1m.bin", "/nginx/ssi/page.html",
    "/closing/x", "/once/x", "/nginx/gzip/page.html",
])
def test_wrk(base, path):
    wrk(f"{base}{path}", "-H", "Accept-Encoding: gzip")


def test_wrk_with_a_new_connection_for_each_request(base):
    wrk(f"{base}/nginx/small", "-H", "Connection: close", connections=32)


def test_wrk_posts(base, folder):
    script = folder / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 10000)\n')
    wrk(f"{base}/echo", "-s", str(script), connections=16)


COUNT = 2000 if QUICK else 20000


@pytest.mark.parametrize("streams", [1, 8])
def test_h2load(base, streams):
    """With several streams, h2load pipelines: answers must come in order."""
    h2load(f"{base}/nginx/small", "-c", "32", "-m", str(streams), count=COUNT)


def test_h2load_uploads(base, folder):
    body = folder / "body.bin"
    body.write_bytes(os.urandom(20 * KIB))
    h2load(f"{base}/echo", "-c", "16", "-d", str(body), count=COUNT // 10)


@pytest.mark.skipif(PROXY != "outrigger", reason="asks outrigger's admin page")
def test_nothing_is_left_behind(proxy, base):
    """After the load no connection stays open, on either side."""

    def sockets():
        folder = f"/proc/{proxy.pid}/fd"
        links = []
        for name in os.listdir(folder):
            try:
                links.append(os.readlink(f"{folder}/{name}"))
            except FileNotFoundError:
                pass
        return sum(link.startswith("socket:") for link in links)

    # Two listening sockets, the admin's, and what the process itself keeps.
    wait_until("sockets stay open", lambda: sockets() <= 8)


@pytest.mark.skipif(PROXY != "outrigger", reason="asks outrigger's admin page")
def test_metrics_count_the_load(proxy):
    text = proxy.admin("/metrics")
    found = re.findall(r"^outrigger_requests_total\{[^}]*\} (\d+)", text, re.M)
    assert sum(map(int, found)) > COUNT
