"""`outrigger` without arguments: the demo, as a newcomer meets it."""

import urllib.request

import pytest

from support import BINARY, PATIENCE_S, PROXY, Process, listens

PORTS = (8080, 9901)


@pytest.mark.skipif(PROXY != "outrigger", reason="outrigger's own demo")
def test_demo(folder):
    taken = [port for port in PORTS if listens(port)]
    if taken:
        pytest.skip(f"somebody listens on {taken}")
    place = folder / "demo"
    place.mkdir()
    demo = Process("demo", [str(BINARY)], place)
    try:
        demo.wait_for("listens", lambda: all(map(listens, PORTS)))
        for path in ("/", "/hello", "/slow"):
            with urllib.request.urlopen(f"http://127.0.0.1:8080{path}", timeout=PATIENCE_S) as answer:
                assert answer.status == 200, path
        assert "curl" in demo.log()
    finally:
        status = demo.stop()
    assert status == 0, demo.log()
