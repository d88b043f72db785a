"""Replay of a log: versions rebuilt from their manifests, audited, or made under another rule.

Import each from its own module: who audits or serves has no use for what folds again.
"""
