"""Gates that come and go in a network that runs on its own, where its registrar is."""
