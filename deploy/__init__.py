"""Takes a preset and an image, gives OpenRecon packages; the other files here make the server a service."""
