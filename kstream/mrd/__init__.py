"""Takes bytes and files, gives messages, and the reverse; owns no socket.

``messages`` is the vocabulary of the wire, ``codec`` turns bytes into messages and back, ``session`` says which message
may follow which, ``header`` reads and writes the XML header, ``recording`` the ISMRMRD HDF5 layout, ``images`` makes
image messages from k-space and label maps, ``meta`` their attributes.
"""
