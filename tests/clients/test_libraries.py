"""requests and httpx: sessions, streaming, compression, many at once."""

import asyncio
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import requests

from origins import GZIP_TEXT, pattern
from support import MIB, PATIENCE_S, QUICK, SMALL, sha256


@pytest.fixture
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture
def client():
    with httpx.Client(timeout=PATIENCE_S) as client:
        yield client


def connections_of(session, url):
    """Connections that the session ever opened."""
    pools = session.get_adapter(url).poolmanager.pools
    return sum(pools[key].num_connections for key in pools.keys())


def test_a_session_keeps_one_connection(base, session):
    for number in range(200):
        body = os.urandom(number * 50)
        seen = session.post(f"{base}/echo", data=body, timeout=PATIENCE_S).json()
        assert seen["sha256"] == sha256(body)
    assert connections_of(session, base) == 1


def test_redirects_and_cookies(base, session):
    assert session.get(f"{base}/redirect?left=5", timeout=PATIENCE_S).text == "arrived\n"
    session.get(f"{base}/cookies", timeout=PATIENCE_S)
    seen = session.get(f"{base}/echo", timeout=PATIENCE_S).json()
    assert ["cookie", "c0=0; c1=1; c2=2"] in seen["headers"]


def test_requests_streams_both_ways(base, session):
    blocks = [os.urandom(70_001) for _ in range(30)]
    seen = session.post(f"{base}/echo", data=iter(blocks), timeout=PATIENCE_S).json()
    assert (seen["chunked"], seen["sha256"]) == (True, sha256(b"".join(blocks)))
    size = 5 * MIB + 3
    with session.get(f"{base}/bytes?size={size}", stream=True, timeout=PATIENCE_S) as answer:
        assert b"".join(answer.iter_content(100_000)) == pattern(size)


def test_requests_decompresses(base, session):
    answer = session.get(f"{base}/gzip", timeout=PATIENCE_S)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.content == GZIP_TEXT


def test_httpx_streams_both_ways(base, client):
    blocks = [os.urandom(9_001) for _ in range(200)]
    seen = client.put(f"{base}/echo", content=iter(blocks)).json()
    assert (seen["chunked"], seen["sha256"]) == (True, sha256(b"".join(blocks)))
    size = 3 * MIB + 1
    with client.stream("GET", f"{base}/chunked?size={size}&step=12345") as answer:
        assert b"".join(answer.iter_bytes()) == pattern(size)


def test_httpx_decompresses(base, client):
    assert client.get(f"{base}/gzip").content == GZIP_TEXT


def test_a_form_and_a_file(base, client):
    answer = client.post(f"{base}/echo", data={"a": "1"}, files={"f": ("f.bin", os.urandom(MIB))})
    assert answer.json()["length"] > MIB


def test_clients_that_leave_midway(base, client):
    """What they leave behind must not reach the next one."""
    for _ in range(20):
        with client.stream("GET", f"{base}/bytes?size={20 * MIB}") as answer:
            next(answer.iter_bytes(1000))
    for _ in range(20):
        assert client.get(f"{base}/nginx/small").text == SMALL


def test_answers_reach_those_who_asked(base):
    """Many clients, each with its own words: none gets another's."""

    def ask(_):
        with requests.Session() as session:
            for _ in range(10 if QUICK else 50):
                token = uuid.uuid4().hex
                body = token.encode() * 20
                answer = session.post(f"{base}/echo/{token}", data=body, timeout=PATIENCE_S)
                seen = answer.json()
                assert seen["path"] == f"/echo/{token}"
                assert seen["sha256"] == sha256(body)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))


def test_httpx_asks_many_at_once(base):
    async def ask_all():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=PATIENCE_S * 2) as client:

            async def ask(number):
                size = number * 37
                answer = await client.get(f"{base}/bytes?size={size}")
                assert answer.content == pattern(size)

            await asyncio.gather(*(ask(number) for number in range(100 if QUICK else 500)))

    asyncio.run(ask_all())
