"""The benchmark behind ``unirnn bench``: what a layer costs, compared with what its user would otherwise run.

The benchmark measures *rows*. A row is one layer at one size, or a model around one, with one kind of lengths, forward
or with backward, on one backend. Several implementations compute a row. ``ours`` is the module of unirnn; the others
are its baselines:

- ``native``: the framework's own layer on the dense input, or the model as people write it with that layer,
- ``usual``: what people write in that framework to get the same result,
- ``torch``: PyTorch's own layer, or model, on the dense input, for every backend,
- ``onnxruntime``: a bare session of ONNX Runtime on the dense input, for every backend, forward only,
- ``floor``: the matrix products alone, without anything else.

Besides these ratios, a row has the share of the processor's peak that ours reaches.

They take turns in random order within one process, with garbage collection switched off. A figure is a median of many
calls, and what is reported is a ratio within one row, because a shared machine changes its speed between rows.

Each backend has a process of its own, which is told how many threads to use before any library is loaded.

- `unirnn_bench.work`: the sizes, the layers and the arrays of a row,
- `unirnn_bench.baselines`: what each framework is compared with,
- `unirnn_bench.timing`: measures several functions fairly,
- `unirnn_bench.rows`: measures one row,
- `unirnn_bench.jobs`: plans which rows are measured, and in which process,
- `unirnn_bench.processes`: runs them there,
- `unirnn_bench.plotting`: draws the result.

Importing this package imports no framework.
"""
