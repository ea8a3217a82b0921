"""Takes an installed kstream, gives numbers: how fast it is beside its peers, measured in one run.

::

    pytest --benchmark                                    everything, from any folder; writes kstream-benchmark.json
    pytest --benchmark --benchmark-quick                  everything once and tiny: does the suite still run?
    pytest --benchmark -k latency                         a part of it
    python -m kstream.benchmarks compare A.json B.json    two runs, with their noise
    python -m kstream.benchmarks table A.json --write README.md

Every test is one thing that is timed: ours, and in turns with it whoever else does the same (``turns.py``). What is
asserted are ratios of one run, never times. ``full_scan.py``, ``full_frame.py``, ``recon_peers.py`` and
``density_peers.py`` are run by hand for the papers' sizes. Modules here import kstream by its full name, for pytest
loads tests by their path.
"""
