"""A program and one road as a script that stands alone."""

from __future__ import annotations

from .check import check
from .program import BATCHES, PREAMBLE, Program
from .shuffle import LATEST

_HEAD = """import warnings

import torch
import torch.nn.functional as F
from torch import nn

import fx_partition
from fx_partition.backends.lowering import torch_internals

warnings.simplefilter("ignore")
torch.set_num_threads(1)
"""

_SHOW = '''

def show(name, function, model):
    """Print the results of two calls, and the states."""
    for call, n in enumerate(BATCHES):
        args, kwargs = make_inputs(n, 1000 * (call + 1))
        torch.manual_seed(call)
        result = function(*args, **kwargs)
        for kind, values in (("result", result), ("input", (args, kwargs)), ("state", model.state_dict())):
            for i, t in enumerate(torch.utils._pytree.tree_leaves(values)):
                if isinstance(t, torch.Tensor):
                    weights = torch.arange(1, 1 + t.numel()).reshape(t.shape).cos()
                    checksum = (t.detach().double() * weights).sum().item()
                    print(f"{name:6} call {call} {kind} {i}: {t.dtype} {tuple(t.shape)} {t.stride()} {checksum:.9g}")
                else:
                    print(f"{name:6} call {call} {kind} {i}: {t}")


OPTIONS = %(options)r
torch.set_grad_enabled(%(grad)r)
model = Model().train(%(train)r)
show("eager", model, model)
'''

_DYNAMIC = '''
BATCH = torch.export.Dim("batch", min=2, max=64)


def dynamic_dims():
    """Which dimensions of each input go with the batch."""
    values = []
    for n in (5, 7):
        args, kwargs = make_inputs(n, 0)
        values.append({**dict(zip(%(plain)r, args)), **kwargs})
    sizes = {name: (getattr(a, "shape", ()), getattr(values[1][name], "shape", ())) for name, a in values[0].items()}
    return {name: [d for d in range(len(a)) if a[d] != b[d]] for name, (a, b) in sizes.items()}


SHAPES = {name: {d: BATCH for d in dims} or None for name, dims in dynamic_dims().items()}
'''

_ROADS = {
    "export": """
model = Model().train(%(train)r)
args, kwargs = make_inputs(BATCHES[0], 1000)
exported = torch.export.export(model, args, kwargs, dynamic_shapes=%(shapes)s)
cut = fx_partition.split(exported, **OPTIONS)
print(cut.plan.num_partitions, "partitions:", [p.nodes for p in cut.plan.partitions])
show("split", cut, model)
""",
    "symbolic_trace": """
model = Model().train(%(train)r)
args, kwargs = make_inputs(BATCHES[0], 1000)
inputs = {**dict(zip(%(plain)r, args)), **kwargs}
shapes = {name: dims for name, dims in (%(shapes)s or {}).items() if dims}
traced = torch.fx.symbolic_trace(model)
cut = fx_partition.split(traced, example_inputs=inputs, dynamic_shapes=shapes or None, **OPTIONS)
print(cut.plan.num_partitions, "partitions:", [p.nodes for p in cut.plan.partitions])
show("split", cut, model)
""",
    "backend": """
# Stages run their graphs as they are (%(stages)r in tests/fuzz/roads.py); without this line inductor compiles them.
torch_internals.compile_fx = lambda gm, inputs, config_patches=None: gm.forward
torch._dynamo.config.capture_scalar_outputs = torch._dynamo.config.capture_dynamic_output_shape_ops = %(data_sizes)r
model = Model().train(%(train)r)
compiled = torch.compile(model, backend="l2partition", options=OPTIONS, dynamic=%(dynamic)s)
show("ours", compiled, model)
""",
}
_ROADS["pipeline"] = """
model = Model().train(%(train)r)
args, kwargs = make_inputs(BATCHES[0], 1000)
exported = torch.export.export(model, args, kwargs, dynamic_shapes=%(shapes)s)
with fx_partition.pipeline(exported, **OPTIONS) as pipe:
    show("pipe", pipe, model)
"""
_ROADS["inductor"] = _ROADS["backend"].replace("torch_internals.compile_fx =", "# torch_internals.compile_fx =")


_DRAWN = """
# Partitions drawn at random, in an order that the planner's own rules allow.
from fx_partition.passes.plan import make_plan
from fx_partition.passes.ordering.search import OrderedPlan, SearchStats

drawn = iter(%r)
make_plan.search_order = lambda *_, **__: OrderedPlan(*next(drawn), SearchStats(1, False))
"""


def script(program: Program, road: str, says: str) -> str:
    """A script that prints what eager mode gives and what the road gives.

    Args:
        says: what is wrong; it becomes the script's first comment.
    """
    settings = program.settings
    fill = {
        "options": settings.options,
        "grad": settings.grad,
        "train": settings.train,
        "stages": settings.stages,
        "data_sizes": settings.data_sizes,
        "dynamic": True if settings.dynamic else None,
        "plain": [name for name in program.inputs if name not in program.keywords],
        "shapes": "SHAPES" if settings.dynamic else None,
    }
    batches = BATCHES if settings.dynamic else BATCHES[:1] * 2
    comment = "".join(f"# {line[:200]}".rstrip() + "\n" for line in says.strip().splitlines()[-12:])
    parts = [comment, _HEAD, f"BATCHES = {batches}\n", PREAMBLE]
    parts += ["\n", program.model_text(), "\n", program.inputs_text()]
    parts += [_SHOW % fill, _DYNAMIC % fill if settings.dynamic else ""]
    if settings.shuffled:
        check(program, (road,))
        parts.append(_DRAWN % list(LATEST))
    parts.append(_ROADS[road] % fill)
    return "".join(parts)
