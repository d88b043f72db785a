import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_stream.codec import Layout
from llmos_stream.codec.layout import MAX_NUMEL
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Fragment, TensorKind, TensorSpec
from tests.codec.samples import generator, normal


def _named() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "scale": torch.tensor(0.5, dtype=torch.float64),
        "none": torch.zeros(0, 4),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    }


def test_of_keeps_names_shapes_dtypes_and_order() -> None:
    layout = Layout.of(_named())
    assert layout.tensors == (
        TensorSpec("weight", (2, 3), "float32"),
        TensorSpec("scale", (), "float64"),
        TensorSpec("none", (0, 4), "float32"),
        TensorSpec("half", (2,), "bfloat16"),
    )
    assert layout.numel == 9


def test_of_puts_buffers_last() -> None:
    layout = Layout.of(_named(), ["scale", "weight"])
    assert layout.tensors == (
        TensorSpec("none", (0, 4), "float32"),
        TensorSpec("half", (2,), "bfloat16"),
        TensorSpec("weight", (2, 3), "float32", TensorKind.BUFFER),
        TensorSpec("scale", (), "float64", TensorKind.BUFFER),
    )
    assert (layout.numel, layout.parameters) == (9, 2)
    assert layout.buffers == layout.tensors[2:]
    assert layout.flatten(_named()).tolist() == [1.5, -2.0, 0, 1, 2, 3, 4, 5, 0.5]
    assert Layout.from_specs([spec.row for spec in layout.tensors]) == layout  # type: ignore[misc]
    text = (
        b'[["none",[0,4],"float32"],["half",[2],"bfloat16"],["weight",[2,3],"float32","buffer"],'
        b'["scale",[],"float64","buffer"]]'
    )
    assert layout.digest == hashlib.sha256(text).digest()
    assert layout.has_tensors_of(Layout.of(_named()))
    assert not layout.has_tensors_of(Layout.of({"weight": torch.zeros(2, 3)}))


@pytest.mark.parametrize(
    "specs",
    [
        [("a", (1,), "float32", "buffer"), ("b", (1,), "float32")],
        [("a", (1,), "float32", "gradient")],
        [("a", (1,), "float32", "buffer", "more")],
    ],
)
def test_kinds_from_outside_that_make_no_sense(specs: list[tuple[str, tuple[int, ...], str]]) -> None:
    with pytest.raises(Rejected) as caught:
        Layout.from_specs(specs)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.WRONG_LAYOUT


def test_digest_is_that_of_the_canonical_json() -> None:
    text = b'[["weight",[2,3],"float32"],["scale",[],"float64"],["none",[0,4],"float32"],["half",[2],"bfloat16"]]'
    assert Layout.of(_named()).digest == hashlib.sha256(text).digest()
    assert Layout.of({"ä": torch.zeros(1)}).digest == hashlib.sha256(b'[["\\u00e4",[1],"float32"]]').digest()
    assert Layout(()).digest == hashlib.sha256(b"[]").digest()


@pytest.mark.parametrize(
    "other",
    [
        TensorSpec("b", (2, 3), "float32"),
        TensorSpec("a", (3, 2), "float32"),
        TensorSpec("a", (6,), "float32"),
        TensorSpec("a", (2, 3), "float16"),
    ],
)
def test_digest_tells_layouts_apart(other: TensorSpec) -> None:
    assert Layout((other,)).digest != Layout((TensorSpec("a", (2, 3), "float32"),)).digest


def test_order_matters_to_the_digest() -> None:
    named = _named()
    assert Layout.of(dict(reversed(named.items()))).digest != Layout.of(named).digest


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_of_refuses_what_is_not_averaged_and_names_it(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="num_batches"):
        Layout.of({"weight": torch.zeros(2), "num_batches": torch.zeros(2, dtype=dtype)})


def test_flatten_lays_tensors_end_to_end() -> None:
    flat = Layout.of(_named()).flatten(_named())
    assert flat.dtype == torch.float32
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 0.5, 1.5, -2.0]


def test_unflatten_undoes_flatten_with_the_dtypes_of_the_layout() -> None:
    named = _named()
    layout = Layout.of(named)
    back = layout.unflatten(layout.flatten(named))
    assert list(back) == list(named)
    for name, tensor in named.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_unflatten_gives_views_of_float32() -> None:
    layout = Layout.of(_named())
    flat = layout.flatten(_named())
    layout.unflatten(flat)["weight"].fill_(7.0)
    assert flat.tolist() == [7, 7, 7, 7, 7, 7, 0.5, 1.5, -2.0]


def test_flatten_fills_out_and_copies() -> None:
    named = {"a": normal(4).requires_grad_(), "b": normal(6).view(2, 3).t()}
    layout = Layout.of(named)
    out = torch.empty(10)
    assert layout.flatten(named, out) is out
    assert not out.requires_grad
    assert torch.equal(out[4:].view(3, 2), named["b"])
    out.zero_()
    assert named["a"].abs().sum() > 0


def test_flatten_takes_any_floating_dtype() -> None:
    layout = Layout((TensorSpec("a", (2,), "bfloat16"),))
    assert layout.flatten({"a": torch.tensor([1.0, 1e-8], dtype=torch.float64)}).tolist() == [1.0, pytest.approx(1e-8)]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": torch.zeros(2)}, "'b' is missing"),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, "'c' is not in"),
        ({"a": torch.zeros(1, 2), "b": torch.zeros(1)}, "'a'"),
        ({"a": torch.zeros(2, dtype=torch.int32), "b": torch.zeros(1)}, "'a'"),
    ],
)
def test_flatten_refuses_other_tensors(named: dict[str, torch.Tensor], message: str) -> None:
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match=message):
        layout.flatten(named)


@pytest.mark.parametrize(
    "flat", [torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2, 1), torch.zeros(4)[::2]]
)
def test_only_flat_vectors_of_the_right_length(flat: torch.Tensor) -> None:
    layout = Layout.of({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="flat vector"):
        layout.unflatten(flat)
    with pytest.raises(ValueError, match="flat vector"):
        layout.flatten({"a": torch.zeros(2)}, flat)


def test_from_specs_takes_what_a_parser_returns() -> None:
    arrived: object = [["a", [2, 3], "float32"], ("b", (), "float16")]
    layout = Layout.from_specs(arrived)  # type: ignore[arg-type]
    assert layout == Layout((TensorSpec("a", (2, 3), "float32"), TensorSpec("b", (), "float16")))
    assert layout.numel == 7


@pytest.mark.parametrize(
    "specs",
    [
        [("a", (1,), "float32"), ("a", (2,), "float32")],
        [("a", (1,), "int64")],
        [("a", (1,), "__import__")],
        [("a", (1,), ["float32"])],
        [("a", (-1,), "float32")],
        [("a", (True,), "float32")],
        [("a", (1.0,), "float32")],
        [("a", (1 << 20, 1 << 20), "float32")],
        [("a", (0, 1 << 62), "float32")],
        [("a", (0, 1 << 30, 1 << 30), "float32")],
        [("a", (MAX_NUMEL,), "float32"), ("b", (1,), "float32")],
        [("a", (1,) * 65, "float32")],
        [("a", 3, "float32")],
        [("a", "ab", "float32")],
        [("a", (1,))],
        [("", (1,), "float32")],
        [("a" * 1025, (1,), "float32")],
        [(b"a", (1,), "float32")],
        [([], (1,), "float32")],
        [None],
        None,
        7,
    ],
)
def test_from_specs_rejects_nonsense(specs: object) -> None:
    with pytest.raises(Rejected) as caught:
        Layout.from_specs(specs)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.WRONG_LAYOUT
    assert len(str(caught.value)) < 1500


def test_layout_itself_raises_value_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        Layout((TensorSpec("a", (1,), "float32"), TensorSpec("a", (1,), "float32")))


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        ),
        max_size=6,
    )
)
def test_any_layout_round_trips(shapes: dict[str, tuple[list[int], torch.dtype]]) -> None:
    named = {
        name: torch.randn(shape, generator=generator()).to(torch.float16).to(dtype)
        for name, (shape, dtype) in shapes.items()
    }
    layout = Layout.of(named)
    assert Layout.from_specs(layout.tensors).digest == layout.digest
    back = layout.unflatten(layout.flatten(named))
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in named.items())


def test_one_fragment_is_the_whole_layout() -> None:
    layout = Layout.of(_named(), ["scale"])
    assert layout.fragments(1) == (Fragment(0, 9, layout.digest, layout.buffers),)


def test_fragments_are_whole_tensors_of_nearly_as_many_parameters_each() -> None:
    sizes = [5, 1, 4, 2, 3, 5]
    layout = Layout.of({f"w{place}": torch.zeros(size) for place, size in enumerate(sizes)})
    assert [part.range for part in layout.fragments(2)] == [(0, 10), (10, 20)]
    assert [part.range for part in layout.fragments(4)] == [(0, 5), (5, 10), (10, 15), (15, 20)]
    thirds = layout.fragments(3)
    assert [part.range for part in thirds] == [(0, 6), (6, 12), (12, 20)]
    assert [part.digest for part in thirds] == [
        Layout(layout.tensors[first:last]).digest for first, last in ((0, 2), (2, 4), (4, 6))
    ]


def test_a_tensor_as_large_as_all_others_leaves_something_for_every_fragment() -> None:
    layout = Layout.of({"large": torch.zeros(90), "a": torch.zeros(1), "b": torch.zeros(1)})
    assert [part.range for part in layout.fragments(3)] == [(0, 90), (90, 91), (91, 92)]
    layout = Layout.of({"a": torch.zeros(1), "b": torch.zeros(1), "large": torch.zeros(90)})
    assert [part.range for part in layout.fragments(3)] == [(0, 1), (1, 2), (2, 92)]


def test_buffers_travel_with_the_last_fragment() -> None:
    layout = Layout.of({**_named(), "more": torch.zeros(3)}, ["scale", "half"])
    first, last = layout.fragments(2)
    assert (first, last) == (
        Fragment(0, 6, Layout(layout.tensors[:1]).digest),
        Fragment(6, 12, Layout(layout.tensors[1:]).digest, layout.buffers),
    )
    assert [spec.name for spec in last.buffers] == ["scale", "half"]


def test_there_are_no_more_fragments_than_tensors_of_parameters() -> None:
    layout = Layout.of(_named(), ["half"])
    assert len(layout.fragments(2)) == 2
    with pytest.raises(ValueError, match="3 fragments of a model that has 2 tensors"):
        layout.fragments(3)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 3))
def test_fragments_hold_every_tensor_once(sizes: list[int], count: int, buffers: int) -> None:
    named = {f"w{place}": torch.zeros(size) for place, size in enumerate(sizes)}
    extra = {f"b{place}": torch.zeros(2) for place in range(buffers)}
    layout = Layout.of({**named, **extra}, list(extra))
    try:
        parts = layout.fragments(count)
    except ValueError:
        assert count > max(1, sum(size > 0 for size in sizes))
        return
    assert len(parts) == count
    assert [part.begin for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].range[1] == layout.numel
    assert parts[-1].buffers == layout.buffers
    assert count == 1 or all(part.numel > sum(spec.numel for spec in part.buffers) for part in parts)
    at, cuts = 0, []
    for part in parts:  # a digest is of the tensors in order, so these are all of them
        last = next(
            last for last in range(at, len(layout.tensors) + 1) if Layout(layout.tensors[at:last]).digest == part.digest
        )
        cuts.append(last)
        at = last
    assert cuts[-1] == len(layout.tensors)
