"""Room for what puts kstream on a host beside a scanner: engines, container file. Nothing is here yet."""
