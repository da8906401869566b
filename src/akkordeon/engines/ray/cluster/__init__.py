"""Ray itself: reaching a cluster, its processes on this machine, and waits for it that end."""
