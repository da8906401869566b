"""The protocol: actors, messages, payloads, errors, reports. No thread, clock or socket."""
