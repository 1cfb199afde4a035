"""The map whose Hessian is asked for: its layers, read from a module, its activations, and the loss. No samples."""
