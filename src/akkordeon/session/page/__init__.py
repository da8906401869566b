"""The page: a session in a browser, and what may be asked of it there."""
