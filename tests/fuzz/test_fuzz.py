"""Damaged streams: a few thousand in every run, a million by ``python -m tests.fuzz``; and the oracle sees defects."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kstream.config import resolve
from kstream.errors import ConfigError, ProtocolError, ScanError
from kstream.mrd.codec import FORMATS, Decoder, Format, Limits, encode
from kstream.mrd.header import parse_header
from kstream.mrd.messages import Close, Message, MessageId
from kstream.serve.parameters import parse_config_text
from tests.fuzz.campaign import Campaign
from tests.fuzz.mutate import fields, mutate
from tests.fuzz.oracle import Case, Violation, check, fingerprint
from tests.fuzz.seeds import OPENING, XML, acquisition, patched, seeds

N_CASES = 2500
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    return Campaign(seed=20)


def test_damaged_streams_break_nothing(campaign: Campaign) -> None:
    assert campaign.run(range(N_CASES)).failures == []


def test_damaged_streams_break_nothing_where_memory_is_short() -> None:
    """In processes that may take 64 MiB and no more: a length that is believed fails there."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "600", "--seed", "21", "--processes", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["n_cases"] == 600
    assert result["growth_bytes"] < 64 * 2**20


def test_every_fault_case_that_is_bytes_is_a_seed() -> None:
    about_time_load_and_files = {28, *range(30, 39)}
    assert {seed.case for seed in seeds()} == set(range(42)) - about_time_load_and_files


def test_a_case_is_the_same_every_time(campaign: Campaign) -> None:
    again = Campaign(seed=20)
    assert all(campaign.case(number)[0] == again.case(number)[0] for number in range(500))


def test_mutations_reach_every_field_of_every_message() -> None:
    """Each byte of a fixed part is changed by some mutation that leaves the rest of it alone."""
    whole = encode(acquisition())
    touched: set[str] = set()
    for number in range(4000):
        changed = b"".join(mutate([whole], Random(number))[0])
        if len(changed) == len(whole):
            touched |= {
                f.name for f in fields(whole) if changed[f.offset :][: f.n_bytes] != whole[f.offset :][: f.n_bytes]
            }
    assert touched == {f.name for f in fields(whole)}


def test_intact_messages_are_counted_from_the_front() -> None:
    sent = [encode(message) for message in (*OPENING, acquisition(), Close())]
    for number in range(300):
        damaged, n_intact = mutate(sent, Random(number))
        assert damaged[:n_intact] == sent[:n_intact]
        assert n_intact == len(sent) or damaged[n_intact : n_intact + 1] != sent[n_intact : n_intact + 1]


# ---- the oracle sees defects -----------------------------------------------------------------------------------------


def replaced(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    plain = FORMATS[MessageId.ACQUISITION]
    monkeypatch.setitem(FORMATS, MessageId.ACQUISITION, Format(**{**vars(plain), **parts}))


def case_of(*messages: Message | bytes) -> Case:
    stream = [m if isinstance(m, bytes) else encode(m) for m in messages]
    return Case(stream, len(stream), [fingerprint(m) for m in messages if not isinstance(m, bytes)])


LINES = tuple(acquisition(scan_counter=i) for i in range(3))


def test_oracle_accepts_a_good_session() -> None:
    check(case_of(*OPENING, *LINES, Close()), Random(1))


def test_oracle_sees_an_error_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(payload: memoryview) -> Message:
        raise IndexError("out of range")

    replaced(monkeypatch, build=build)
    with pytest.raises(Violation, match="IndexError escaped"):
        check(case_of(*OPENING, *LINES), Random(1))


def test_oracle_sees_a_message_that_changes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Decoder) -> memoryview:
        return self._view[self._start + 2 : self._start + self._needed]  # of the buffer that is used again

    monkeypatch.setattr(Decoder, "_take", take)
    with pytest.raises(Violation, match="read otherwise"):
        check(case_of(*OPENING, *LINES * 40), Random(4))


def test_oracle_sees_samples_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Callable[[memoryview], Any] = FORMATS[MessageId.ACQUISITION].build

    def transposed(payload: memoryview) -> Message:
        got = build(payload)
        got.data = got.data[:, ::-1]
        return got  # type: ignore[no-any-return]

    replaced(monkeypatch, build=transposed)
    with pytest.raises(Violation, match="intact messages were sent"):
        check(case_of(*OPENING, *LINES), Random(1))


def test_oracle_sees_a_length_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = FORMATS[MessageId.ACQUISITION].measure
    replaced(monkeypatch, measure=lambda prefix, limits: measure(prefix, Limits(acquisition_bytes=2**40)))
    huge = patched(acquisition(), 34, b"\xff\x0f\xff\x0f\xff\x0f")
    with pytest.raises(Violation, match="asks for"):
        check(case_of(*OPENING, huge), Random(1))


def test_oracle_sees_an_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(prefix: memoryview, limits: Limits) -> int:
        while True:
            pass

    replaced(monkeypatch, measure=measure)
    monkeypatch.setattr("tests.fuzz.oracle.SLOWEST_S", 0.05)
    with pytest.raises(Violation, match="took more than"):
        check(case_of(*OPENING, *LINES), Random(1))


# ---- what the fuzzer found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["[" * 600 + "]" * 600, "9" * 5000], ids=["nested", "digits"])
def test_a_parameter_that_no_parser_takes_is_text(value: str) -> None:
    """The TOML reader of Python raised RecursionError and ValueError for these."""
    with pytest.raises(ConfigError, match="n_frames"):
        resolve("recon-radial", parameters={"frames.n_frames": value})


@pytest.mark.parametrize(
    "xml",
    [
        b"<a " + b" ".join(b'a%d=""' % i for i in range(200_000)) + b"/>",
        b"<a>" + (b"<b " + b" ".join(b'a%d=""' % i for i in range(30_000)) + b"/>") * 9 + b"</a>",
        b"<a " + b" ".join(b'xmlns:a%d="u"' % i for i in range(60_000)) + b"/>",
        b"<a><!--" + b"-x" * 2**20 + b"--></a>",
    ],
    ids=["one tag", "many attributes", "many namespaces", "comment"],
)
def test_xml_that_takes_a_second_for_ten_megabytes_is_refused_early(xml: bytes) -> None:
    with pytest.raises(ProtocolError, match="more than"):
        parse_header(xml)


def test_xml_that_is_read_in_steps_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parse_header(XML.replace(b"<encoding>", b"<!-- \xc3\xa9 --><encoding>"))
    monkeypatch.setattr("kstream.mrd._xml._STEP_BYTES", 7)
    assert parse_header(whole.xml) == whole


def test_centre_beyond_every_counter_is_refused() -> None:
    xml = XML.replace(b"<center>0</center>", b"<center>" + b"9" * 400 + b"</center>")
    with pytest.raises(ScanError, match="the centre is"):
        parse_header(xml)


def test_nested_json_gives_a_preset_a_setting_or_a_reason() -> None:
    """Reading nests as deep as the interpreter allows; what is made of it must not need to go deeper."""
    for depth in range(900, 1001):
        nested = "[" * depth + "]" * depth
        for text in (f'{{"preset": {nested}}}', f'{{"parameters": {{"a.b": {nested}}}}}'):
            with suppress(ProtocolError):
                name, found = parse_config_text(text)
                assert name == nested or found == {"a.b": nested}
