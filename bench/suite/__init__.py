"""What is asked: a YAML file, its grid of cells, and the stages that answer them."""
