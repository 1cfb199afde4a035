"""The map whose Hessian is asked for: its layers and activations, read from a module, and the loss. No samples are held."""
