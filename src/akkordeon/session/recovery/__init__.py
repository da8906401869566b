"""How a run is kept, and taken up again."""
