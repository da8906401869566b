"""What servers of predictions and of the page share: a socket, who may ask, and how much."""
