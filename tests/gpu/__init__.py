"""The whole tool on a GPU, as `launch/gpu.sh` runs it; on a CPU in rehearsal."""
