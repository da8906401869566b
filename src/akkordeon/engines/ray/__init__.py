"""The Ray engine: a row of gates over many processes and machines.

A Ray actor is a *host*: it runs the threads engine's dispatcher and holds one or more of our actors.
Messages inside a host stay in its process; between hosts they are Ray calls to one synchronous method,
which Ray keeps in order::

    user's process                 home (a host on the same node)          hosts, anywhere
    ┌──────────────┐  spawn, send   ┌──────────────────────┐   enqueue    ┌──────────────┐
    │ Session      │ ─────────────▶ │ sentinels, readers   │ ◀──────────▶ │ gate/0       │
    │ Ray (engine) │ ◀───────────── │                      │ ◀─────────┐  ├──────────────┤
    └──────────────┘  collect:      └──────────────────────┘           └▶ │ gate/1 gate/2│
                      reports                                             └──────────────┘

Sentinels and their data live in the *home*, which is pinned to the node of the user's process and dies
with it. A source that cannot be shipped (a generator, an open file) stays in the user's process: its
reader runs there and its batches go to the home.

A network that runs on its own has a *keeper* besides, a Ray actor that knows who is where: sessions join
through it, each with a home of its own, and leave.

    wire.py        anything as bytes and buffers
    placement.py   which actors share a host
    cluster.py     reaching a cluster, and why it cannot be reached
    nodes.py       Ray's own processes on this machine
    hosts.py       what runs in a Ray actor
    engine.py      the engine: the user's side of it
    snapshots.py   the weights of such a network, as its keeper knows them
    keeper.py      the keeper of a network that runs on its own
    networks.py    founding, joining, looking at and ending such networks
"""

from akkordeon.engines.ray.engine import Ray

__all__ = ["Ray"]
