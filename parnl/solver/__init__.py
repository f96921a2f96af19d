"""The algorithm: Newton's method on chunk starts, the affine scan, and what a solve costs."""
