"""Two hosts as network namespaces, and a cable between them that delays, loses or holds packets.

Kernels for containers often lack tc's netem, so the packets go through this process: the ends of
the cable are TUN devices.
"""

import contextlib
import dataclasses
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

_TUN, _SET_NAME = "/dev/net/tun", 0x400454CA  # TUNSETIFF of linux/if_tun.h
_PACKETS_ALONE = 0x1 | 0x1000  # IFF_TUN | IFF_NO_PI
_LARGEST_PACKET = 65536
ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclasses.dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        address: by which the other reaches it.
        enter: the command that enters it.
    """

    address: str
    enter: tuple[str, ...]


class Cable:
    """What joins two hosts.

    Attributes:
        lost: the packets that did not come to their end.
    """

    def __init__(self, delay_seconds: float, loss: float):
        self._delay_seconds, self._loss, self._is_cut = delay_seconds, loss, False
        self.lost = 0

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Within it every packet is lost; neither end is told."""
        self._is_cut = True
        try:
            yield
        finally:
            self._is_cut = False

    def carry(self, ends: tuple[int, int], closed: int) -> None:
        """Carry packets until `closed`, a descriptor, can be read."""
        chance, order = random.Random(5), itertools.count()
        under_way: list[tuple[float, int, int, bytes]] = []  # arrival, order, end, packet
        while True:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*ends, closed], [], [], wait)
            if closed in ready:
                return
            for end in ready:
                packet = os.read(end, _LARGEST_PACKET)
                arrival = time.monotonic() + self._delay_seconds
                heapq.heappush(under_way, (arrival, next(order), ends[1 - ends.index(end)], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                *_, end, packet = heapq.heappop(under_way)
                if self._is_cut or chance.random() < self._loss:
                    self.lost += 1
                else:
                    os.write(end, packet)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _make_end(stack: contextlib.ExitStack, namespace: str, address: str, other: str) -> int:
    """Make a host with its end of the cable; return the descriptor of the packets that it sends."""
    _ip("netns", "add", namespace)
    end = os.open(_TUN, os.O_RDWR)
    stack.callback(os.close, end)
    name = namespace.encode()
    fcntl.ioctl(end, _SET_NAME, struct.pack("16sH22x", name, _PACKETS_ALONE))
    _ip("link", "set", namespace, "netns", namespace)
    _ip("-n", namespace, "addr", "add", address, "peer", other, "dev", namespace)
    for device in ("lo", namespace):
        _ip("-n", namespace, "link", "set", device, "up")
    return end


@contextlib.contextmanager
def two_hosts(
    delay_seconds: float = 0.0, loss: float = 0.0
) -> Iterator[tuple[tuple[Host, Host], Cable]]:
    """Give two hosts and the cable between them.

    Args:
        delay_seconds: of a packet, in either direction.
        loss: probability that a packet is lost.

    Raises:
        PermissionError: they cannot be made here.
    """
    names = [f"bert-{os.getpid()}-{i}" for i in range(2)]
    cable = Cable(delay_seconds, loss)
    with contextlib.ExitStack() as stack:
        for name in names:
            delete = ["ip", "netns", "del", name]
            stack.callback(subprocess.run, delete, capture_output=True, check=False)
        try:
            pairs = zip(names, ADDRESSES, reversed(ADDRESSES), strict=True)
            first, second = (_make_end(stack, *pair) for pair in pairs)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PermissionError(f"no two hosts can be made here: {error}") from error
        closed, close = os.pipe()
        stack.callback(os.close, closed)
        thread = threading.Thread(target=cable.carry, args=((first, second), closed), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, close)
        one, other = (
            Host(address, ("ip", "netns", "exec", name))
            for address, name in zip(ADDRESSES, names, strict=True)
        )
        yield (one, other), cable
