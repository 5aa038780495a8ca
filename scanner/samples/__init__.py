"""`bdscan samples`: which images of a folder carry a trigger for a model."""
