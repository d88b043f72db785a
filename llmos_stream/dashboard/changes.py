"""The difference between two JSON values, for a page that has the first and wants the second.

    ["v", value]                        another value
    ["d", [[key, change], ...]]         an object of the same keys: changes of some values
    ["s", keep, items]                  a list: the first `keep` items stay, these follow
    ["l", drop, changes, items]         a list of objects: the first `drop` go, some of the rest change, as
                                        [[index, change], ...], and items follow at the end

`static/patch.js` applies them in the browser.
"""

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

Json = Any
Change = list[Any]
_MAX_DROPPED = 64


def difference(old: Json, new: Json) -> Change | None:
    """Return the change that turns `old` into `new`; None where they are equal."""
    if old == new and type(old) is type(new):
        return None
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        return ["d", _members(old, new)]
    if isinstance(old, list) and isinstance(new, list) and old and new:
        if isinstance(old[0], Mapping) and isinstance(new[0], Mapping):
            return _of_objects(old, new)
        keep = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
        if keep:
            return ["s", keep, new[keep:]]
    return ["v", new]


def _members(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[Json]:
    changes = [(key, difference(old[key], value)) for key, value in new.items()]
    return [[key, change] for key, change in changes if change is not None]


def _of_objects(old: list[Json], new: list[Json]) -> Change:
    drop = next((k for k in range(min(len(old), _MAX_DROPPED)) if _same(old[k], new[0])), 0)
    stays = old[drop:]
    if len(stays) > len(new):
        return ["v", new]
    changes = [(index, difference(was, new[index])) for index, was in enumerate(stays)]
    return ["l", drop, [[index, change] for index, change in changes if change is not None], new[len(stays) :]]


def _same(old: Json, new: Json) -> bool:
    """Whether two objects of a list describe the same thing, by their first field."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return False
    key = next(iter(old), None)
    return key is not None and key in new and old[key] == new[key]
