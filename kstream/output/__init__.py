"""Takes volumes, label maps and the account of a run, gives files that people look at.

- ``nifti``    volumes with their place in the patient, for viewers
- ``overlay``  labels and ground truth over the magnitude: PNG per slice, GIF through the volume, montage
- ``runinfo``  ``run.json``: everything that a run is accountable for
- ``report``   one HTML file that shows all of it
"""
