"""Takes simulated or recorded exams, gives trained model bundles and their evaluation.

Read in this order: ``experiment`` (what a TOML file may say), ``data`` (exams through the product's own pipeline into a
cache), ``augment``, ``losses``, ``fit``, ``evaluate``, ``export``; ``commands`` is the command line::

    python -m kstream.training cache    training/experiments/breast-demo.toml
    python -m kstream.training train    training/experiments/breast-demo.toml
    python -m kstream.training evaluate training/experiments/breast-demo.toml
    python -m kstream.training export   training/experiments/breast-demo.toml
"""
