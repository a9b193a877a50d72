"""Do it, each stage once: here, side by side, on a cluster."""
