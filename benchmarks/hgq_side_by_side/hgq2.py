"""Runner of HGQ2 on keras with jax, in HGQ2's own environment: see `protocol.serve`.

Recipes: weights and biases KBI (SAT_SYM and WRAP, the library's defaults) starting from `b0`, `i0`; data KIF. `beta_start` < `beta`
is the library's log ramp (`PieceWiseSchedule`). Integer bits are traced over the training data before evaluation.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras
import numpy as np
from hgq.config import LayerConfigScope, QuantizerConfigScope
from hgq.layers import QDense
from hgq.utils import trace_minmax
from hgq.utils.sugar import BetaScheduler, PieceWiseSchedule

from benchmarks.hgq_side_by_side.protocol import BATCH, HIDDEN, PEAK_RATE, Task, ebops, serve, stored_bits


def network(task: Task, spec: dict[str, Any]) -> Any:
    with (
        QuantizerConfigScope(q_type="kbi", place=("weight", "bias"), b0=spec["b0"], i0=spec["i0"]),
        QuantizerConfigScope(q_type="kif", place="datalane", i0=spec["data_i0"], f0=spec["data_f0"], overflow_mode=spec["data_overflow"]),
        LayerConfigScope(enable_ebops=True, beta0=spec["beta"]),
    ):
        layers = [QDense(width, activation="relu") for width in HIDDEN]
        return keras.Sequential([keras.Input((task.x.shape[1],)), *layers, QDense(task.classes)])


def train(task: Task, spec: dict[str, Any]) -> dict[str, Any]:
    keras.utils.clear_session()
    keras.utils.set_random_seed(spec["seed"])
    model = network(task, spec)
    steps = -(-len(task.x) // BATCH) * spec["epochs"]
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(PEAK_RATE, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps // spec["epochs"],  # equal results, less overhead of keras' loop
    )
    callbacks = []
    if spec.get("beta_start"):
        ramp = [(0, spec["beta_start"], "log"), (int(spec["epochs"] * spec.get("ramp", 1.0)), spec["beta"], "constant")]
        callbacks.append(BetaScheduler(PieceWiseSchedule(ramp)))
    model.fit(task.x, task.y, batch_size=BATCH, epochs=spec["epochs"], verbose=0, callbacks=callbacks)
    trace(model, task.x)
    logits = np.asarray(model.predict(task.x_test, batch_size=len(task.x_test), verbose=0))
    return {"accuracy": task.accuracy(logits), "ebops": ebops(dense(layer) for layer in model.layers if isinstance(layer, QDense))}


def trace(model: Any, x: Any) -> None:
    """Integer bits and signs of the data, traced over `x` as the library asks for.

    Biases keep what they had in training: tracing them anew makes biases of no bits nonzero (0.2.0; costs up to 0.6 points).
    """
    biases = [layer.bq.quantizer for layer in model.layers if isinstance(layer, QDense)]
    kept = [(np.array(q._k), np.array(q._i)) for q in biases]
    trace_minmax(model, x, batch_size=len(x), verbose=0)
    for quantizer, (k, i) in zip(biases, kept):
        quantizer._k.assign(k)
        quantizer._i.assign(i)


def dense(layer: Any) -> Any:
    weights = np.asarray(layer.qkernel).T
    k, i, f = (np.asarray(v, np.float64) for v in layer.iq.quantizer.kif)
    return weights, stored_bits(k, i, f, weights.shape[1])


if __name__ == "__main__":
    serve(train)
