"""A real WebSocket client and server, with the proxy between them."""

import asyncio
import os

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import State

from support import KIB, MIB, PATIENCE_S, QUICK, wait_until

CLIENTS = 50 if QUICK else 300


@pytest.fixture
def url(base, websocket):
    return base.replace("http:", "ws:") + "/ws"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S * 2))


def test_text_and_binary(url):
    async def talk():
        async with connect(url) as connection:
            for message in ["", "hello", "grüße, 世界", b"", b"\x00\xff", os.urandom(70_000)]:
                await connection.send(message)
                assert await connection.recv() == message

    run(talk())


def test_large_messages(url):
    async def talk():
        async with connect(url, max_size=64 * MIB) as connection:
            for size in [125, 126, 65_535, 65_536, MIB, 8 * MIB]:
                message = os.urandom(size)
                await connection.send(message)
                assert await connection.recv() == message

    run(talk())


def test_fragments_stay_fragments(url, websocket):
    async def talk():
        async with connect(url) as connection:
            await connection.send(["one ", "two ", "three"])
            assert await connection.recv() == "one two three"

    websocket.fragments.clear()
    run(talk())
    # Three, and perhaps an empty last one: the proxy looks at none of them.
    assert websocket.fragments[0] >= 3


def test_pings_go_both_ways(url):
    async def talk():
        async with connect(url) as connection:
            await (await connection.ping(b"from the client"))
            await connection.send("ping me")
            assert await connection.recv() == "you answered"

    run(talk())


def test_many_messages_in_a_row(url):
    """The client does not wait for echoes: both directions are full at once."""

    async def talk():
        async with connect(url) as connection:
            messages = [os.urandom(1 + n * 13 % 5000) for n in range(2000)]

            async def send():
                for message in messages:
                    await connection.send(message)

            sending = asyncio.create_task(send())
            for message in messages:
                assert await connection.recv() == message
            await sending

    run(talk())


def test_the_server_closes(url):
    async def talk():
        async with connect(url) as connection:
            await connection.send("close 4001")
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert (connection.close_code, connection.close_reason) == (4001, "as you wish")

    run(talk())


def test_the_client_closes(url, websocket):
    async def talk():
        async with connect(url) as connection:
            await connection.close(4002, "enough")
            assert connection.state is State.CLOSED

    websocket.closes.clear()
    run(talk())
    wait_until("the server saw the client's close", lambda: 4002 in websocket.closes)


def test_the_server_vanishes(url):
    """A cut connection reaches the client, and not as a proper close."""

    async def talk():
        async with connect(url) as connection:
            await connection.send("vanish")
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1006

    run(talk())


def test_the_client_vanishes(url, websocket):
    async def talk():
        async with connect(url) as connection:
            await connection.send("hello")
            await connection.recv()
            connection.transport.abort()

    websocket.closes.clear()
    run(talk())
    wait_until("the server saw the client go", lambda: websocket.closes)


def test_the_handshake_passes(url):
    async def talk():
        async with connect(url, subprotocols=["echo"], additional_headers={"X-Mine": "1"}) as connection:
            assert connection.subprotocol == "echo"
            await connection.send("headers")
            seen = (await connection.recv()).lower()
            assert "x-mine: 1" in seen and "x-forwarded-for: 127.0.0.1" in seen

    run(talk())


def test_no_upgrade_no_tunnel(base):
    """An origin that does not know WebSocket answers as it would without."""

    async def talk():
        with pytest.raises(InvalidStatus) as refused:
            await connect(base.replace("http:", "ws:") + "/nginx/none")
        assert refused.value.response.status_code == 404

    run(talk())


def test_many_at_once(url):
    async def talk():
        async def one(number):
            async with connect(url, open_timeout=PATIENCE_S) as connection:
                for turn in range(10):
                    message = f"{number} {turn} " + "x" * (number % 7 * KIB)
                    await connection.send(message)
                    assert await connection.recv() == message

        await asyncio.gather(*(one(number) for number in range(CLIENTS)))

    run(talk())
