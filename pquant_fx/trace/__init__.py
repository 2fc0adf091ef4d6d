"""The front end: a user's PyTorch model becomes a torch.fx graph."""

from pquant_fx.trace.frontend import TraceResult, trace
from pquant_fx.trace.inputs import bind_examples

__all__ = ["TraceResult", "bind_examples", "trace"]
