"""Takes exams, simulated or public, gives trained model bundles, their evaluation, and studies that compare them.

The loop: ``fit`` (any task, any stages, any number of processes), ``schedule``, ``distributed``, ``logs``. What an
experiment file can name: ``recipes``. Comparisons: ``study``, ``scores``, ``statistics``, ``study_report``. One folder
for each organ, with its ``recipe``; public data: ``readers``. ``commands`` is what the command line calls::

    kstream train    training/experiments/breast-demo.toml
    kstream evaluate training/experiments/breast-demo.toml
    kstream export   training/experiments/breast-demo.toml --output BUNDLE
"""
