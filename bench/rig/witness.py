"""Sees the connections that are attempted to a port, also where nobody listens: the SYNs on the
loopback interface. It needs CAP_NET_RAW."""

import ctypes
import socket
import struct
import threading
import time

# From linux/if_ether.h and asm-generic/socket.h.
ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26

# Between two looks at whether it has ended, in seconds.
LOOK_EVERY_S = 0.1


class Witness(threading.Thread):
    """Since when it was started. Raises PermissionError if we may not look."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        # It gets nothing before it is bound, and then only what passes the filter: IP packets that
        # arrive, since what leaves is the same once more.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        attach(self.socket, syns_to(port))
        self.socket.bind(("lo", ETH_P_IP))
        self.socket.settimeout(LOOK_EVERY_S)
        self.ended = threading.Event()
        # A SYN that is sent again has the same port and number.
        self.seen: dict[tuple[int, int], int] = {}
        self.start()

    def run(self) -> None:
        while True:
            try:
                packet = self.socket.recv(128)
            except TimeoutError:
                # What came before the end has been read.
                if self.ended.is_set():
                    return
                continue
            header = (packet[0] & 15) * 4
            source, _, number = struct.unpack_from("!HHI", packet, header)
            self.seen.setdefault((source, number), time.monotonic_ns())

    def stop(self) -> list[int]:
        """When connections were attempted, in nanoseconds of CLOCK_MONOTONIC."""
        self.ended.set()
        self.join()
        self.socket.close()
        return sorted(self.seen.values())


def syns_to(port: int) -> list[tuple[int, int, int, int]]:
    """A filter for packets that begin with their IP header; bpf(4)."""
    load_byte, load_half, header = 0x30, 0x48, 0xB1  # A of the packet; of X on; X is IP's length.
    byte_of_x, equal, alu_and, answer = 0x50, 0x15, 0x54, 0x06
    return [
        (load_byte, 0, 0, 9),
        (equal, 0, 7, socket.IPPROTO_TCP),
        (header, 0, 0, 0),
        (load_half, 0, 0, 2),
        (equal, 0, 4, port),
        (byte_of_x, 0, 0, 13),
        (alu_and, 0, 0, 0x12),
        (equal, 0, 1, 0x02),
        (answer, 0, 0, 128),
        (answer, 0, 0, 0),
    ]


def attach(to: socket.socket, program: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    about = struct.pack("HL", len(program), ctypes.addressof(buffer))
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, about)
