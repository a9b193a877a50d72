"""What serves one owner: a key to its model, and what keys say of a suspect."""
