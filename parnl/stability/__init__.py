"""Bounds on the Jacobian that are proofs, Lyapunov exponents, and reports of both."""
