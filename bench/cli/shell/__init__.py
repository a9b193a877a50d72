"""What helps to write a command line and a suite file: completion, a first suite, a schema."""
