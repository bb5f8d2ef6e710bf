"""Run a program without any network but loopback, where one port leads to the real loopback.

Usage: offline.py PORT COMMAND [ARGUMENT…]; needs Linux, and root or user namespaces.

The program runs in a network namespace of its own. A socket belongs to the namespace that it was
made in, whoever holds it: the program's side makes the listening one and hands it over.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import sys

IMPOSSIBLE = 125
"""The exit status where there can be no such place."""

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x41


def _leave_the_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NET if os.geteuid() == 0 else _NEW_NET | _NEW_USER) != 0:
        raise OSError(ctypes.get_errno(), "this machine allows no network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


def _inside(ours: socket.socket, port: int, command: list[str]) -> None:
    _leave_the_network()
    with socket.create_server(("127.0.0.1", port)) as listening:
        socket.send_fds(ours, [b"x"], [listening.fileno()])
    ours.close()
    os.execvp(command[0], command)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one side has gone: so the other one is told
    finally:
        writer.close()


async def _relay(listening: socket.socket, port: int, child: int) -> int:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))

    await asyncio.start_server(serve, sock=listening)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status)


def main(port: int, command: list[str]) -> int:
    """Run a command, and return its exit status."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        try:
            _inside(theirs, port, command)
        except OSError as exc:
            print(exc, file=sys.stderr, flush=True)
        finally:
            os._exit(IMPOSSIBLE)
    theirs.close()
    _, handles, _, _ = socket.recv_fds(ours, 1, 1)
    if not handles:
        os.waitpid(child, 0)
        return IMPOSSIBLE
    return asyncio.run(_relay(socket.socket(fileno=handles[0]), port, child))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
