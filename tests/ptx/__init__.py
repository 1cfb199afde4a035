"""The PTX that nvcc makes of csrc/cuda, run without a GPU and checked: csrc/README.md says how."""
