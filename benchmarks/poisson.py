"""SIP against differentiable physics on the Poisson equation.

    python benchmarks/poisson.py [--backend jax] [--steps 120] [--batch 16] [--seeds 0 1 2]

See `contest.py` for what is measured.
"""

from __future__ import annotations

from contest import command

if __name__ == "__main__":
    command("Poisson 64²", ("poisson", "poisson_adam"), steps=120)
