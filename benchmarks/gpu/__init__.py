"""Whether encoders and training are right and fast on a GPU, in eight minutes on a bare machine.

    python -m benchmarks.gpu                                      # all parts on CUDA, into benchmarks/results
    python -m benchmarks.gpu --only training --minutes 3
    python -m benchmarks.gpu --device cpu --minutes 1 --out FOLDER    # in miniature, without the parts for CUDA alone

It needs a checkout, torch with CUDA, transformers, Pillow, numpy, pyarrow and safetensors, and no network. Models have
the real sizes and random weights; pictures are made in memory. A process of its own measures the parts, one after
another. A part that hangs or crashes costs that part alone, and the results are written row by row.

Read `runner.py` first, then `base.py`, then the file of a part: `machine`, `right`, `fast` (with `levers`), `fed`,
`memory`, `training`, `follows`.
"""
