"""Takes difference k-space, gives logits in image space: the papers' networks, their registry and their bundles.

``registry`` and ``bundle`` answer without torch; ``unet``, ``breast`` and ``fourier`` are torch modules.
"""
