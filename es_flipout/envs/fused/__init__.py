"""What a MuJoCo task computes between two steps of physics, compiled to one function over all envs.

A task's hooks are run once on `traced` tensors, which note each operation. `source` writes what they noted
as a loop over the envs in plain Python, which numba compiles; `compiled_task` checks it against the hooks.
"""
