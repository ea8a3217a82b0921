from __future__ import annotations

import re
from base64 import b64encode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kstream.errors import RecordingError
from kstream.output.report import format_ms, write_report
from kstream.output.runinfo import Histogram, Lesion, ModelUsed, RunInfo, Score, Setting, StageTime, TimelineEvent
from kstream.types import Notice

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
GIF = b"GIF89a" + bytes(range(40))


def full_run() -> RunInfo:
    latencies_ms = np.concatenate([np.linspace(0.4, 3.1, 211), [512.0]])
    return RunInfo(
        title="exam <script>alert(1)</script>",
        recording="breast_<b>41</b> & co.h5",
        recording_sha256="9f" * 32,
        started_at="2031-04-05T06:07:08+00:00",
        preset="breast_dce",
        received=4259,
        readouts=4003,
        frames=3,
        images_sent=108,
        dropped=17,
        notices=(Notice("info", "angle from user_float"), Notice("warning", "seven of eight coils")),
        label_latency_ms=1243.7,
        readout_latency=Histogram.of(latencies_ms),
        stages=(StageTime.of("GridSpokes", [0.25, 0.75]), StageTime.of("Segment", [])),
        timeline=(
            TimelineEvent(name="acquisition", start_s=0.0, end_s=41.25),
            TimelineEvent(name="network", start_s=41.5, end_s=42.0, detail="frame 2"),
        ),
        scores=(Score(name="lesion <1>", dice=0.812, volume_ml=2.61, truth_ml=2.43),),
        dice=0.735,
        false_positive_ml=0.04,
        settings=(Setting(key="gridding.width", value="5", origin="default"),),
        versions={"numpy": "2.4.1"},
        model=ModelUsed(name="hybrid", sha256="ab" * 32, engine="torch cpu", card="It has never seen a patient."),
        host_cpus=13,
    )


def render(tmp_path: Path, run: RunInfo, images: list[tuple[str, bytes]] | None = None) -> str:
    return write_report(tmp_path / "report" / "index.html", run, images or []).read_text("utf-8")


def lesion(number: int, curve: tuple[float, ...] = (0.0, 168.0, 160.0), **known: object) -> Lesion:
    fields = {
        "name": f"lesion {number}",
        "label": "lesion",
        "volume_ml": 3.25 / number,
        "inner_ml": 2.11 / number,
        "outer_ml": 4.99 / number,
        "centre_mm": (64.44, -41.38, 8.7),
        "slices": (17, 20),
        "largest_slice": 19,
        "enhancement_percent": curve,
        "low_percent": tuple(value - 20 for value in curve),
        "high_percent": tuple(value + 30 for value in curve),
    }
    return Lesion.model_validate(fields | known)


class Outside(HTMLParser):
    """Collects what a page would load or run, and checks that tags close in order."""

    VOID = frozenset(("meta", "img", "link", "br", "input", "use", "path", "line", "polygon", "polyline"))

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]
        if tag in ("script", "link", "iframe", "object"):
            self.loaded.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_report_shows_every_value(tmp_path: Path) -> None:
    html = unescape(render(tmp_path, full_run()))
    for value in (
        "9f" * 32, "2031-04-05T06:07:08+00:00", "breast_dce", "4259", "4003", ">3<", "108", ">17<", "1244",
        "angle from user_float", "seven of eight coils", "212 readouts", "512", "GridSpokes", "0.500", "1.00",
        "acquisition", "41.25 s", "frame 2: 41.50 to 42.00 s", "lesion <1>", "0.812", "2.61 ml", "2.43 ml", "0.735",
        "0.04", "gridding.width", ">5<", "default", "numpy", "2.4.1", "hybrid", "ab" * 32, "torch cpu",
        "It has never seen a patient.", "13 CPUs",
    ):  # fmt: skip
        assert value in html, value
    assert "Research use only" in html


def test_report_loads_nothing_from_outside(tmp_path: Path) -> None:
    html = render(tmp_path, full_run(), [("slice 9", PNG), ("film", GIF)])
    page = Outside()
    page.feed(html)
    assert page.open == []
    assert [resource for resource in page.loaded if not resource.startswith(("data:image/", "#"))] == []
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_names_are_escaped(tmp_path: Path) -> None:
    html = render(tmp_path, full_run(), [('<i>"caption"', PNG)])
    assert "<script" not in html
    assert "<b>41" not in html
    assert "lesion <1>" not in html
    assert '<i>"caption"' not in html
    assert "exam &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "breast_&lt;b&gt;41&lt;/b&gt; &amp; co.h5" in html


def test_pictures_are_embedded_with_their_kind(tmp_path: Path) -> None:
    html = render(tmp_path, full_run(), [("slice 9", PNG), ("film", GIF)])
    assert f"data:image/png;base64,{b64encode(PNG).decode()}" in html
    assert f"data:image/gif;base64,{b64encode(GIF).decode()}" in html


def test_warnings_come_before_figures_and_information(tmp_path: Path) -> None:
    html = render(tmp_path, full_run())
    assert html.index("seven of eight coils") < html.index("Lesion Dice") < html.index("angle from user_float")


def test_run_without_images_says_why_first(tmp_path: Path) -> None:
    run = RunInfo(recording="a.h5", started_at="now", preset="p", no_image_reason="the scan ended in frame 0")
    html = render(tmp_path, run)
    assert '<li class="error"><b>error</b>No image was sent: the scan ended in frame 0</li>' in html
    assert run.summary() == ("received 0, frames 0, images sent 0, dropped 0, no image: the scan ended in frame 0")
    for absent in ("Lesion Dice", "Timeline", "<svg", "Configuration"):
        assert absent not in html


def test_report_serves_light_and_dark(tmp_path: Path) -> None:
    html = render(tmp_path, full_run())
    assert "prefers-color-scheme: dark" in html
    chart = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--accent)" in chart
    assert "var(--ink)" in chart
    assert "#010203" not in chart


def test_timeline_bars_are_scaled_to_the_whole_run(tmp_path: Path) -> None:
    html = render(tmp_path, full_run())
    assert f"left:0.000%;width:{100 * 41.25 / 42:.3f}%" in html
    assert f"left:{100 * 41.5 / 42:.3f}%;width:{100 * 0.5 / 42:.3f}%" in html


@pytest.mark.parametrize("samples_ms", [[7.0], [0.0, 0.0], [3.0, 3.0, 3.0]])
def test_few_or_equal_latencies_are_drawn(tmp_path: Path, samples_ms: list[float]) -> None:
    run = full_run().model_copy(update={"readout_latency": Histogram.of(samples_ms)})
    assert run.readout_latency.n_samples == len(samples_ms)
    assert "<svg" in render(tmp_path, run)


def test_run_json_round_trip_keeps_everything() -> None:
    run = full_run()
    assert RunInfo.from_json(run.to_json()) == run
    assert run.to_json().endswith("}\n")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", full_run().to_json()[:-9], full_run().to_json().replace('"frames"', '"frame"')],
    ids=["empty", "nothing in it", "a list", "cut short", "unknown name"],
)
def test_text_that_is_no_run_is_refused(text: str) -> None:
    with pytest.raises(RecordingError, match="not the account of a run"):
        RunInfo.from_json(text)


def test_run_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="finite"):
        RunInfo(recording="a", started_at="now", preset="p", label_latency_ms=float("nan"))


def test_histogram_counts_every_sample_and_keeps_quantiles_exact() -> None:
    samples_ms = np.random.default_rng(5).lognormal(0.0, 2.0, 3001)
    histogram = Histogram.of(samples_ms)
    assert histogram.n_samples == 3001
    assert histogram.p50_ms == pytest.approx(float(np.median(samples_ms)))
    assert histogram.max_ms == samples_ms.max()
    ratios = np.diff(np.log(histogram.edges_ms))
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
    assert Histogram.of([]) == Histogram()


def test_stage_time_summarises_its_calls() -> None:
    stage = StageTime.of("Segment", [1.0, 2.0, 9.0])
    assert (stage.n_calls, stage.total_ms, stage.p50_ms, stage.max_ms) == (3, 12.0, 2.0, 9.0)
    assert StageTime.of("Segment", []).total_ms == 0


def test_summary_is_one_line_with_every_count() -> None:
    assert full_run().summary() == (
        "received 4259, frames 3, images sent 108, dropped 17, last readout to label 1244 ms, Dice 0.735"
    )


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [(0, "0"), (0.0123, "0.012"), (0.9996, "1.00"), (9.996, "10.0"), (12.34, "12.3"), (99.96, "100"), (1243.7, "1244")],
)
def test_milliseconds_have_three_figures(value_ms: float, text: str) -> None:
    assert format_ms(value_ms) == text


def with_lesions(*lesions: Lesion, times_s: tuple[float, ...] = (0.0, 75.0, 150.0)) -> RunInfo:
    return full_run().model_copy(update={"lesions": lesions, "frame_times_s": times_s})


def test_lesions_show_volume_enhancement_and_what_is_not_known(tmp_path: Path) -> None:
    html = unescape(render(tmp_path, with_lesions(lesion(1, touches=("lesion 2",)), lesion(2, touches=()))))
    for value in (
        "3.25 ml", "2.11 to 4.99 ml", "17 to 20, largest in 19", "64.4, -41.4, 8.7 mm", "+168 %", "-3 % (plateau)",
        "overlaps true lesion 2", "no lesion there", "seconds after the first frame", "enhancement (%)",
        "75 s: +168 %", "How sure the network was of each voxel is not known", "in 2 regions",
    ):  # fmt: skip
        assert value in html, value


@pytest.mark.parametrize(
    ("curve", "shown"),
    [
        ((0.0, 100.0, 160.0), "+30 % (persistent)"),
        ((0.0, 200.0, 140.0), "-20 % (washout)"),
        ((0.0, 50.0, 51.0), "+1 % (plateau)"),
    ],
)
def test_change_after_the_first_rise_has_its_name(tmp_path: Path, curve: tuple[float, ...], shown: str) -> None:
    assert shown in render(tmp_path, with_lesions(lesion(1, curve)))


@pytest.mark.parametrize("curve", [(), (0.0,), (0.0, -100.0, 0.0), (0.0, 0.0, 0.0), (0.0, 9e5), tuple(range(40))])
def test_any_curve_gives_a_page_that_closes_its_tags(tmp_path: Path, curve: tuple[float, ...]) -> None:
    html = render(tmp_path, with_lesions(lesion(1, curve), times_s=()))
    page = Outside()
    page.feed(html)
    assert page.open == []
    assert "nan" not in html.lower().replace("enhancement", "")
    assert ("Enhancement curve" in html) == (len(curve) > 1)


def test_curves_of_one_report_share_their_scale(tmp_path: Path) -> None:
    html = render(tmp_path, with_lesions(lesion(1, (0.0, 500.0)), lesion(2, (0.0, 5.0))))
    first, second = re.findall(r'<svg[^>]*aria-label="Enhancement curve">.*?</svg>', html)
    ticks = [re.findall(r'text-anchor="end">([^<]*)<', svg) for svg in (first, second)]
    assert ticks[0] == ticks[1]
    assert ticks[0][-1] == "600"


def test_small_regions_are_summed_up(tmp_path: Path) -> None:
    html = render(tmp_path, with_lesions(*(lesion(n) for n in range(1, 12))))
    assert html.count("Enhancement curve") == 8
    assert f"3 smaller regions, {3.25 / 9 + 3.25 / 10 + 3.25 / 11:.2f} ml together" in html


def test_dice_of_the_exam_and_of_its_lesions_are_told_apart(tmp_path: Path) -> None:
    html = render(tmp_path, full_run())
    assert "The Dice of 0.735 at the top counts all voxels" in html
    assert "the 0.04 ml that were labelled where no lesion is" in html


def test_defaults_and_the_model_card_unfold_without_scripts(tmp_path: Path) -> None:
    model = ModelUsed(name="hybrid", readme="# Card\n<b>bold</b>")
    settings = (Setting(key="a.b", value="1", origin="--set"), Setting(key="c.d", value="2", origin="default"))
    html = render(tmp_path, full_run().model_copy(update={"model": model, "settings": settings}))
    assert html.index("a.b") < html.index("1 settings with their defaults") < html.index("c.d")
    assert "# Card\n&lt;b&gt;bold" in html
    assert "<script" not in html


def test_frames_that_overlap_are_counted_once(tmp_path: Path) -> None:
    events = [TimelineEvent(name="recon", start_s=a, end_s=b) for a, b in ((1.0, 4.0), (2.0, 3.0), (3.5, 5.25), (7, 8))]
    assert "5.25 s" in render(tmp_path, full_run().model_copy(update={"timeline": tuple(events)}))
