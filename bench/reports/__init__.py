"""What the records say, and whether they hold."""
