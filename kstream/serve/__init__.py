"""Takes sockets and files, gives sessions: the MRD server and the client that replays recordings."""
