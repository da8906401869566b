"""Asks a server at a fixed rate, whether it answers or not, and tells what came of it.

python benchmarks/serving/client.py URL [--rate R] [--seconds S] [--connections N]

Request i is due at i/R; its latency counts from then, also where it had to wait for a free connection, so
that a server that stalls does not slow its clients down unseen. With --rate 0 every connection asks again as
soon as it was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from urllib.parse import urlsplit


class Asker:
    """So many connections that stay open, and what was answered on them."""

    def __init__(self, url: str, inputs: list[list[float]]) -> None:
        address = urlsplit(url)
        self.host, self.port = address.hostname or "", address.port or 80
        body = json.dumps({"inputs": inputs}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.codes: Counter[int] = Counter()
        self.latencies_s: list[float] = []

    async def work(self, due: asyncio.Queue[float | None]) -> None:
        """Ask for all that is due, on one connection."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        while (due_s := await due.get()) is not None:
            code = await self.ask(reader, writer)
            self.codes[code] += 1
            if code == 200:
                self.latencies_s.append(time.monotonic() - due_s)
        writer.close()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(self.request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        return int(head.split(b" ", 2)[1])


async def open_loop(asker: Asker, rate: float, seconds: float, connections: int) -> float:
    """Ask at a fixed rate; gives the seconds until all was answered."""
    due: asyncio.Queue[float | None] = asyncio.Queue()
    workers = [asyncio.create_task(asker.work(due)) for _ in range(connections)]
    began_s = time.monotonic()
    for i in range(round(rate * seconds)):
        due_s = began_s + i / rate
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        due.put_nowait(due_s)
    for _ in workers:
        due.put_nowait(None)
    await asyncio.gather(*workers)
    return time.monotonic() - began_s


async def closed_loop(asker: Asker, seconds: float, connections: int) -> float:
    """Ask again and again on all connections; gives the seconds that took."""
    began_s = time.monotonic()

    async def again_and_again() -> None:
        reader, writer = await asyncio.open_connection(asker.host, asker.port)
        while (asked_s := time.monotonic()) < began_s + seconds:
            code = await asker.ask(reader, writer)
            asker.codes[code] += 1
            if code == 200:
                asker.latencies_s.append(time.monotonic() - asked_s)
        writer.close()

    await asyncio.gather(*(again_and_again() for _ in range(connections)))
    return time.monotonic() - began_s


def quantile_ms(latencies_s: list[float], share: float) -> float:
    ordered = sorted(latencies_s)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument(
        "--rate", type=float, default=200.0, help="requests per second; 0 as fast as answered"
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    asker = Asker(options.url, [[0.5] * options.features])
    if options.rate:
        loop = open_loop(asker, options.rate, options.seconds, options.connections)
    else:
        loop = closed_loop(asker, options.seconds, options.connections)
    took_s = asyncio.run(loop)
    found = {
        "requests": sum(asker.codes.values()),
        "codes": {str(code): count for code, count in sorted(asker.codes.items())},
        "answered_per_s": asker.codes[200] / took_s,
        "p50_ms": quantile_ms(asker.latencies_s, 0.5),
        "p99_ms": quantile_ms(asker.latencies_s, 0.99),
        "max_ms": quantile_ms(asker.latencies_s, 1.0),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
