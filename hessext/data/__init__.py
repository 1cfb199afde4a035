"""What a Hessian is a sum over: samples in memory, or batches that are read when they are needed."""
