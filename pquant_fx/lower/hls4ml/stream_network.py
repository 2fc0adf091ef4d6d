"""A design with streams as processes and FIFOs: what each process reads and writes in each of its cycles.

A process does the same for every sample: a list of cycles, each of which reads one token (a pixel with all its channels) from
some inputs and may write one token to all outputs. A cycle whose input is empty or whose output is full waits, and everything
behind it in the pipeline waits with it, as in the stalling pipelines of HLS (AMD UG1399). Such a network is a cyclo-static
dataflow graph (Bilsen et al. 1996): whether it deadlocks depends on the sizes of the FIFOs only, not on who waits how long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Process", "StreamNetwork", "pipelined", "sink", "source"]


@dataclass(frozen=True)
class Process:
    """`inputs`, `outputs`: FIFOs by name. reads[c]: positions in `inputs` of which cycle c takes a token; writes[c]: whether
    cycle c puts one into all outputs."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[bool, ...]


def pipelined(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    steps: Sequence[tuple[Sequence[int], bool]],
    latency: int = 1,
    interval: int = 1,
) -> Process:
    """A loop over `steps`, (inputs that are read, whether a result comes of it), one started every `interval` cycles.

    latency: cycles from the start of a step to its write. The loop drains before the next sample begins.
    """
    length = (len(steps) - 1) * interval + latency + 1
    reads: list[tuple[int, ...]] = [()] * length
    writes = [False] * length
    for n, (read, write) in enumerate(steps):
        reads[n * interval] = tuple(read)
        writes[n * interval + latency] |= write
    return Process(name, tuple(inputs), tuple(outputs), tuple(reads), tuple(writes))


def source(fifo: str, tokens: int) -> Process:
    """An input of the design that always has data."""
    return Process(f"input {fifo}", (), (fifo,), ((),) * tokens, (True,) * tokens)


def sink(fifo: str, tokens: int) -> Process:
    """An output of the design whose reader never waits."""
    return Process(f"output {fifo}", (fifo,), (), ((0,),) * tokens, (False,) * tokens)


@dataclass(frozen=True)
class StreamNetwork:
    """Processes in an order in which data flows. Each FIFO has one writer and one reader."""

    processes: tuple[Process, ...]

    @property
    def fifos(self) -> tuple[str, ...]:
        """Every FIFO, in the order of its writer."""
        return tuple(fifo for process in self.processes for fifo in process.outputs)

    @property
    def writers(self) -> dict[str, int]:
        """FIFO -> position of the process that writes it."""
        return {fifo: n for n, process in enumerate(self.processes) for fifo in process.outputs}

    @property
    def readers(self) -> dict[str, int]:
        """FIFO -> position of the process that reads it."""
        return {fifo: n for n, process in enumerate(self.processes) for fifo in process.inputs}

    @property
    def unbalanced(self) -> tuple[str, ...]:
        """FIFOs that are not written as often as they are read in one sample, or not at all."""
        written = {fifo: sum(process.writes) for process in self.processes for fifo in process.outputs}
        read = {fifo: sum(k in c for c in process.reads) for process in self.processes for k, fifo in enumerate(process.inputs)}
        return tuple(fifo for fifo in {**written, **read} if written.get(fifo) != read.get(fifo))

    def thins(self, process: Process) -> bool:
        """Whether the tokens of one input become fewer: a strided convolution, a pool."""
        return len(process.inputs) == 1 and 0 < sum(process.writes) < sum(map(len, process.reads))

    @property
    def sinks(self) -> tuple[int, ...]:
        """Positions of the processes that write nothing."""
        return tuple(n for n, process in enumerate(self.processes) if not process.outputs)
