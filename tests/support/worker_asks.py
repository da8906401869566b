"""What Ray runs for each worker of the tests' cluster: asks them for a fork that is the worker, and ends."""

import json
import os
import socket
import sys
from pathlib import Path

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as to_tests:
        to_tests.connect(str(Path(__file__).with_name("socket")))
        to_tests.sendall(json.dumps([sys.argv, sys.path[1:], os.getcwd(), {**os.environ}]).encode())
        to_tests.shutdown(socket.SHUT_WR)
        to_tests.recv(1)  # until it has begun
