"""The reference of `static/patch.js`, which applies changes in the browser."""

from llmos_stream.dashboard.changes import Change, Json


def apply(old: Json, change: Change) -> Json:
    """Return `old` with the change applied."""
    match change:
        case ["v", value]:
            return value
        case ["d", members]:
            return {**old, **{key: apply(old[key], inner) for key, inner in members}}
        case ["s", keep, items]:
            return [*old[:keep], *items]
        case ["l", drop, changes, items]:
            stays = list(old[drop:])
            for index, inner in changes:
                stays[index] = apply(stays[index], inner)
            return [*stays, *items]
        case _:
            raise ValueError(f"there is no change {change[:1]}")
