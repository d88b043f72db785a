"""Asynchronous federated learning as an event log."""

__version__ = "0.1.0"
