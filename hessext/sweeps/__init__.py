"""`hessext.sweep`: norms and ratios at many sizes over many random draws."""
