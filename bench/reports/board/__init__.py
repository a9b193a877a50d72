"""Set methods side by side over any number of results folders, without pretending to an order."""
