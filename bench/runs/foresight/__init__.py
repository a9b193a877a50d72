"""What a run would cost, and whom its methods could read, before anything is run."""
