"""The history of a federation, folded from its events. Pure: no clock, no terminal, no HTML."""
