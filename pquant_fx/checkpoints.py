"""`load`: from a checkpoint and the user's network to the compiled model; `save` and `resume` are the training's."""

from __future__ import annotations

from torch import nn

from pquant_fx.api import build
from pquant_fx.api_checks import refuse_no_model
from pquant_fx.compiled import CompiledModel
from pquant_fx.config import load_config
from pquant_fx.errors import ConfigError, PQuantError, Problem, TransferError
from pquant_fx.example_inputs import ExampleInputs
from pquant_fx.graph.passes import Pipeline
from pquant_fx.train.checkpoint import FilePath, adopt, read_checkpoint
from pquant_fx.train.data import device_of

__all__ = ["load"]


def load(path: FilePath, net: nn.Module, pipeline: Pipeline | None = None, leaves: tuple[type[nn.Module], ...] = ()) -> CompiledModel:
    """The compiled model that `pq.save` (or `fit(checkpoint=...)`) wrote to `path`, on the device of `net`.

        model = pq.load("net.pt", Net())

    net: the network that was compiled; its weights do not matter, and it is not changed: it is compiled again under the
    configuration in the file, and the state is loaded strictly. pipeline, leaves: as they were given to `compile`.
    To go on with a training, give the model to `pq.resume` or to `fit(..., checkpoint=path, resume=True)`.
    Raises TransferError: PQ510 for a file that is missing, damaged, of another kind or a newer version, PQ401 for another network.
    """
    content = read_checkpoint(path)
    refuse_no_model(net)
    settings = load_config(content["config"])
    if settings.pending:
        raise ConfigError(settings.pending)
    device = device_of(net)
    tensors = {name: x.to(device) for name, x in content["examples"]["tensors"].items()}
    examples = ExampleInputs(tensors, content["examples"]["source"])
    try:
        compiled = build(net, settings, examples, pipeline, leaves, content["decisions"])
    except PQuantError as error:
        what = f"the network does not compile as the one in '{path}' did"
        remedy = "give the network that was compiled, and the same pipeline= and leaves= if there were any"
        raise TransferError([Problem("PQ401", what, remedy), *error.problems]) from error
    adopt(content, compiled, path)
    return compiled
