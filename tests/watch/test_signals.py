"""Signals are counted, and only where Python has any."""

from __future__ import annotations

import signal
import threading

from akkordeon.watch.signals import SignalCounter


def test_signals_are_counted_until_the_end_and_the_first_is_known():
    before = signal.getsignal(signal.SIGTERM)
    with SignalCounter() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (signals.count, signals.first) == (2, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_nothing_is_counted_and_nothing_changed():
    def enter() -> None:
        with SignalCounter():
            found.append(signal.getsignal(signal.SIGTERM))

    found, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [before]
