"""Depths of the FIFOs of a design with streams, computed without simulating its time.

Where branches meet, the short one has to hold what the long one still keeps in its line buffers and pipelines; if its FIFO
is smaller, the process that feeds both can not go on, and the design stops for ever. How much that is follows from counting:
results are demanded one at a time at the outputs, every process works only when a result is needed of it, and the most tokens
that a FIFO ever holds in this schedule is its depth. A schedule that works with these depths exists, then; and because a
network of processes with blocking reads and writes ends up in the same state whatever its order (Kahn 1974), every other
order works with them, too (Geilen & Basten 2003 for the argument, Moreira et al. 2010 for buffers from schedules).
"""

from __future__ import annotations

from collections.abc import Iterator

from pquant_fx.lower.hls4ml.stream_network import StreamNetwork

__all__ = ["SLACK", "fifo_depths", "most_tokens"]

SLACK = 16
"""Tokens on top, for writers that pause at the ends of rows while readers do not: up to 32 tokens an FPGA stores a bit of a
FIFO in one LUT (SRL32), so the smallest FIFOs cost nothing."""
_SAMPLES = 3  # the first one fills the line buffers, the next ones meet what is left of those before


def fifo_depths(network: StreamNetwork) -> dict[str, int]:
    """FIFO -> depth (tokens) with which the design does not deadlock: what the schedule holds, and some more for speed.

    A FIFO that has to hold n tokens gets n + min(n, 16), so that it is never twice as large as needed; none is smaller than 16.
    """
    return {fifo: max(count + min(count, SLACK), SLACK) for fifo, count in most_tokens(network).items()}


def most_tokens(network: StreamNetwork, samples: int = _SAMPLES) -> dict[str, int]:
    """FIFO -> the most tokens it holds when processes work only on demand, but at once where they make fewer tokens of what they get."""
    schedule = _Schedule(network)
    for wanted in _demands(network, samples):
        schedule.demand(wanted)
    return dict(zip(network.fifos, schedule.most))


class _Schedule:
    """How far every process is, and what every FIFO holds and has held at most."""

    def __init__(self, network: StreamNetwork) -> None:
        index = {fifo: n for n, fifo in enumerate(network.fifos)}
        writers, readers = network.writers, network.readers
        self.processes = network.processes
        self.held, self.most, self.at = [0] * len(index), [0] * len(index), [0] * len(network.processes)
        self.inputs = [[index[fifo] for fifo in process.inputs] for process in network.processes]
        self.outputs = [[index[fifo] for fifo in process.outputs] for process in network.processes]
        self.makers = [writers[fifo] for fifo in network.fifos]
        self.asked = [False] * len(network.processes)  # those that wait for something go on when it is there
        eager = {n for n, process in enumerate(network.processes) if network.thins(process)}
        self.eager = [readers[fifo] if readers[fifo] in eager else None for fifo in network.fifos]

    def demand(self, wanted: int) -> None:
        """One cycle of the process `wanted`, and before it whatever it waits for."""
        waiting = [wanted]
        while waiting:
            n = waiting[-1]
            missing = self.missing(n)
            self.asked[n] = missing is not None
            if missing is None:
                self.work(waiting.pop())
            else:
                waiting.append(self.makers[missing])

    def missing(self, n: int) -> int | None:
        """An empty FIFO that the next cycle of a process reads."""
        held, inputs = self.held, self.inputs[n]
        return next((inputs[k] for k in self.processes[n].reads[self.at[n]] if not held[inputs[k]]), None)

    def work(self, n: int) -> None:
        """One cycle of a process that can do it."""
        process, cycle = self.processes[n], self.at[n]
        self.at[n] = cycle + 1 if cycle + 1 < len(process.reads) else 0
        for k in process.reads[cycle]:
            self.held[self.inputs[n][k]] -= 1
        if not process.writes[cycle]:
            return
        for fifo in self.outputs[n]:
            self.held[fifo] += 1
            self.most[fifo] = max(self.most[fifo], self.held[fifo])
        for fifo in self.outputs[n]:
            reader = self.eager[fifo]
            while reader is not None and self.held[fifo] and not self.asked[reader]:
                self.work(reader)


def _demands(network: StreamNetwork, samples: int) -> Iterator[int]:
    """Outputs take turns, each in proportion to its tokens per sample, so that none runs ahead of the others."""
    sinks = [(n, len(network.processes[n].reads)) for n in network.sinks]
    turns = sorted(((token + 1) / count, n) for n, count in sinks for token in range(count))
    for _ in range(samples):
        yield from (n for _, n in turns)
