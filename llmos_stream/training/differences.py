"""How two layouts differ, in words for whoever has to make them the same."""

from llmos_stream.codec import Layout
from llmos_stream.types import TensorSpec


def difference(mine: Layout, theirs: Layout) -> str:
    """The first difference between this task's layout and the federation's; names that only a prefix tells apart."""
    if mine.has_tensors_of(theirs):
        kinds = {spec.name: spec.kind for spec in theirs.tensors}
        if any(kinds[spec.name] is not spec.kind for spec in mine.tensors):
            return (
                "the log was begun by an older version, which treated buffers as parameters: "
                "start a new federation from its newest version"
            )
        return "another order"
    here, there = ({spec.name: spec for spec in layout.tensors} for layout in (mine, theirs))
    for longer, shorter, whose in ((mine, theirs, "here"), (theirs, mine, "there")):
        if (prefix := _prefix(longer, shorter)) is not None:
            return f"all names begin with {prefix!r} {whose}: hand in the model inside that one"
    name = next(name for name in (*here, *there) if here.get(name) != there.get(name))
    return f"{name} is {_said(here.get(name))} here and {_said(there.get(name))} there"


def _prefix(longer: Layout, shorter: Layout) -> str | None:
    """What the names of `longer` have before those of `shorter`, where that is the only difference."""
    if len(longer.tensors) != len(shorter.tensors) or not shorter.tensors:
        return None
    prefix = longer.tensors[0].name.removesuffix(shorter.tensors[0].name)
    named = [spec._replace(name=prefix + spec.name) for spec in shorter.tensors]
    return prefix if prefix and tuple(named) == longer.tensors else None


def _said(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else f"{spec.dtype} {list(spec.shape)}"
