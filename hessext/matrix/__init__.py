"""The Hessian and its parts: assembly, norms, ratios, products, diagonal blocks."""
