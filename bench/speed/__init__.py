"""Has the code become slower? Counts, times beside the fewest passes, turns with a revision."""
