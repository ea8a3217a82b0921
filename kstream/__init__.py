"""kstream reads MRI raw data while the scanner is still running. For research use only.

The map, in the order in which a scan walks through it (``pipeline.py`` is the file to read first)::

    serve       sockets and files <-> sessions              mrd        bytes <-> messages, files <-> acquisitions
    readouts    acquisitions -> framed readouts             recon      readouts -> coil-combined k-space -> difference
    segment     difference -> label map                     engines    run a network     models    what the networks are
    output      pictures, volumes, report                   simulate   phantoms and a scanner
    stream      stages, runners, telemetry                  config     settings and presets
    training    data, losses, fit, evaluation               types, errors   the vocabulary

Nothing is imported here: each room is imported by its name.
"""
