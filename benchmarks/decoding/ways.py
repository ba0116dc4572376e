"""Ways to generate several sequences on two cores. Each way has its own processes, which wait for commands.

name                    processes
pipeline                one; two stages of one thread, all sequences in flight (`fx_partition.pipeline`, sessions)
generate                one of two threads; transformers' own, one sequence after another, decoding by inductor
generate, a batch       the same one; all sequences in one batch, which only sequences that start together can be
steps                   one of two threads; the pipeline's own step by inductor, one sequence after another
steps, replicas         two of one thread, each on a core; they share the sequences
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from runtimes.processes import Processes, serve
from torch import Tensor
from transformers import CompileConfig

from fx_partition.backends.pipeline import pipeline

from .models import Case, Step

#: The tokens of each sequence, without its prompt.
Texts = list[list[int]]

PIPELINE, GENERATE, BATCH = "pipeline", "generate", "generate, a batch"
STEPS, REPLICAS = "steps", "steps, replicas"


class Side(ABC):
    """One way to run a case."""

    @abstractmethod
    def run(self, prompts: Sequence[int]) -> Texts:
        """Generate a sequence after each prompt, as fast as this way can."""

    def close(self) -> None:
        """Release its resources."""
        return


class Piped(Side):
    """Our pipeline: a token of each sequence in flight."""

    def __init__(self, case: Case, sessions: int) -> None:
        self._tokens = case.tokens
        step = Step(case.model(), case.tokens)
        self._pipe = pipeline(step, torch.tensor([[1]]), sessions=sessions)

    def run(self, prompts: Sequence[int]) -> Texts:
        texts: Texts = [[] for _ in prompts]
        flying: deque[tuple[int, Any]] = deque()
        for session, prompt in enumerate(prompts):
            self._pipe.reset(session)
            flying.append((session, self._pipe.submit(torch.tensor([[prompt]]), session=session)))
        while flying:
            session, future = flying.popleft()
            token: Tensor = future.result()
            texts[session].append(int(token))
            if len(texts[session]) < self._tokens:
                flying.append((session, self._pipe.submit(token, session=session)))
        return texts

    def close(self) -> None:
        self._pipe.close()


class Steps(Side):
    """The same step, compiled by inductor and called in turn."""

    def __init__(self, case: Case) -> None:
        self._tokens = case.tokens
        self._step = Step(case.model(), case.tokens)
        self._compiled = torch.compile(self._step)

    def run(self, prompts: Sequence[int]) -> Texts:
        return [self._text(prompt) for prompt in prompts]

    def _text(self, prompt: int) -> list[int]:
        self._step.begin()
        token, text = torch.tensor([[prompt]]), []
        for _ in range(self._tokens):
            token = self._compiled(token)
            text.append(int(token))
        return text


class Generate(Side):
    """``generate`` of transformers; its decoding step is compiled by inductor, its prompt runs in eager mode.

    Args:
        compiled: False for eager mode throughout, which says what is right.
        batch: whether all sequences are one batch.
    """

    def __init__(self, case: Case, *, compiled: bool = True, batch: bool = False) -> None:
        self._model: Any = case.model()
        self._batch = batch
        self._asked: dict[str, Any] = {"max_new_tokens": case.tokens, "do_sample": False}
        if compiled:
            config = CompileConfig(backend="inductor", mode=None, dynamic=None, fullgraph=False)
            config._compile_all_devices = True  # transformers compiles for GPUs alone without it
            self._asked["compile_config"] = config
        else:
            self._asked["disable_compile"] = True

    def run(self, prompts: Sequence[int]) -> Texts:
        if self._batch:
            return self._texts(torch.tensor([[prompt] for prompt in prompts]))
        return [text for prompt in prompts for text in self._texts(torch.tensor([[prompt]]))]

    def _texts(self, prompts: Tensor) -> Texts:
        texts: Texts = self._model.generate(prompts, **self._asked)[:, 1:].tolist()
        return texts


def work(connection: Connection, role: str, core: int | None, store: str) -> None:
    """Run a worker: receive commands and send answers until the command to stop.

    Commands: ("build", case, sequences), ("run", side, prompts) -> (seconds, texts), ("stop",).
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    build: dict[str, Callable[[Case, int], dict[str, Side]]] = {
        "pipeline": lambda case, sequences: {"pipeline": Piped(case, sequences)},
        "generate": lambda case, _: {"generate": Generate(case), "batch": Generate(case, batch=True)},
        "steps": lambda case, _: {"steps": Steps(case)},
        "eager": lambda case, _: {"eager": Generate(case, compiled=False)},
    }
    sides: dict[str, Side] = {}

    def answer(what: str, asked: Any, argument: Any) -> Any:
        nonlocal sides
        if what == "run":
            start = time.perf_counter()
            texts = sides[asked].run(argument)
            return time.perf_counter() - start, texts
        for side in sides.values():
            side.close()
        torch.compiler.reset()
        sides = build[role](asked, argument)
        return None

    with torch.no_grad():
        serve(connection, answer)
    for side in sides.values():
        side.close()


@dataclass(frozen=True)
class Way:
    """A way to run: the workers that take part and share the sequences, and the name of their side."""

    workers: tuple[int, ...]
    side: str


WAYS = {
    PIPELINE: Way((0,), "pipeline"),
    GENERATE: Way((1,), "generate"),
    BATCH: Way((1,), "batch"),
    STEPS: Way((2,), "steps"),
    REPLICAS: Way((3, 4), "steps"),
}
_EAGER = Way((5,), "eager")


class Crew(Processes):
    """Running workers on two cores; a context manager."""

    def __init__(self, cores: Sequence[int]) -> None:
        first, second = cores
        roles = [("pipeline", None), ("generate", None), ("steps", None), ("steps", first), ("steps", second)]
        super().__init__(work, [*roles, ("eager", None)])

    def build(self, case: Case, sequences: int) -> None:
        """Have all workers build a case for ``sequences`` sequences in flight."""
        self.ask(("build", case, sequences))

    def seconds(self, way: str, prompts: Sequence[int]) -> float:
        """Return the seconds in which a way generates a sequence after each prompt; those that share take the longest.

        Raises:
            RuntimeError: a side failed; the worker's traceback is in the message.
        """
        return max(seconds for seconds, _ in self._run(WAYS[way], prompts))

    def check(self, prompts: Sequence[int]) -> None:
        """Check that all ways generate the tokens of eager mode.

        Raises:
            AssertionError: one does not; it is named.
        """
        expected = self._texts(_EAGER, prompts)
        for name, way in WAYS.items():
            assert self._texts(way, prompts) == expected, f"{name} generates other tokens than eager mode"

    def _texts(self, way: Way, prompts: Sequence[int]) -> Texts:
        found: Texts = [[] for _ in prompts]
        for place, (_, texts) in enumerate(self._run(way, prompts)):
            found[place :: len(way.workers)] = texts
        return found

    def _run(self, way: Way, prompts: Sequence[int]) -> list[tuple[float, Texts]]:
        count = len(way.workers)
        for place, worker in enumerate(way.workers):
            self._connections[worker].send(("run", way.side, list(prompts[place::count])))
        answers = [self._connections[worker].recv() for worker in way.workers]
        if failures := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError("\n".join(failures))
        return answers
