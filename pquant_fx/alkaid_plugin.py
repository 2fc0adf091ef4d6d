"""A frozen network as a layer of alkaid's: the entry point `alkaid_torch`, which alkaid loads by itself.

inputs = FVArray.from_kif(k, i, f)                                            # formats of one sample, without batch axis
inp, out = trace_model(nn.Sequential(frozen), inputs=inputs, framework="torch")     # alkaid.converter
"""

from __future__ import annotations

from typing import Any

__all__ = ["register"]


def register() -> None:
    """Tell alkaid how to replay a FrozenModel. It calls this when it meets the first module of ours."""
    from alkaid.converter.builtin.torch.layers.modules import ReplayModuleBase
    from alkaid.trace import FVArray

    from pquant_fx.frozen import FrozenModel
    from pquant_fx.lower.rtl.circuit import symbolic_outputs

    class ReplayFrozenModel(ReplayModuleBase):
        """Every node by the operators of `to_rtl`, so that alkaid's circuit is the one that we would build."""

        handles = (FrozenModel,)

        def call(self, *inputs: Any) -> Any:
            made = symbolic_outputs(self.module.graph_module, self.module.formats, inputs)
            found = tuple(FVArray(v, inputs[0].solver_options, inputs[0].hwconf) for v in made)
            return found[0] if len(found) == 1 else found
