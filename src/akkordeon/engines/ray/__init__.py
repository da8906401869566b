"""The Ray engine: a row of gates over many processes and machines.

A Ray actor is a *host*: it runs the threads engine's dispatcher and holds one or more of our actors.
Messages inside a host stay in its process; between hosts they are Ray calls to one synchronous method,
which Ray keeps in order::

    driver (user's process)        session host (same node)                hosts, anywhere
    ┌──────────────┐  spawn, send   ┌──────────────────────┐   enqueue    ┌──────────────┐
    │ Session      │ ─────────────▶ │ sentinels, readers   │ ◀──────────▶ │ gate/0       │
    │ Ray (engine) │ ◀───────────── │                      │ ◀─────────┐  ├──────────────┤
    └──────────────┘  collect:      └──────────────────────┘           └▶ │ gate/1 gate/2│
                      reports                                             └──────────────┘

Sentinels and their data live in the *session host*, which is pinned to the node of the driver and dies with
it. A source that cannot be shipped (a generator, an open file) stays in the driver: its reader runs there and
its batches go to the session host.

A network that runs on its own has a *registrar* besides, a Ray actor that knows who is where: sessions join
through it, each with a session host of its own, and leave.

    serialization.py   anything as bytes and buffers
    placement.py       which actors share a host
    cluster/           reaching Ray, its own processes on this machine, and waits for it that end
    hosts.py           what runs in a Ray actor
    host_pool.py       hosts made, actors shipped to them, and the routes between them
    engine.py          the engine: the driver's side of it
    snapshots.py       the weights of a network that runs on its own, as its registrar knows them
    network_info.py    what the registrar tells of it
    registrar.py       the registrar
    restarts.py        gates of such a network, made anew
    surgery/           gates that come into its row, or leave it
    members.py         the sessions, sentinels and gates that it knows
    detached.py        starting, looking at and stopping such networks
    joined.py          the engine of a session that joined one
"""

from akkordeon.engines.ray.engine import Ray

__all__ = ["Ray"]
