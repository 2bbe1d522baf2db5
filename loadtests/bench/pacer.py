"""An open, constant-rate load: requests leave when they are due, whether or not earlier ones were answered, and
each latency counts from when its request was due. Run as a process of its own:

    python -m loadtests.bench.pacer PORT RATE SECONDS QUESTIONS

prints {"requests", "errors", "p50", "p99", "p99.9", "worst" (ms)}. A request that is due while all connections
wait is sent by the first that is free, and has waited meanwhile. One thread on an epoll takes some 15 µs per
request; `python -m loadtests.bench` shows what it sees of a server that does nothing.
"""

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path

CONNECTIONS = 64
PATIENCE_S = 5.0


def main(port: int, rate: float, seconds: float, questions: Path) -> None:
    gc.disable()
    requests = [request(body) for body in questions.read_bytes().splitlines()]
    connections = [connect(port) for _ in range(CONNECTIONS)]
    idle = deque(connections)
    by_fd = {connection.fileno(): connection for connection in connections}
    due_at: dict[int, float] = {}  # of the request that a connection waits for, by file descriptor
    received: dict[int, bytes] = {}
    latencies: list[float] = []
    errors = 0
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    total = int(rate * seconds)
    sent = 0
    began = time.perf_counter() + 0.05
    deadline = began + seconds + PATIENCE_S
    while len(latencies) + errors < total and (now := time.perf_counter()) < deadline:
        while sent < total and idle and began + sent / rate <= now:
            connection = idle.popleft()
            due_at[connection.fileno()] = began + sent / rate
            connection.send(requests[sent % len(requests)])
            sent += 1
        until_due = began + sent / rate - time.perf_counter() if sent < total and idle else 0.05
        for fd, _ in poll.poll(max(0.0, until_due)):
            piece = by_fd[fd].recv(65536)
            if not piece:
                sys.exit("the server closed a connection")
            content = received.pop(fd, b"") + piece
            if not whole(content):
                received[fd] = content
                continue
            latencies.append(time.perf_counter() - due_at.pop(fd))
            errors += not content.startswith(b"HTTP/1.1 200")
            idle.append(by_fd[fd])
    errors += total - len(latencies)  # never answered
    latencies.sort()
    at = {name: latencies[int(share * len(latencies))] * 1000 for name, share in SHARES.items()}
    print(json.dumps({"requests": total, "errors": errors, **at, "worst": latencies[-1] * 1000}))  # noqa: T201


SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(body: bytes) -> bytes:
    head = "POST /api/v1/price HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return (head % len(body)).encode() + body


def whole(content: bytes) -> bool:
    head, found, body = content.partition(b"\r\n\r\n")
    if not found:
        return False
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
