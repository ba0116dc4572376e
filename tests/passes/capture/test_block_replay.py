"""Blocks that repeat are traced once, and the graph is what torch.export alone gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fx_partition.passes.capture import block_replay
from fx_partition.passes.capture.block_replay import Replays, repeated_blocks_once
from fx_partition.passes.capture.capture_model import REPLAYED_RELEASES, capture, export
from fx_partition.passes.capture.graph_hash import fingerprint
from fx_partition.passes.capture.symbolic_sizes import to_expr

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(REPLAYED_RELEASES), reason="blocks are replayed on known releases of torch alone"
)

LAYERS = 7
TOKENS = 12


def plainly(model: nn.Module, args: Any, kwargs: Any, shapes: Any = None) -> torch.export.ExportedProgram:
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def described(program: torch.export.ExportedProgram) -> list[tuple[Any, ...]]:
    """All that is known of each node; which of all tensors share memory too."""
    memories: dict[int, int] = {}

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            memory = value.untyped_storage()
            number = memories.setdefault(memory._cdata, len(memories))
            sizes = (*value.shape, *value.stride(), value.storage_offset(), memory.nbytes())
            return value.dtype, value.device, [*map(to_expr, sizes)], value.requires_grad, number
        return str(value)

    rows: list[tuple[Any, ...]] = []
    for node in program.graph.nodes:
        meta = {key: str(value) for key, value in node.meta.items() if key not in ("val", "from_node")}
        values = [leaf(value) for value in pytree.tree_leaves(node.meta.get("val"))]
        rows.append((node.op, node.name, str(node.target), str(node.args), str(node.kwargs), values, meta))
    return rows


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Replays]]:
    """What has come of each trace."""
    found: list[Replays] = []

    def watched(model: nn.Module) -> Any:
        context = repeated_blocks_once(model)
        replays = context.__enter__()
        found.append(replays)

        class Entered:
            def __enter__(self) -> Replays:
                return replays

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Entered()

    monkeypatch.setattr(block_replay, "repeated_blocks_once", watched)
    yield found


def same_as_plain(model: nn.Module, args: Any, kwargs: Any = None, shapes: Any = None) -> None:
    kwargs = kwargs or {}
    before = [dict(vars(module)) for module in model.modules()]
    mine, plain = export(model, args, kwargs, shapes), plainly(model, args, kwargs, shapes)
    assert [dict(vars(module)) for module in model.modules()] == before
    assert described(mine) == described(plain)
    assert str(mine.graph_signature) == str(plain.graph_signature)
    assert mine.range_constraints == plain.range_constraints
    modules = mine.module(check_guards=False), plain.module(check_guards=False)
    assert fingerprint(modules[0].graph) == fingerprint(modules[1].graph)


# ---- families of transformers

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}  # fmt: skip
DEEP = {**SIZES, "num_hidden_layers": LAYERS}
GQA = {"num_key_value_heads": 2, "head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "experts_implementation": "batched_mm"}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

#: Class, configuration, and whether blocks are written from a template; where not, why.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaForCausalLM", {**DEEP, "num_key_value_heads": 2}, True),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64,
                                 "bos_token_id": 1, "eos_token_id": 2}, True),
    "mamba": ("MambaForCausalLM", {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": LAYERS,
                                   "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, True),
    "bert": ("BertModel", {**DEEP, **CALM}, True),
    "gpt_neox": ("GPTNeoXForCausalLM", DEEP, True),
    "bloom": ("BloomForCausalLM", {"vocab_size": 64, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4}, True),
    "opt": ("OPTForCausalLM", {**DEEP, "ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**DEEP, **GQA, **MOE}, True),
    # its first layer is dense, and the others write in place
    "deepseek_v3": ("DeepseekV3ForCausalLM", {
        **DEEP, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "experts_implementation": "batched_mm"}, False),
    # sliding and full attention in turn
    "gemma2": ("Gemma2ForCausalLM", {**DEEP, **GQA, "sliding_window": 4, "query_pre_attn_scalar": 16}, False),
    "lfm2": ("Lfm2ForCausalLM", {**DEEP, "num_key_value_heads": 2,
                                 "layer_types": (["conv", "full_attention"] * LAYERS)[:LAYERS]}, False),
    # the gate of its experts divides in place
    "mixtral": ("MixtralForCausalLM", {**DEEP, **GQA, "num_local_experts": 4, "num_experts_per_tok": 2,
                                       "experts_implementation": "batched_mm"}, False),
    # each layer computes with its number
    "diffllama": ("DiffLlamaForCausalLM", {**DEEP, "num_key_value_heads": 2}, False),
}  # fmt: skip


def family(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    cls, config, _ = FAMILIES[name]
    found = getattr(transformers, cls)
    torch.manual_seed(0)
    made: nn.Module = found(found.config_class(**config)).eval()
    return made


def tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(1, 64, (2, TOKENS))}


QUICK = ("bert", "opt", "lfm2")


def some_slow(*names: str) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_slow(*FAMILIES))
def test_a_family_is_what_torch_alone_makes_of_it(name: str, seen: list[Replays]) -> None:
    no_cache = {} if name == "bert" else {"use_cache": False}
    same_as_plain(family(name), (), {**tokens(), **no_cache})
    assert (seen[-1].written > 0) is FAMILIES[name][2] and not seen[-1].unconfirmed


@pytest.mark.parametrize("name", ["gpt2", *some_slow("llama", "mamba")])
def test_with_symbolic_sizes_too(name: str, seen: list[Replays]) -> None:
    dim = torch.export.Dim.AUTO
    shapes = {"input_ids": {0: dim, 1: dim} if name == "llama" else {0: dim}, "use_cache": None}
    same_as_plain(family(name), (), {**tokens(), "use_cache": False}, shapes)
    assert seen[-1].written > 0 and not seen[-1].unconfirmed


def test_a_cache_is_handed_from_block_to_block(seen: list[Replays]) -> None:
    model = family("llama")

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor) -> Any:
            return self.model(input_ids=input_ids, use_cache=True).logits

    same_as_plain(Cached(), (tokens()["input_ids"],))
    assert seen[-1].runs == 1 and not seen[-1].written


# ---- what blocks may do


class Block(nn.Module):
    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.number = number
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.inner(x))


class Stack(nn.Module):
    def __init__(self, make: Callable[[int], nn.Module], count: int = LAYERS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(i) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


X = torch.ones(4, 8)


def test_how_often_a_block_runs(seen: list[Replays]) -> None:
    """The first, whose argument has no gradient; two more, which are the same; and the last."""
    ran = []

    class Counted(Block):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(1)
            return super().forward(x)

    export(Stack(Counted, 20), (X,), {})
    assert len(ran) == 4 and seen[-1].written == 16


def test_containers(seen: list[Replays]) -> None:
    same_as_plain(nn.Sequential(*(Block(i) for i in range(LAYERS)), nn.Linear(8, 3)), (X,))
    assert seen[-1].written == LAYERS - 4
    same_as_plain(nn.Sequential(Stack(Block), nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))), (X,))
    assert seen[-1].written == LAYERS - 4 + 2


class Numbered(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.number // 5)


class AsksForNumber(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if getattr(self, "number", 0) == 5 else 1)


class Normed(Block):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Dropping(Block):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mul_(2)


class Ungraded(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class Constant(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor([1.0])


class Hooked(Block):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.inner.register_forward_hook(lambda module, args, result: result * 2)


class Switched(Block):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.inner.requires_grad_(number % 2 == 0)


class Wider(Block):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.more = nn.Linear(8, 8 + number)


@pytest.mark.parametrize(
    "make", [Numbered, AsksForNumber, Normed, Dropping, InPlace, Ungraded, Constant, Hooked, Switched, Wider]
)
def test_blocks_that_are_traced_each(make: Callable[[int], nn.Module], seen: list[Replays]) -> None:
    same_as_plain(Stack(make).train(), (X,))
    assert not seen[-1].written


def test_dropout_that_is_off_does_no_harm(seen: list[Replays]) -> None:
    same_as_plain(Stack(Dropping).eval(), (X,))
    assert seen[-1].written


def test_a_model_whose_last_block_differs_is_traced_again(seen: list[Replays]) -> None:
    """The difference between the blocks is not an attribute of theirs."""
    calls = []

    class Late(Block):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return super().forward(x) * (2 if len(calls) % LAYERS == 0 else 1)

    model = Stack(Late)
    nodes = [row[1] for row in described(plainly(model, (X,), {}))]
    calls.extend([1] * 3)  # of seven blocks four will run
    assert [row[1] for row in described(export(model, (X,), {}))] == nodes
    assert seen[-1].written and seen[-1].unconfirmed


class Calls(nn.Module):
    """A stack that is called by a function of its blocks."""

    def __init__(self, run: Callable[[nn.ModuleList, Tensor], Any], make: Callable[[int], nn.Module] = Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make(i) for i in range(LAYERS))
        self._run = [run]

    def forward(self, x: Tensor) -> Any:
        return self._run[0](self.blocks, x)


def one_by_one(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for i in range(LAYERS):
        x = blocks[i](x)
    return x


def twice(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    return one_by_one(blocks, one_by_one(blocks, x))


def without_the_last(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for i in range(LAYERS - 1):
        x = blocks[i](x)
    return x


def other_shapes(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for i in range(LAYERS):
        x = blocks[i](x if i != 4 else torch.cat([x, x]))
    return x


def all_results(blocks: nn.ModuleList, x: Tensor) -> list[Tensor]:
    results = [x]
    for i in range(LAYERS):
        results.append(blocks[i](results[-1]))
    return [*results, sum(results[1:], results[0])]


def written_after(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for i in range(LAYERS):
        x = blocks[i](x)
        x += 1
    return x


def unrolled(blocks: nn.ModuleList, x: Tensor) -> Any:
    def forward(x: Any) -> Any:
        x = blocks[2](blocks[1](blocks[0](x)))
        x = blocks[4](blocks[3](x))
        return blocks[6](blocks[5](x))

    return forward(x)


@pytest.mark.parametrize(
    "run", [one_by_one, twice, without_the_last, other_shapes, all_results, written_after, unrolled]
)
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_however_blocks_are_called(
    run: Callable[[nn.ModuleList, Tensor], Any], is_dynamic: bool, seen: list[Replays]
) -> None:
    same_as_plain(Calls(run), (X,), {}, ({0: torch.export.Dim.AUTO},) if is_dynamic else None)
    assert seen[-1].runs == 1


def test_blocks_that_share_a_module_or_a_weight(seen: list[Replays]) -> None:
    shared = Stack(Block)
    for block in shared.blocks:
        block.inner = shared.blocks[0].inner
    same_as_plain(shared, (X,))
    tied = Stack(Block)
    weight = nn.Parameter(torch.ones(8, 8))
    for block in tied.blocks:
        block.get_submodule("inner").register_parameter("weight", weight)
    same_as_plain(tied, (X,))
    assert [replays.runs for replays in seen] == [0, 1]


def test_an_argument_that_is_cast_to_its_own_type(seen: list[Replays]) -> None:
    """The cast is the argument itself, and its node stands for the argument from then on."""

    class Casting(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.float32))

    def remembered(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        results = [x]
        for i in range(LAYERS):
            results.append(blocks[i](results[-1]))
        return torch.stack(results)

    same_as_plain(Calls(remembered, Casting), (X,))
    assert seen[-1].written == LAYERS - 4


def test_an_error_of_the_model_is_its_own() -> None:
    class Refusing(Block):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] == 8:
                raise RuntimeError("no such width")
            return x

    model = Stack(Refusing)
    with pytest.raises(RuntimeError, match="no such width"):
        export(model, (X,), {})
    assert not any("forward" in vars(block) for block in model.blocks) and not hasattr(Refusing, "number")


def test_a_plan_is_that_of_a_graph_of_torch_alone() -> None:
    model = Stack(Block)
    mine, plain = capture(model, X), capture(plainly(model, (X,), {}))
    assert fingerprint(mine.gm.graph) == fingerprint(plain.gm.graph)
