"""Takes Gadgetron connections, gives what kstream makes of their items."""
