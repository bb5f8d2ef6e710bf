"""The graceful stop (STREAM-4), of one process and of several."""

import http.client
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

Program = Callable[..., "subprocess.Popen[str]"]


def get(port: int, path: str, timeout: float = 5.0) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def open_stream(
    port: int, path: str
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.readline()
    return connection, response


def start(
    program: Program, workers: int, lame_duck: float, grace: float
) -> tuple["subprocess.Popen[str]", int]:
    server = program("stream_server.py", str(workers), str(lame_duck), str(grace))
    assert server.stdout is not None
    ports = {int(server.stdout.readline().removeprefix("ready ")) for _ in range(workers)}
    return server, ports.pop()


@pytest.mark.covers("STREAM-4")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_stream_finishes_and_the_status_is_0(
    program: Program, workers: int, number: signal.Signals
) -> None:
    server, port = start(program, workers, 0.0, 10.0)
    connection, response = open_stream(port, "/stream")
    server.send_signal(number)
    rest = response.read().decode()
    connection.close()
    assert rest.rstrip().endswith("data: 14")
    assert server.wait(30) == 0
    assert server.stdout is not None
    assert server.stdout.read() == "closed\n" * workers


@pytest.mark.covers("STREAM-4")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_lame_duck_serves_while_readiness_says_no(
    program: Program, workers: int, eventually: Callable[..., None]
) -> None:
    server, port = start(program, workers, 4.0, 5.0)
    assert get(port, "/readyz")[0] == 200
    server.send_signal(signal.SIGTERM)
    eventually(lambda: get(port, "/readyz")[0] == 503)
    assert get(port, "/pid")[0] == 200
    assert server.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        get(port, "/pid")


@pytest.mark.parametrize("workers", [1, 2])
def test_new_connections_are_refused_while_streams_finish(
    program: Program, workers: int, eventually: Callable[..., None]
) -> None:
    server, port = start(program, workers, 0.0, 60.0)
    connection, response = open_stream(port, "/endless")
    server.send_signal(signal.SIGTERM)

    def refused() -> bool:
        try:
            get(port, "/pid", timeout=0.5)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    eventually(refused)
    assert response.readline()
    server.send_signal(signal.SIGTERM)  # and now
    assert server.wait(30) == 0
    connection.close()


@pytest.mark.covers("STREAM-4")
def test_a_stream_without_end_is_cut_after_the_grace_period(
    program: Program,
) -> None:
    server, port = start(program, 1, 0.0, 0.5)
    connection, _ = open_stream(port, "/endless")
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_it_now(
    program: Program, workers: int, eventually: Callable[..., None]
) -> None:
    server, port = start(program, workers, 60.0, 60.0)
    connection, _ = open_stream(port, "/endless")
    server.send_signal(signal.SIGTERM)
    eventually(lambda: get(port, "/readyz")[0] == 503)
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    connection.close()


@pytest.mark.covers("STREAM-4")
def test_a_killed_worker_is_replaced(program: Program, eventually: Callable[..., None]) -> None:
    server, port = start(program, 2, 0.0, 5.0)
    victim = int(get(port, "/pid")[1])
    os.kill(victim, signal.SIGKILL)
    assert server.stdout is not None
    assert server.stdout.readline() == f"ready {port}\n"
    assert get(port, "/pid")[0] == 200
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0


def test_workers_end_with_their_supervisor(
    program: Program,
    eventually: Callable[..., None],
    is_running: Callable[[int], bool],
) -> None:
    server, port = start(program, 2, 0.0, 5.0)
    worker = int(get(port, "/pid")[1])
    server.kill()
    eventually(lambda: not is_running(worker))
