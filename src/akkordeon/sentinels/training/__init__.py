"""The sentinel that trains: batches in flight, their losses, epochs, and what was refused."""
