"""Writes a record while a session runs."""

from __future__ import annotations

import gzip
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from akkordeon.core.actor import Actor, Effect
from akkordeon.core.checks import require_path
from akkordeon.core.errors import RecordError, explain
from akkordeon.core.messages import Message
from akkordeon.core.recovery.messages import Restarted
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.session.records import file_format
from akkordeon.session.records.digest import Digest, data_fingerprint, fingerprint, key_of

__all__ = ["Recorder"]

FLUSH_EVERY = 100
"""Lines that a run that is killed may cost."""


class Recorder:
    """Writes a record while a session runs; see :class:`akkordeon.engines.base.Listener`.

    What keeps it from writing ends the record, which is logged, and harms nobody else.

    Args:
        path: of the file; an existing one is replaced.
        network: what is run.
        seed: of the session.
        task: whatever is needed to make network and sentinels again; kept as it is.

    Attributes:
        failure: why the record breaks off, in a sentence, if it does.

    Raises:
        RecordError: the file cannot be written.
    """

    def __init__(
        self, path: str | Path, network: Network | Downpour, seed: int, task: Mapping[str, Any] | None = None
    ) -> None:
        require_path("a record", path, error=RecordError)
        self.failure: str | None = None
        self._path = path
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self._withdrawn: set[str] = set()
        self._lines = 0
        self._digest = file_format.LineDigest()
        self._over = False
        header = {**file_format.versions(), "seed": seed, "network": fingerprint(network), "task": task}
        try:
            self._file = gzip.open(path, "wb", compresslevel=3)  # noqa: SIM115 - until close
            self._file.write(self._digest.add(file_format.encoded(header)))
            self._file.flush()
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {error.strerror or error}") from error

    def attached(self, address: str, name: str, recipe: Sentinel, epochs_before: int = 0) -> None:
        """A sentinel joins; of its data so many epochs were read by others before."""
        what: dict[str, Any] = {"name": name, "role": recipe.role}
        try:
            if isinstance(recipe, Evaluation) and recipe.role.keeps:
                what["keeps"] = {name: getattr(recipe, name) for name in file_format.RHYTHM}
            elif recipe.role.answers:
                what["inputs"] = file_format.packed(recipe.batches)
                what["batch_size"], what["in_flight"] = recipe.batch_size, recipe.in_flight
            else:
                what["data"] = data_fingerprint(recipe.batches)
            if isinstance(recipe, Training) and recipe.dealt_to:
                what["dealt_to"] = recipe.dealt_to
            if epochs_before:
                what["epochs_before"] = epochs_before
        except Exception as error:
            self._give_up(error)
        self._write([next(self._serial), "attach", address, what])

    def withdrawn(self, address: str) -> None:
        """An actor goes before it has done anything; its going is not recorded."""
        self._withdrawn.add(address)

    def joined(self, replica: int) -> None:
        """A replica joins a Downpour."""
        self._write([next(self._serial), "replica", replica])

    def made(self, gate: str) -> None:
        """A gate is made that is to be part of the row."""
        self._write([next(self._serial), "gate", gate])

    def rearranged(self, row: Sequence[str]) -> None:
        """The row has other gates."""
        self._write([next(self._serial), "row", list(row)])

    def outside(self, to: str, message: Message) -> None:
        """The session sends a message."""
        if isinstance(message, Restarted):
            self._give_up(RecordError(f"{message.gate} was made anew, which no replay could follow"))
        self._write([next(self._serial), "outside", to, file_format.fields_of(message)])

    def listen(self, actor: Actor, message: Message, now_s: float) -> Iterator[Effect]:
        """An actor handles a message."""
        if self._over or actor.address in self._withdrawn:
            yield from actor.receive(message, now_s)
            return
        serial, digest = next(self._serial), Digest()
        try:
            for effect in actor.receive(message, now_s):
                self._take_in(digest, effect)
                yield effect
        except GeneratorExit:  # after Stop nobody asks for more
            raise
        except BaseException as error:
            self._take_in(digest, error)
            raise
        finally:
            self._write([serial, "handle", actor.address, key_of(message), now_s, str(digest)])

    def _take_in(self, digest: Digest, value: Any) -> None:
        try:
            digest.add(value)
        except Exception as error:  # something that travels, but has no bits to look at
            self._give_up(error)

    def _write(self, line: Any) -> None:
        try:
            text = file_format.encoded(line)
            with self._lock:
                if self._over:
                    return
                self._file.write(self._digest.add(text))
                self._lines += 1
                if self._lines % FLUSH_EVERY == 0:
                    self._file.flush()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Write nothing more; the run goes on."""
        with self._lock:
            if self._over:
                return
            self._over = True
            with suppress(OSError):
                self._file.close()
        self.failure = f"the record {self._path} breaks off, and the run goes on without: {explain(error)}"
        logging.getLogger(__name__).error("%s", self.failure)

    def close(self) -> None:
        """End the record; what is still handled is not in it."""
        try:
            with self._lock:
                if self._over:
                    return
                self._file.write(file_format.encoded({"lines": self._lines, "digest": str(self._digest)}))
                self._file.close()
                self._over = True
        except OSError as error:
            self._give_up(error)
