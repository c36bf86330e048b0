"""Physics engines: N envs of one MuJoCo model, stepped on threads of the CPU or on a GPU."""
