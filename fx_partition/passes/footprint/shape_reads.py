"""List the tensor arguments of which an operator reads only sizes, strides, dtype and device, and no element.

``aten._assert_tensor_metadata(weight)``, which torch.export writes before each cast, brings no byte of the weight into
a cache, and neither does ``zeros_like(weight)``. A test checks each entry with memory that is protected against reads:
an operator that reads it crashes its process (tests/passes/footprint/test_shape_reads.py).
"""

from __future__ import annotations

from typing import Any

from ..capture.operators import overload_of, schema_of

# {operator: arguments}; a name has an overload where other overloads read the argument.
SHAPE_ONLY: dict[str, frozenset[str]] = {
    name: frozenset(arguments)
    for arguments, names in (
        # Questions about a tensor, and checks of the answers.
        (
            ("self", "a"),
            ("_assert_tensor_metadata", "_shape_as_tensor", "dim", "is_contiguous", "numel", "size", "stride",
             "storage_offset", "sym_is_contiguous", "sym_numel", "sym_size", "sym_storage_offset", "sym_stride"),
        ),
        (("self", "other", "tensor"), ("is_same_size", "is_set_to", "result_type")),
        # New tensors with the metadata of another.
        (
            ("self",),
            ("bernoulli.p", "empty_like", "fill", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones",
             "new_zeros", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"),
        ),
        (("the_template",), ("resize_as_",)),
        # Views whose schema does not say so.
        (("self",), ("_unsafe_view", "lift", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")),
    )
    for name in (f"aten::{name}" for name in names)
}  # fmt: skip


def reads_elements(func: Any, argument: str) -> bool:
    """Whether an operator reads the elements of the tensor at ``argument``.

    Example::

        >>> reads_elements(torch.ops.aten.zeros_like.default, "self")
        False
    """
    overload = f"{schema_of(func).name}.{overload_of(func)}"
    shape_only = SHAPE_ONLY.get(schema_of(func).name) or SHAPE_ONLY.get(overload) or frozenset()
    return not func.is_view and argument not in shape_only
