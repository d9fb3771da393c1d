"""What curl can do, done through the proxy."""

import json
import os
import re
import subprocess

import pytest

from origins import GZIP_TEXT, pattern
from support import KIB, MIB, PATIENCE_S, PROXY, QUICK, SMALL, run_tool, sha256, sha256_of_file

# Large enough to fill every buffer on the way many times.
LARGE = (32 if QUICK else 256) * MIB


not_nginx = pytest.mark.skipif(PROXY == "nginx", reason="nginx as a proxy does otherwise")


def curl(*arguments, **options):
    """What curl printed. It fails on a broken transfer, not on a status."""
    command = ["curl", "--silent", "--show-error", "--max-time", "120", *map(str, arguments)]
    return run_tool(command, **options)


def echoed(*arguments, **options):
    """What the echo origin saw of the request."""
    return json.loads(curl(*arguments, **options).stdout)


def headers_of(seen, name):
    return [value for key, value in seen["headers"] if key == name]


@pytest.fixture(scope="session")
def large(nginx):
    """A large file that nginx serves."""
    path = nginx.files / "large.bin"
    with open(path, "wb") as file:
        for _ in range(LARGE // MIB):
            file.write(os.urandom(MIB))
    return path


def test_one_connection_serves_many_requests(base):
    urls = [f"{base}/nginx/small", f"{base}/echo", f"{base}/chunked?size=100000", f"{base}/nginx/small"]
    outputs = [part for url in urls for part in ("-o", "/dev/null", url)]
    said = curl("-w", "%{http_code} %{num_connects}\n", *outputs).stdout.decode()
    assert said.split("\n")[:4] == ["200 1", "200 0", "200 0", "200 0"]


def test_a_thousand_requests_in_parallel(base):
    said = curl(
        "-Z", "--parallel-max", "50", "-o", "/dev/null", "-w", "%{http_code}\n",
        f"{base}/nginx/small?n=[1-{100 if QUICK else 1000}]",
    ).stdout.decode()
    assert set(said.split()) == {"200"}


@pytest.mark.parametrize("path", ["/nginx/small", "/chunked?size=50000&step=777"])
def test_http_1_0_gets_no_chunks(base, path):
    said = curl("--http1.0", "-i", f"{base}{path}").stdout
    head, body = said.split(b"\r\n\r\n", 1)
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"transfer-encoding" not in head.lower()
    expected = SMALL.encode() if path == "/nginx/small" else pattern(50_000)
    assert body == expected


def test_http_1_0_can_keep_its_connection(base):
    url = f"{base}/nginx/small"
    said = curl(
        "--http1.0", "-H", "Connection: keep-alive", "-w", " %{num_connects}\n", url, url
    ).stdout.decode()
    assert said == f"{SMALL} 1\n{SMALL} 0\n"


def test_head_says_what_get_would(base):
    head = curl("--head", f"{base}/nginx/small").stdout.decode().lower()
    assert re.search(r"^content-length: 100\r$", head, re.M)
    # The connection still works: no body was awaited or sent.
    said = curl(
        "--head", f"{base}/nginx/small", "--next", "-s", "-w", "%{num_connects}", f"{base}/nginx/small"
    ).stdout.decode()
    assert said.endswith(SMALL + "0")


@pytest.mark.parametrize("size", [0, 1, 100, 64 * KIB, 5 * MIB + 17])
def test_upload_with_a_length(base, size):
    body = os.urandom(size)
    seen = echoed("--data-binary", "@-", "-H", "Expect:", f"{base}/echo", input=body)
    assert (seen["length"], seen["sha256"]) == (size, sha256(body))


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 5 * MIB + 17])
def test_upload_in_chunks(base, size):
    body = os.urandom(size)
    seen = echoed("-T", "-", "-H", "Expect:", f"{base}/echo", input=body)
    assert seen["method"] == "PUT"
    assert (seen["length"], seen["sha256"]) == (size, sha256(body))


def test_expect_continue_is_answered(base, proxy):
    body = os.urandom(2 * MIB)
    done = curl(
        "-v", "--expect100-timeout", "60", "-H", "Expect: 100-continue", "--data-binary", "@-",
        f"{base}/echo", input=body,
    )
    assert b"< HTTP/1.1 100" in done.stderr
    assert json.loads(done.stdout)["sha256"] == sha256(body)


@not_nginx
def test_expect_continue_can_be_refused(base):
    """The origin's 413 comes instead of a 100, and nothing was uploaded."""
    said = curl(
        "--expect100-timeout", "60", "-H", "Expect: 100-continue", "--data-binary", "@-",
        "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", f"{base}/refuse",
        input=bytes(2 * MIB),
    ).stdout
    assert said == b"413 0"


def test_ranges(base, large):
    url = f"{base}/nginx/files/{large.name}"
    with open(large, "rb") as file:
        file.seek(1000)
        expected = file.read(5000)
    done = curl("-r", "1000-5999", "-w", "%{stderr}%{http_code}", url)
    assert (done.stdout, done.stderr) == (expected, b"206")
    two = curl("-r", "0-9,1000-1009", "-i", url).stdout
    assert b"multipart/byteranges" in two and expected[:10] in two
    none = curl("-r", f"{LARGE * 2}-", "-o", "/dev/null", "-w", "%{http_code}", url).stdout
    assert none == b"416"


def test_conditional_request(base, nginx):
    (nginx.files / "page.html").write_text("<p>page</p>")
    url = f"{base}/nginx/files/page.html"
    etag = re.search(r"^etag: (.*)\r$", curl("--head", url).stdout.decode(), re.M | re.I).group(1)
    said = curl(
        "-H", f"If-None-Match: {etag}", "-w", "%{http_code} %{num_connects}\n", url, url
    ).stdout.decode()
    assert said == "304 1\n304 0\n"


def test_large_download(base, large):
    target = large.parent.parent / "downloaded.bin"
    curl("-o", target, f"{base}/nginx/files/{large.name}")
    assert sha256_of_file(target) == sha256_of_file(large)
    target.unlink()


def test_large_download_to_a_slow_reader(base, large):
    """The reader stops and goes; what is sent waits for it and stays whole."""
    target = large.parent.parent / "slowly.bin"
    curl("--limit-rate", "16M", "-r", f"0-{32 * MIB - 1}", "-o", target,
         f"{base}/nginx/files/{large.name}")
    with open(large, "rb") as file:
        assert sha256_of_file(target) == sha256(file.read(32 * MIB))
    target.unlink()


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_large_upload(base, nginx, large, framing):
    source = ["-T", large] if framing == "length" else ["-T", "-"]
    with open(large, "rb") as file:
        said = curl(
            *source, "-H", "Expect:", "-o", "/dev/null", "-w", "%{http_code}",
            f"{base}/nginx/upload/{framing}.bin", stdin=file,
        ).stdout
    assert said in (b"201", b"204")
    stored = nginx.uploads / f"{framing}.bin"
    assert sha256_of_file(stored) == sha256_of_file(large)
    deleted = curl("-X", "DELETE", "-w", "%{http_code}", f"{base}/nginx/upload/{framing}.bin").stdout
    assert deleted == b"204" and not stored.exists()


def test_large_chunked_download(base):
    size = 8 * MIB
    body = curl(f"{base}/chunked?size={size}&step=60001").stdout
    assert sha256(body) == sha256(pattern(size))


def test_body_that_ends_with_the_connection(base):
    size = 3 * MIB + 5
    body = curl(f"{base}/until_close?size={size}").stdout
    assert sha256(body) == sha256(pattern(size))


@not_nginx
def test_trailers_arrive(base):
    assert b"X-Sum: done" in curl("-i", "--raw", f"{base}/chunked?size=10").stdout


def test_compressed_by_python(base):
    assert curl("--compressed", f"{base}/gzip").stdout == GZIP_TEXT


def test_compressed_by_nginx(base, nginx):
    text = b"nginx compresses this as it goes, so it comes in chunks\n" * 5000
    (nginx.files / "text.txt").write_bytes(text)
    done = curl("--compressed", "-D", "/dev/stderr", f"{base}/nginx/gzip/text.txt")
    assert done.stdout == text
    assert b"content-encoding: gzip" in done.stderr.lower()


def test_includes_by_nginx(base, nginx):
    (nginx.files / "part.html").write_text("<b>part</b>" * 1000)
    (nginx.files / "whole.html").write_text('<a><!--#include file="part.html" --></a>')
    assert curl(f"{base}/nginx/ssi/whole.html").stdout == b"<a>" + b"<b>part</b>" * 1000 + b"</a>"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(base, method):
    assert echoed("-X", method, f"{base}/echo")["method"] == method


@pytest.mark.parametrize("code", [200, 201, 204, 304, 400, 404, 418, 500, 503])
def test_statuses(base, code):
    url = f"{base}/status?code={code}"
    said = curl("-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", url, url)
    assert said.stdout.decode() == f"{code} 1\n{code} 0\n"


@not_nginx
def test_options_for_the_whole_server(base):
    assert echoed("-X", "OPTIONS", "--request-target", "*", base)["path"] in ("*", "/*")


@not_nginx
def test_as_a_forward_proxy_asks(base):
    """curl -x sends the absolute form; its authority wins over Host."""
    seen = echoed("-x", base, "-H", "Host: other.test", "http://name.test/echo?a=1")
    assert seen["path"] == "/echo?a=1"
    assert headers_of(seen, "host") == ["name.test"]


def test_connect_is_refused(base):
    """No open proxy: no tunnel to anywhere."""
    command = ["curl", "-s", "-p", "-x", base, "-w", "%{http_connect}", "http://127.0.0.1:1/"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode != 0
    assert re.fullmatch(rb"4\d\d|501", done.stdout), done.stdout


def test_paths_are_normalised(base):
    url = f"{base}/a/b/../../nginx/./files/..//small"
    assert curl("--path-as-is", url).stdout.decode() == SMALL


@not_nginx
@pytest.mark.parametrize("path", ["/nginx%2fsmall", "/nginx/%5csmall", "/nginx/%00"])
def test_ambiguous_paths_are_refused(base, path):
    said = curl("--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", f"{base}{path}").stdout
    assert said == b"400"


def test_prefix_is_rewritten(base):
    assert curl(f"{base}/rewritten/small").stdout.decode() == SMALL


def test_the_origin_learns_of_the_client(base):
    forged = ["-H", "X-Forwarded-For: 203.0.113.9", "-H", "X-Request-Id: mine"]
    seen = echoed(*forged, f"{base}/echo")
    assert headers_of(seen, "x-forwarded-for") == ["127.0.0.1"]
    assert headers_of(seen, "x-forwarded-proto") == ["http"]
    (request_id,) = headers_of(seen, "x-request-id")
    assert len(request_id) >= 16


@not_nginx
def test_hop_by_hop_fields_stay_here(base):
    seen = echoed(
        "-H", "Connection: keep-alive, X-Private", "-H", "X-Private: 1", "-H", "Keep-Alive: 5",
        "-H", "Proxy-Connection: close", "-H", "TE: gzip", "-H", "X-Public: 2", f"{base}/echo",
    )
    names = {name for name, _ in seen["headers"]}
    assert "x-public" in names
    assert not names & {"x-private", "keep-alive", "proxy-connection", "te", "upgrade"}


def test_cookies_stay_apart(base):
    head = curl("-i", f"{base}/cookies").stdout.decode()
    cookies = re.findall(r"^set-cookie: (\w+)=", head, re.M | re.I)
    assert cookies == ["c0", "c1", "c2"]


def test_thirty_headers_of_a_browser(base):
    fields = [part for n in range(30) for part in ("-H", f"X-Field-{n}: {'v' * 60}")]
    seen = echoed(*fields, f"{base}/echo")
    assert sum(name.startswith("x-field-") for name, _ in seen["headers"]) == 30


@pytest.mark.parametrize("path", ["/once/x", "/closing/x"])
def test_origins_that_close(base, path):
    url = f"{base}{path}"
    said = curl("-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n", f"{url}?[1-40]").stdout
    assert set(said.decode().split("\n")[1:40]) == {"200 0"}


def test_no_origin_no_answer(base):
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{base}/nginx/none").stdout == b"404"
