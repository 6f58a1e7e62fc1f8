"""SIP against differentiable physics on the heat equation.

    python benchmarks/heat.py [--backend jax] [--steps 50] [--batch 16] [--seeds 0 1 2]

See `contest.py` for what is measured.
"""

from __future__ import annotations

from contest import command

if __name__ == "__main__":
    command("heat 64²", ("heat_sip", "heat_adam"), steps=50)
