"""Schedules compared in a simulated world."""
