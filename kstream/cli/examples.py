"""One line on each command for ``kstream --help``, and two examples for the end of its own ``--help``."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("kstream demo --output demo-run", "kstream demo --case heart --seed 9010 --speed 0 --quiet"),
    "simulate": (
        "kstream simulate scan.h5 --seed 7 --lesions 2",
        "kstream simulate head.h5 --case brain --slices 12 --noise 0.2",
    ),
    "serve": (
        "kstream serve --port 9002 --record scans --watch",
        "kstream serve --host 0.0.0.0 --tls server.pem --metrics-port 9100",
    ),
    "worker": (
        "kstream worker --address ipc:///run/kstream/worker-1 --model breast-gate-small",
        "kstream worker --make-keys keys",
    ),
    "compile": (
        "kstream compile breast-gate-small --engine aot --shape 16x128x128 --batch 1:8 --precision bf16",
        "kstream compile breast-gate-small --engine openvino --shape 16x128x128 --output engine --json",
    ),
    "replay": (
        "kstream replay scan.h5 --speed 1 --results run",
        "kstream replay scan.h5 --to-stream - | kstream stream > out.mrd",
    ),
    "stream": (
        "ismrmrd_hdf5_to_stream -i scan.h5 --use-stdout | kstream stream --preset recon-radial > images.mrd",
        "kstream replay scan.h5 --to-stream - | kstream stream --device cuda > images.mrd",
    ),
    "import": (
        "kstream import head.mat scan.h5 --key raw --axes samples,lines,coils --angles half-circle",
        "kstream import poor.h5 scan.h5 --trajectory radial --trajectory-units cycles_per_metre",
    ),
    "inspect": ("kstream inspect scan.h5", "kstream inspect scan.h5 --json"),
    "recover": ("kstream recover scans", "kstream recover scans/one.journal --output mended --remove"),
    "report": ("kstream report demo-run", "kstream report run --recording scan.h5 --truth scan.truth.nii.gz --json"),
    "export": (
        "kstream export demo-run --format dicom --output dicom",
        "kstream export experiment.toml --output bundles/my-model",
    ),
    "train": (
        "kstream train training/experiments/breast-demo.toml",
        "torchrun --nproc-per-node 2 -m kstream train experiment.toml --device cuda --tensorboard",
    ),
    "evaluate": (
        "kstream evaluate training/experiments/breast-demo.toml",
        "kstream evaluate experiment.toml --run runs/second --cohort test",
    ),
    "study": (
        "kstream study training/studies/breast.toml --stage train --seed 1",
        "kstream study training/studies/breast.toml --stage evaluate --stage report",
    ),
    "config": ("kstream config", "kstream config breast-dce"),
    "config show": ("kstream config show breast-dce", "kstream config show breast-dce --set coils.method=rss --json"),
    "config init": ("kstream config init recon-radial", "kstream config init breast-dce --output site.toml"),
    "config validate": (
        "kstream config validate site.toml",
        "kstream config validate site.toml --preset recon-radial --json",
    ),
    "config schema": ("kstream config schema", "kstream config schema > kstream.schema.json"),
    "models": ("kstream models list", "kstream models show breast-magnitude --json"),
    "doctor": ("kstream doctor", "kstream doctor --port 9002 --folder scans --json"),
    "ping": ("kstream ping", "kstream ping 10.0.0.5:9002 --timeout 2"),
    "package openrecon": (
        "kstream package openrecon --name 'Breast DCE' --vendor Lab --version 1.0.0 --output package",
        "kstream package openrecon --name 'Breast DCE' --vendor Lab --version 1.0.0 --output package --image IMAGE.tar",
    ),
}


SHORT: dict[str, str] = {
    "demo": "One scan, end to end: simulate, serve, replay, report.",
    "simulate": "Make a scan whose truth is known.",
    "serve": "The MRD server that scanners send to.",
    "worker": "A process that runs networks for servers.",
    "compile": "Build a faster engine for a model, and prove it.",
    "replay": "Send a recording to a server.",
    "stream": "One session over standard input and output.",
    "import": "Turn raw data of other shapes into a recording.",
    "inspect": "Show what is in a recording.",
    "recover": "Turn journals of a server into recordings.",
    "report": "Make the report of a run again.",
    "export": "Write images as NIfTI, NRRD or DICOM; or a model.",
    "train": "Train a network, or go on with a run.",
    "evaluate": "Score a trained network on test exams.",
    "study": "Compare networks: data, training, scores, report.",
    "config": "Show, write and check settings.",
    "models": "Show networks and trained models.",
    "doctor": "Check this installation.",
    "ping": "Ask a server whether it answers.",
    "package": "Make packages for scanners.",
}


def of(command: str) -> str | None:
    r"""The examples of a command as the end of its help; None if it has none. ``\b`` keeps lines as they are."""
    lines = EXAMPLES.get(command)
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) if lines else None
