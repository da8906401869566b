"""Predictions over HTTP, from weights of one cut each, while training goes on."""
