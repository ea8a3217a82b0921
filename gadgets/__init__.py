"""Room for the callables that Gadgetron launches in its own chain. None is here yet; use the MRD server meanwhile."""
