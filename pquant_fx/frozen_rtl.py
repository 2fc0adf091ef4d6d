"""What a frozen model becomes without vendor tools: RTL, simulation and synthesis with open ones, and figures before any of them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import GraphModule

from pquant_fx.errors import InputError
from pquant_fx.graph.analysis import FormatMap
from pquant_fx.graph.inputs import not_finite

if TYPE_CHECKING:
    from pquant_fx.estimate import Ebops
    from pquant_fx.estimate.resources import Estimate
    from pquant_fx.lower.rtl.project import RtlProject
    from pquant_fx.lower.rtl.synthesis import Synthesis

__all__ = ["RtlTargets"]


class RtlTargets:
    """The RTL side of a FrozenModel."""

    graph_module: GraphModule
    formats: FormatMap

    def to_rtl(
        self,
        output_dir: str | PathLike[str],
        x: Any = None,
        *,
        clock_period: float = 5.0,
        latency_cutoff: float | None = None,
        flavor: str = "verilog",
        ternary_adders: bool = False,
        part: str = "xcvu13p-flga2577-2-e",
        structure: str = "flat",
        overwrite: bool = False,
    ) -> RtlProject:
        """Verilog or VHDL of the fully unrolled network, one result a clock cycle, by alkaid (Sun et al. 2024, da4ml).

        x: real samples to compare alkaid's interpreter with ours on; it is always compared on samples that reach the corners of the
        formats. clock_period in ns; latency_cutoff: the longest a pipeline stage may take by alkaid's delay model in ns (default: the
        clock period; 0: no registers); flavor: verilog or vhdl; ternary_adders: for vendors' tools; part: for their scripts;
        structure: flat (one circuit) or layers (a module a layer, used for every position: for larger convolutional networks).
        Raises LoweringError with every node that alkaid can not express (PQ201, PQ202, PQ303), or computes wrongly (PQ511); InputError
        (PQ305, PQ409) for x; ConfigError (PQ405, PQ407); OutputError (PQ505, PQ506); ExtraMissingError (PQ503) without alkaid.
        """
        from pquant_fx.lower.rtl.project import RtlSettings, to_rtl

        settings = RtlSettings(clock_period, latency_cutoff, flavor, ternary_adders, part, structure)
        return to_rtl(self.graph_module, self.formats, output_dir, settings, self.samples(x), overwrite)

    def synthesize(
        self,
        output_dir: str | PathLike[str],
        x: Any = None,
        *,
        flow: str = "yosys",
        family: str = "xcup",
        timeout: float | None = None,
        progress: bool = True,
        **rtl: Any,
    ) -> Synthesis:
        """LUTs, flip-flops, carry chains, DSPs and logic depth of every pipeline stage, counted by an open synthesis tool.

        Writes the RTL first; `rtl` holds the options of `to_rtl`. A design that was synthesised before into the same directory is read
        back. family: xcup (UltraScale+), xcu, xc7, xc6s, xc6v; timeout in seconds. Not the figures of the vendor's tool.
        Raises like `to_rtl`; ExtraMissingError (PQ503) without yosys; LoweringError (PQ512) with the end of the log when it fails.
        """
        return self.to_rtl(output_dir, x, **rtl).synthesize(flow, family, timeout, progress)

    def estimate(self, clock_period: float = 5.0, latency_cutoff: float | None = None, circuit: bool = False) -> Estimate:
        """LUT, FF, DSP, BRAM and latency of the fully unrolled RTL (structure "flat") with their spread, in milliseconds; every figure
        says where it is from.

        The default is a closed form with coefficients fitted on syntheses by yosys that are kept with this package. circuit=True builds
        alkaid's circuit (seconds) and reads its registers and cycles off it, its LUTs from its cost. Options as in `to_rtl`.
        Raises ConfigError (PQ407); with circuit=True like `to_rtl`.
        """
        from pquant_fx.estimate.fabric import demand
        from pquant_fx.estimate.resources import AdderGraph, estimate
        from pquant_fx.lower.rtl.adapter import alkaid_version
        from pquant_fx.lower.rtl.project import RtlSettings, adder_graph

        settings = RtlSettings(clock_period, latency_cutoff)
        graph = AdderGraph(*adder_graph(self.graph_module, self.formats, settings), alkaid_version()) if circuit else None
        return estimate(demand(self.graph_module, self.formats), self.ebops().total, clock_period, settings.cutoff, graph)

    def samples(self, x: Any) -> list[Any] | None:
        """Real samples as float64 arrays, one an input. Raises InputError (PQ305, PQ409)."""
        if x is None:
            return None
        inputs = self._bound((), x) if isinstance(x, dict) else self._bound(x if isinstance(x, tuple | list) else (x,), {})
        if problems := not_finite(self.graph_module, inputs):
            raise InputError(problems)
        return [v.double().numpy(force=True) for v in inputs]

    if TYPE_CHECKING:

        def _bound(self, args: Sequence[Any], kwargs: Any) -> list[Tensor]: ...
        def ebops(self) -> Ebops: ...
