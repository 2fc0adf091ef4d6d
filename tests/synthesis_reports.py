"""Reports as Vitis HLS 2023.2 and Vivado 2019.2 to 2023.2 write them, cut to the tables that matter."""

from __future__ import annotations

__all__ = ["CSYNTH", "TIMING", "utilization"]

CSYNTH = """<?xml version="1.0" encoding="utf-8"?>
<profile>
<section name = "ReportVersion" level="0"><item name = "Version">2023.2</item></section>
<UserAssignments>
<unit>ns</unit>
<ProductFamily>virtexuplus</ProductFamily>
<Part>xcvu13p-flga2577-2-e</Part>
<TopModelName>net</TopModelName>
<TargetClockPeriod>5.00</TargetClockPeriod>
<ClockUncertainty>1.35</ClockUncertainty>
<FlowTarget>vivado</FlowTarget>
</UserAssignments>
<PerformanceEstimates>
<PipelineType>yes</PipelineType>
<SummaryOfTimingAnalysis><unit>ns</unit><EstimatedClockPeriod>3.643</EstimatedClockPeriod></SummaryOfTimingAnalysis>
<SummaryOfOverallLatency>
<unit>clock cycles</unit>
<Best-caseLatency>8</Best-caseLatency>
<Average-caseLatency>8</Average-caseLatency>
<Worst-caseLatency>9</Worst-caseLatency>
<Best-caseRealTimeLatency>40.000 ns</Best-caseRealTimeLatency>
<PipelineInitiationInterval>1</PipelineInitiationInterval>
<PipelineDepth>9</PipelineDepth>
<Interval-min>1</Interval-min>
<Interval-max>2</Interval-max>
</SummaryOfOverallLatency>
</PerformanceEstimates>
<AreaEstimates>
<Resources><BRAM_18K>4</BRAM_18K><DSP>12</DSP><FF>1534</FF><LUT>8421</LUT><URAM>0</URAM></Resources>
<AvailableResources><BRAM_18K>5376</BRAM_18K><DSP>12288</DSP><FF>3456000</FF><LUT>1728000</LUT><URAM>1280</URAM></AvailableResources>
</AreaEstimates>
</profile>
"""

TIMING = """Copyright 1986-2022 Xilinx, Inc. All Rights Reserved.
------------------------------------------------------------------------------------
| Tool Version : Vivado v.2023.2 (lin64) Build 4029153
| Command      : report_timing_summary -file timing.rpt
| Design       : net
------------------------------------------------------------------------------------

Timing Summary Report

------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)
    -------      -------  ---------------------  -------------------      -------      -------
     -0.212       -1.750                      9                 2954        0.041        0.000

------------------------------------------------------------------------------------------------
| Clock Summary
| -------------
------------------------------------------------------------------------------------------------

Clock   Waveform(ns)         Period(ns)      Frequency(MHz)
-----   ------------         ----------      --------------
ap_clk  {0.000 2.500}        5.000           200.000
"""

_HEAD = """Copyright 1986-2022 Xilinx, Inc. All Rights Reserved.
---------------------------------------------------------------------
| Tool Version : Vivado v.2023.2 (lin64) Build 4029153
| Command      : report_utilization -file vivado_synth.rpt
| Design       : net
| Device       : {device}
| Design State : {state}
---------------------------------------------------------------------

Utilization Design Information
"""


def utilization(state: str = "Synthesized", old: bool = False) -> str:
    """`report_utilization` of an UltraScale+ part with its five columns, or of a 7-series part by an older Vivado with four."""
    logic = ("Slice LUTs*", "Slice Registers") if old else ("CLB LUTs*", "CLB Registers")
    tables = [
        ("1. Logic", [(logic[0], 4211, 53200), ("  LUT as Logic", 4200, 53200), ("  LUT as Memory", 11, 17400), (logic[1], 1702, 106400)]),
        ("2. Memory", [("Block RAM Tile", 1.5, 140), ("  RAMB36/FIFO*", 1, 140), ("  RAMB18", 1, 280)]),
        ("3. ARITHMETIC", [("DSPs", 12, 220), ("  DSP48E1 only", 12, None)]),
    ]
    if not old:
        tables[1][1].append(("URAM", 3, 960))
    names = ["Site Type", "Used", "Fixed", *([] if old else ["Prohibited"]), "Available", "Util%"]
    text = _HEAD.format(device="7z020clg400-1" if old else "xcvu13p-flga2577-2-e", state=state)
    for title, rows in tables:
        rule = "+" + "+".join("-" * 20 for _ in names) + "+"
        text += f"\n{title}\n{'-' * len(title)}\n\n{rule}\n" + _line(names) + f"{rule}\n"
        for site, used, there in rows:
            cells = [site, str(used), "0", *([] if old else ["0"]), "" if there is None else str(there), "" if there is None else "0.10"]
            text += _line(cells)
        text += f"{rule}\n* Warning! LUT value is adjusted to account for LUT combining.\n"
    return text


def _line(cells: list[str]) -> str:
    return "|" + "|".join(f" {cell:<18s} " for cell in cells) + "|\n"
