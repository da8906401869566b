"""A browser without a window: reads the events of a page, or opens them and reads nothing.

python benchmarks/page/browser.py HOST PORT [--stuck]
"""

from __future__ import annotations

import argparse
import socket

REQUEST = "GET /events HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--stuck", action="store_true", help="read nothing")
    given = parser.parse_args()
    with socket.create_connection((given.host, given.port)) as connection:
        connection.sendall(REQUEST.format(host=given.host, port=given.port).encode())
        print("connected", flush=True)
        if given.stuck:
            input()
        while connection.recv(2**16):
            pass


if __name__ == "__main__":
    main()
