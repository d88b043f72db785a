"""A shadow is a federation of its own, named after the one whose updates it folds."""

_MARK = ".shadow."


def shadow_of(live: str, name: str) -> str:
    """The federation of the shadow `name`."""
    return f"{live}{_MARK}{name}"


def live_of(federation: str) -> str | None:
    """The federation whose updates a shadow folds; None for one that is no shadow."""
    live, mark, _ = federation.rpartition(_MARK)
    return live if mark else None
