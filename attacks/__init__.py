"""Ways to obtain a suspect from a released model, one family a module."""
