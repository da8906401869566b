"""What is said when an actor is gone and another takes its place."""
