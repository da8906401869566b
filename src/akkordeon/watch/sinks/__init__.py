"""Where the numbers of a session go, beside the terminal: each is a watcher for ``session.subscribe``."""
