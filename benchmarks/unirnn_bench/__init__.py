"""The benchmark behind ``unirnn bench``, which compares the time of a layer with the alternatives that a user has.

The benchmark measures *rows*. A row is one layer of one size, or a model that contains it, with one kind of lengths,
forward or with backward, on one backend. Several implementations compute a row. One of them, ``ours``, is the module of
unirnn. The others are its baselines:

- ``native``: the framework's own layer on dense input, or a model that is written with this layer in the usual way,
- ``usual``: the usual code in that framework that gives the same results,
- ``torch``: PyTorch's own layer, or model, on dense input, for every backend,
- ``onnxruntime``: a bare session of ONNX Runtime on dense input, for every backend, forward only,
- ``floor``: only the matrix products.

A row has the ratio of the time of ``ours`` to the time of each baseline, and the share of the processor's peak that
``ours`` reaches.

The implementations take turns in random order within one process, with garbage collection switched off. A time is the
median of many calls. Only ratios within one row are reported, because the speed of a shared machine changes from row to
row.

Each backend has a process of its own, in which the number of threads is set before any library is loaded.

- `unirnn_bench.work`: the sizes, the layers and the arrays of a row,
- `unirnn_bench.baselines`: the baselines of each framework,
- `unirnn_bench.timing`: measures several functions under the same conditions,
- `unirnn_bench.rows`: measures one row,
- `unirnn_bench.jobs`: plans which rows are measured, and in which process,
- `unirnn_bench.processes`: runs these processes,
- `unirnn_bench.plotting`: draws the results.

Importing this package imports no framework.
"""
