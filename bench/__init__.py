"""Who owns this vision foundation model? Methods crossed with attacks, answered with records."""
