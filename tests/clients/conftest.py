"""One proxy and one set of origins for all tests: they must not disturb each other."""

import tempfile
from pathlib import Path

import pytest

from origins import EchoServer, StreamServer, WebSocketServer
from support import DRIVER, PROXY, NginxOrigin, raise_descriptor_limit, start_proxy


def pytest_report_header():
    return f"proxy: {PROXY}, driver: {DRIVER}"


@pytest.fixture(scope="session")
def folder():
    raise_descriptor_limit()
    with tempfile.TemporaryDirectory(prefix="outrigger-clients-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def nginx(folder):
    origin = NginxOrigin(folder)
    yield origin
    origin.stop()


def stopped_at_end(make):
    @pytest.fixture(scope="session")
    def origin():
        server = make()
        yield server
        server.stop()

    return origin


echo = stopped_at_end(EchoServer)
stream = stopped_at_end(StreamServer)
websocket = stopped_at_end(WebSocketServer)


@pytest.fixture(scope="session")
def proxy(folder, nginx, echo, stream, websocket):
    ports = {
        "nginx": nginx.port,
        "closing": nginx.closing_port,
        "once": nginx.once_port,
        "python": echo.port,
        "stream": stream.port,
        "websocket": websocket.port,
    }
    proxy = start_proxy(folder, ports)
    yield proxy
    proxy.stop_cleanly()


@pytest.fixture(scope="session")
def base(proxy):
    """The proxy's URL, without a slash at its end."""
    return f"http://127.0.0.1:{proxy.port}"


@pytest.fixture(autouse=True)
def the_proxy_survives(request):
    """No test may end the proxy, whatever it checks besides."""
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").assert_running()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Behind a failure, the end of what the proxy said."""
    outcome = yield
    report = outcome.get_result()
    proxy = getattr(item, "funcargs", {}).get("proxy")
    if report.failed and proxy is not None:
        report.sections.append(("the proxy's log, its end", proxy.log()[-4000:]))
