"""Training data in the forms that people have it: a DataLoader, any iterable of batches, or two whole tensors.

A pair of tensors stays resident on the model's device: each epoch is one seeded permutation and one `index_select` a
batch, several times faster than a DataLoader for small samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_map

from pquant_fx.errors import InputError, PQuantError, Problem, TrainingError
from pquant_fx.graph.inputs import input_problems, input_specs

__all__ = ["Batch", "Batches", "ResidentBatches", "StreamedBatches", "batches_of", "check_batch", "device_of", "input_batches"]


@dataclass(frozen=True)
class Batch:
    """One batch: positional `inputs` of the model in the order of its `forward`, `target` as the user gave it, `size` samples."""

    inputs: tuple[Any, ...]
    target: Any
    size: int


class Batches(Protocol):
    """A source that can be read any number of times; `epoch` selects the order of shuffled resident data."""

    def __len__(self) -> int: ...

    def read(self, epoch: int) -> Iterator[Batch]:
        """The batches of the 0-based epoch, on the model's device."""
        ...


_LEAST = 64  # samples a batch below which cutting costs more than it saves
Arrange = Callable[[Any], tuple[Any, ...]]


@dataclass(frozen=True)
class ResidentBatches:
    """Whole tensors on one device, cut into batches of `size` samples (axis 0).

    A rest of one sample joins the batch before it, because batch statistics of a single sample do not exist.
    """

    inputs: tuple[Tensor, ...]
    target: Any
    size: int
    seed: int
    shuffle: bool

    @property
    def samples(self) -> int:
        """Samples in all, along axis 0 of every tensor."""
        return len(self.inputs[0])

    def __len__(self) -> int:
        return len(self._cuts())

    def read(self, epoch: int) -> Iterator[Batch]:
        """The batches of the 0-based epoch; its order follows from the seed and the epoch alone."""
        order = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(self.samples, generator=generator).to(self.inputs[0].device)
        for start, stop in self._cuts():

            def pick(t: Tensor, start: int = start, stop: int = stop) -> Tensor:
                return t[start:stop] if order is None else t.index_select(0, order[start:stop])

            yield Batch(tuple(pick(t) for t in self.inputs), tree_map(pick, self.target), stop - start)

    def _cuts(self) -> list[tuple[int, int]]:
        starts = list(range(0, self.samples, self.size))
        if len(starts) > 1 and self.samples - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], self.samples]))


@dataclass(frozen=True)
class StreamedBatches:
    """Any iterable of (x, y) that starts anew whenever it is iterated; `count` batches long."""

    source: Iterable[Any]
    arrange: Arrange
    device: torch.device
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, epoch: int) -> Iterator[Batch]:
        """The batches in the source's own order. Raises TrainingError (PQ410) for an item that is no pair (x, y) of samples."""
        for item in self.source:
            x, y = _pair(item)
            inputs, target = tree_map(self._move, self.arrange(x)), tree_map(self._move, y)
            yield Batch(inputs, target, _samples(inputs))

    def _move(self, value: Any) -> Any:
        return value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value


def batches_of(data: Any, gm: GraphModule, *, size: int, seed: int, shuffle: bool, what: str = "training") -> Batches:
    """The source behind what a user passed as `train` or `validation`.

    data: a pair (x, y) of tensors, x also a tuple or dict of tensors for several inputs; or a DataLoader, or any
    iterable of such pairs. size: samples a batch of resident data.
    Raises TrainingError (PQ410) when it is empty, can be read only once or is no series of (x, y); InputError (PQ409) when
    the inputs have other names than those of `forward`.
    """
    names = _placeholders(gm)
    if _is_whole(data):
        return _resident(data, names, device_of(gm), size=size, seed=seed, shuffle=shuffle, what=what)
    if isinstance(data, torch.utils.data.Dataset):
        raise _unusable(f"the {what} data is a Dataset of single samples", "wrap it: torch.utils.data.DataLoader(dataset, batch_size=...)")
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Tensor | Mapping):
        raise _unusable(f"the {what} data is a {type(data).__name__}", "pass a DataLoader, an iterable of (x, y), or a pair of tensors")
    if isinstance(data, Iterator):
        raise _unusable(f"the {what} data is a generator, which can be read only once", "pass a list of batches or a DataLoader")
    count = _length(data)
    if count == 0:
        raise _unusable(f"the {what} data holds no batch", "check the file or the sampler that it comes from")
    return StreamedBatches(data, lambda x: _arrange(x, names), device_of(gm), count)


def check_batch(batch: Batch, gm: GraphModule, what: str = "training") -> None:
    """Compare a batch with the shapes and element types that the model was compiled for.

    Raises InputError (PQ409) with one problem per input that does not fit.
    """
    specs = input_specs(gm)
    if len(specs) != len(batch.inputs):
        what_differs = f"a {what} batch has {len(batch.inputs)} inputs, the model takes {len(specs)} ({', '.join(specs)})"
        raise InputError(Problem("PQ409", what_differs, "let x be one tensor an input: (x1, x2, ...), or a dict by name"))
    problems = input_problems(gm, specs, dict(zip(specs, batch.inputs)), what)
    if problems:
        raise InputError(problems)


def input_batches(data: Any, names: Sequence[str], limit: int) -> Iterator[tuple[Any, ...]]:
    """At most `limit` batches of inputs, in the order of `forward`, out of what a user gives to calibrate with.

    data: one tensor of samples, a dict of them by input name, or a pair (x, y) as a tuple: cut into at most `limit` batches,
    so that every sample counts; or an iterable of batches: a tensor, a dict, a tuple with one tensor an input, or (x, y).
    Raises TrainingError (PQ410) for anything else, InputError (PQ409) for inputs of other names.
    """
    single = len(names) == 1
    if (
        isinstance(data, tuple)
        and len(data) == 2
        and (isinstance(data[0], Mapping) or (single and _is_array(data[0]) and _is_array(data[1])))
    ):
        data = data[0]
    if _is_array(data) or isinstance(data, Mapping):
        whole = tuple(torch.as_tensor(t) for t in _arrange(data, list(names)))
        size = max(_LEAST, -(-_samples(whole) // limit))
        yield from zip(*(torch.split(t, size) for t in whole))
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise _unusable(f"the calibration data is a {type(data).__name__}", "pass a tensor of samples or an iterable of batches")
    for item in islice(data, limit):
        yield _inputs_of(item, list(names))


def _inputs_of(item: Any, names: list[str]) -> tuple[Any, ...]:
    """The inputs in one batch for calibration; targets beside them are left out."""
    if isinstance(item, tuple | list):
        nested = len(item) == 2 and isinstance(item[0], tuple | list | Mapping)
        if nested or (len(item) == 2 and len(names) == 1):
            return _arrange(item[0], names)
        if len(item) != len(names):
            what = f"a batch for calibration holds {len(item)} values, the model takes {len(names)} ({', '.join(names)})"
            raise _unusable(what, "give one tensor an input, or (x, y)")
    elif not _is_array(item) and not isinstance(item, Mapping):
        raise _unusable(f"a batch for calibration is a {type(item).__name__}", "give one tensor an input, or (x, y)")
    return _arrange(item, names)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU when it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


# ---- what the user passed
def _is_whole(data: Any) -> bool:
    """Whether `data` is one pair of whole tensors rather than a series of batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    return any(_is_array(part) or isinstance(part, Mapping) for part in data)  # a batch is neither: it is a pair


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array_interface__")


def _resident(
    data: Sequence[Any], names: list[str], device: torch.device, *, size: int, seed: int, shuffle: bool, what: str
) -> ResidentBatches:
    def place(value: Any) -> Any:
        return torch.as_tensor(value, device=device) if _is_array(value) else value

    inputs = tuple(place(x) for x in _arrange(data[0], names))
    target = tree_map(place, data[1])
    tensors = [*inputs, *tree_flatten(target)[0]]
    if not all(isinstance(t, Tensor) and t.dim() > 0 for t in tensors):
        raise _unusable(f"the {what} data is no pair of tensors", "pass (x, y) with the samples along axis 0")
    counts = {len(t) for t in tensors}
    if len(counts) > 1:
        raise _unusable(
            f"the {what} tensors hold {', '.join(str(len(t)) for t in tensors)} samples", "give every tensor one entry a sample"
        )
    if counts == {0}:
        raise _unusable(f"the {what} data holds no sample", "check the file or the selection that it comes from")
    return ResidentBatches(inputs, target, size, seed, shuffle)


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    found = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list | Mapping) else "")
    raise _unusable(
        f"a batch is {found}, not a pair (x, y)", "let the data yield (x, y); several inputs go as ((x1, x2), y) or ({'x1': x1}, y)"
    )


def _arrange(x: Any, names: list[str]) -> tuple[Any, ...]:
    """The inputs in the order of `forward`."""
    if isinstance(x, Mapping):
        if set(x) != set(names):
            found = ", ".join(map(str, x)) or "none"
            raise InputError(
                Problem("PQ409", f"a batch names the inputs {found}, the model takes {', '.join(names)}", "use forward's names")
            )
        x = tuple(x[name] for name in names)
    values = x if isinstance(x, tuple | list) else (x,)
    return tuple(torch.as_tensor(v) if _is_array(v) else v for v in values)


def _placeholders(gm: GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]


def _samples(inputs: tuple[Any, ...]) -> int:
    first = next((t for t in inputs if isinstance(t, Tensor) and t.dim() > 0), None)
    if first is None or len(first) == 0:
        raise _unusable("a batch holds no sample", "let the data yield (x, y) with x a tensor, batch first")
    return len(first)


def _length(data: Iterable[Any]) -> int:
    """The number of batches; an iterable without a length is read once to count them."""
    try:
        return len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return sum(1 for _ in data)


def _unusable(what: str, remedy: str) -> PQuantError:
    return TrainingError(Problem("PQ410", what, remedy))
