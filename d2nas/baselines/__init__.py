"""The methods that D2NAS is compared with, behind the same interface (``d2nas.method``)."""
