"""Who feeds a network: trainers, evaluators, readers, and their recipes."""
