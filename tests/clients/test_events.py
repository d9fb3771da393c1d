"""A stream of events passes as it comes: no event waits for the next."""

import uuid

import httpx
import requests

from support import PATIENCE_S

EVENTS = 50


def test_each_event_arrives_before_the_next_is_sent(base):
    key = uuid.uuid4().hex
    url = f"{base}/events?key={key}&count={EVENTS}"
    with httpx.Client(timeout=PATIENCE_S) as client, client.stream("GET", url) as answer:
        assert "chunked" in answer.headers["transfer-encoding"]
        numbers = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                numbers.append(int(line[6:]))
                requests.get(
                    f"{base}/confirm?key={key}&number={numbers[-1]}", timeout=PATIENCE_S
                ).raise_for_status()
        assert numbers == list(range(EVENTS))


def test_an_upload_passes_as_it_comes(base, echo):
    """The client sends a line only after the origin has the one before."""
    key = uuid.uuid4().hex
    arrived = echo.steps_of(key)

    def lines():
        for number in range(EVENTS):
            assert arrived.wait(number), f"only {arrived.value} of {number} lines arrived"
            yield b"line %d\n" % number

    answer = requests.post(f"{base}/lines?key={key}", data=lines(), timeout=PATIENCE_S)
    assert answer.text == str(EVENTS)
