"""Takes exams, simulated or public, gives trained model bundles, their evaluation, and studies that compare them.

The loop: ``fit`` (any task, any stages, any number of processes), ``schedule``, ``distributed``, ``logs``. What an
experiment file can name: ``recipes``. One folder for each organ, ``breast`` and ``brain`` with a ``task``, ``heart``
with ``recipe`` and ``tasks``; public data: ``readers``. ``commands`` is what the command line calls::

    kstream train    training/experiments/breast-demo.toml
    kstream evaluate training/experiments/breast-demo.toml
    kstream export   training/experiments/breast-demo.toml --output BUNDLE
"""
