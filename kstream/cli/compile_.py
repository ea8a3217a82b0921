"""``kstream compile``: build an engine for a model, prove it, time it, and keep it for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    model: Annotated[str, typer.Argument(help="name or folder of a model bundle")],
    engine: Annotated[
        str, typer.Option(help="aot, compiled, openvino, onnxruntime, tensorrt; or torch, to time it again")
    ] = "aot",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="a patch, such as 24x320x320; repeat for more [default: the example's]; of a model of cine scans: the "
            "most samples or lines, such as 80000"
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="patches of a run: 1:8, or a list such as 1,2,6 [default: 1 on a CPU, else 1:8]")
    ] = "",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16; auto: the lowest that the engine has")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda")] = "cpu",
    transform: Annotated[
        str, typer.Option(help="Fourier transform as fft (in torch), or gemm (in the engine)")
    ] = "fft",
    freeze: Annotated[
        bool, typer.Option(help="pack weights for each batch; without, one file serves any batch")
    ] = True,
    output: Annotated[Path | None, typer.Option(help="folder for the engine [default: the cache]")] = None,
    json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Build an engine for a model and keep it, if it reproduces the model's float64 reference at every batch size.

    Servers and workers use it by its name. It belongs to this bundle, these library versions and this kind of machine.
    Nothing is built for the engine torch: the precision that the default engine serves in is found out again, and every
    --shape is held to the gate now, so that no frame waits for that.
    """
    from ..engines.memory import keep_large_blocks
    from ..engines.threads import sleep_while_waiting
    from ..errors import ConfigError, did_you_mean
    from ..models.bundle import Bundle
    from .tables import print_rows

    for name, value, known in (
        ("engine", engine, ("aot", "compiled", "openvino", "onnxruntime", "tensorrt", "torch")),
        ("precision", precision, ("auto", "fp32", "bf16", "fp16")),
        ("transform", transform, ("fft", "gemm")),
    ):
        if value not in known:
            raise ConfigError(f"unknown {name} {value[:80]!r}", hint=did_you_mean(value, known))
    if engine == "torch" and (batch or transform != "fft" or not freeze or output):
        raise ConfigError(
            "engine torch takes any batch and is not built: --batch, --transform, --no-freeze and --output have no "
            "meaning for it",
            hint="kstream compile MODEL --engine torch, or another engine",
        )
    sleep_while_waiting()
    keep_large_blocks()
    from ..engines.build import buckets, compile_engine, plan_for, space  # imports torch

    batches = buckets(batch or ("1" if device.startswith("cpu") else "1:8"))
    shapes = tuple(space(text) for text in shape or ())
    bundle = Bundle.load(model)
    if engine == "torch":
        from ..engines.calibrate import calibrate_again

        _show(calibrate_again(bundle, device, precision, shapes), json)
        return
    plan = plan_for(bundle, engine, precision, device, shapes, batches, transform, freeze)
    folder, manifest = compile_engine(bundle, plan, output)
    _show(manifest.summary(folder), json)
    if json:
        return
    rows: list[tuple[str, ...]] = [
        (size, f"{ms:.1f}", f"{ms / int(size.partition('x')[0]):.1f}") for size, ms in manifest.times_ms.items()
    ]
    print_rows(rows, "batch x patch", "ms", "ms per patch")


def _show(said: dict[str, Any], as_json: bool) -> None:
    """What was made, for people or programs."""
    from .tables import print_json, print_rows

    if as_json:
        print_json(said)
        return
    print_rows([(key, str(value)) for key, value in said.items() if key != "times_ms"])
