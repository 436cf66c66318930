"""What the numbers in docs/performance.md come from. `scripts/bench` runs it."""
