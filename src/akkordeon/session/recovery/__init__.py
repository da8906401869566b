"""How a run is kept and taken up again, and how what is gone of it comes back."""
