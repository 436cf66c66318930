"""The measurements behind docs/performance.md. `scripts/bench` runs them."""
