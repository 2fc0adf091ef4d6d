"""A design with streams, cycle by cycle: FIFOs of given depths, processes that wait. The check of the computed depths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pquant_fx.lower.hls4ml.stream_network import StreamNetwork

__all__ = ["StreamRun", "simulate"]


@dataclass(frozen=True)
class StreamRun:
    """cycles: until the last sample was out, or nothing could move any more; outputs: samples that came out whole;
    blocked: processes that waited for ever, with the FIFO that they waited for; most: tokens that each FIFO held at most."""

    cycles: int
    outputs: int
    blocked: tuple[str, ...]
    most: Mapping[str, int]

    @property
    def deadlock(self) -> bool:
        return bool(self.blocked)


def simulate(network: StreamNetwork, depths: Mapping[str, int], samples: int = 3) -> StreamRun:
    """Run `samples` samples through. In each cycle every process does one cycle of its own, if the FIFOs allow it as they were
    at the beginning: a token can be read in the cycle after it was written, a place filled in the cycle after it was freed."""
    processes = network.processes
    index = {fifo: n for n, fifo in enumerate(network.fifos)}
    room = [depths[fifo] for fifo in index]
    inputs = [[index[fifo] for fifo in process.inputs] for process in processes]
    outputs = [[index[fifo] for fifo in process.outputs] for process in processes]
    held, most = [0] * len(index), [0] * len(index)
    at, done = [0] * len(processes), [0] * len(processes)
    cycles = 0
    while any(done[n] < samples for n in network.sinks):
        moving = []
        for n, process in enumerate(processes):
            if done[n] == samples:
                continue
            cycle = at[n]
            if all(held[inputs[n][k]] for k in process.reads[cycle]) and (
                not process.writes[cycle] or all(held[fifo] < room[fifo] for fifo in outputs[n])
            ):
                moving.append(n)
        if not moving:
            break
        for n in moving:
            process, cycle = processes[n], at[n]
            for k in process.reads[cycle]:
                held[inputs[n][k]] -= 1
            if process.writes[cycle]:
                for fifo in outputs[n]:
                    held[fifo] += 1
            at[n] = cycle + 1
            if at[n] == len(process.reads):
                at[n], done[n] = 0, done[n] + 1
        most = [max(a, b) for a, b in zip(most, held)]
        cycles += 1
    whole = min((done[n] for n in network.sinks), default=samples)
    stuck = (
        ()
        if whole == samples
        else tuple(_waiting(network, n, at[n], held, room, index) for n in range(len(processes)) if done[n] < samples)
    )
    return StreamRun(cycles, whole, stuck, {fifo: most[n] for fifo, n in index.items()})


def _waiting(network: StreamNetwork, n: int, cycle: int, held: list[int], room: list[int], index: Mapping[str, int]) -> str:
    process = network.processes[n]
    empty = [process.inputs[k] for k in process.reads[cycle] if not held[index[process.inputs[k]]]]
    full = [fifo for fifo in process.outputs if process.writes[cycle] and held[index[fifo]] >= room[index[fifo]]]
    return f"{process.name}: {', '.join([*(f'{fifo} is empty' for fifo in empty), *(f'{fifo} is full' for fifo in full)])}"
