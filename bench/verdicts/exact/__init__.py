"""Judge evidence whose null is exact by design: no innocents are needed."""
