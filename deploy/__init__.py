"""Takes a model bundle and a host, gives what it needs to run there: container file, scanner-host notes."""
