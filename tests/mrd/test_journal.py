"""Journals as files: what is written is read back, up to the first byte that is cut or changed, and never beyond."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kstream.errors import RecordingError
from kstream.mrd.codec import encode
from kstream.mrd.journal import (
    MAGIC,
    JournalFile,
    JournalReader,
    is_being_written,
    is_journal,
    recover_leftovers,
)
from kstream.mrd.messages import (
    WAVEFORM_HEADER,
    Close,
    ConfigFile,
    ConfigText,
    Header,
    Text,
    Waveform,
    new_acquisition,
)
from kstream.mrd.recording import Recording, write_recording
from kstream.mrd.recovering import JournalRecording, find_journals, open_recording, recover_journal
from kstream.types import Acquisition
from tests.scans import StackOfStars

with warnings.catch_warnings():
    import ismrmrd

CHUNKS = [bytes([65 + i]) * (7 * i + 1) for i in range(5)]
XML = StackOfStars().scan().xml


def journal(folder: Path, chunks: list[bytes], session: int = 3) -> JournalFile:
    """An open journal with some chunks, the first after 1000 ns, each 10 ns later than the one before."""
    file = JournalFile.create(folder, session, "127.0.0.1:50000")
    for i, chunk in enumerate(chunks):
        file.append(memoryview(chunk), 1000 + 10 * i)
    return file


def sealed(folder: Path, chunks: list[bytes], complete: bool = True, reason: str = "") -> Path:
    return journal(folder, chunks).seal(complete, reason)


def read(path: Path) -> tuple[list[tuple[int, bytes]], JournalReader]:
    with JournalReader(path) as reader:
        return list(reader.records()), reader


def some_acquisitions(n: int = 7) -> list[Acquisition]:
    rng = np.random.default_rng(5)
    return [
        new_acquisition(
            rng.standard_normal((3, 11, 2)).astype("f4").view("c8")[..., 0],
            rng.standard_normal((11, 2)).astype("f4"),
            scan_counter=i,
        )
        for i in range(n)
    ]


def a_waveform(number: int = 1) -> Waveform:
    header = np.zeros(1, WAVEFORM_HEADER)[0]
    header["version"], header["waveform_id"], header["scan_counter"] = 1, 2, number
    header["channels"], header["number_of_samples"] = 3, 5
    return Waveform(header, np.arange(15, dtype=np.uint32).reshape(3, 5) + np.uint32(number))


def session_bytes(acquisitions: list[Acquisition], *, close: bool = True) -> bytes:
    messages = [ConfigFile("recon-radial"), Header(XML), *acquisitions]
    return b"".join(map(encode, messages)) + (encode(Close()) if close else b"")


def in_chunks(stream: bytes, n_bytes: int) -> list[bytes]:
    return [stream[i : i + n_bytes] for i in range(0, len(stream), n_bytes)]


# ---- the format


def test_journal_gives_back_bytes_times_and_end(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    records, reader = read(path)
    assert records == [(1000 + 10 * i, chunk) for i, chunk in enumerate(CHUNKS)]
    assert (reader.head.session, reader.head.peer) == (3, "127.0.0.1:50000")
    assert reader.end is not None
    assert reader.end.complete
    assert (reader.end.n_bytes, reader.end.n_records) == (75, 5)
    assert (reader.fault, reader.is_damaged, reader.bytes_lost) == ("", False, 0)


def test_name_has_date_and_session_only_and_file_is_private(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS, session=17)
    (part,) = tmp_path.iterdir()
    assert part.name.endswith("-000017.journal.part")
    path = file.seal(True)
    assert [p.name for p in tmp_path.iterdir()] == [part.name.removesuffix(".part")]
    stamp = path.name.removesuffix("-000017.journal")
    assert stamp[8] == "T"
    assert stamp.endswith("Z")
    assert stamp.replace("T", "").replace("Z", "").replace(".", "").isdigit()
    assert path.stat().st_mode & 0o777 == 0o600


def test_reason_of_an_incomplete_journal_is_kept(tmp_path: Path) -> None:
    _, reader = read(sealed(tmp_path, CHUNKS, False, "the peer went away"))
    assert reader.end is not None
    assert (reader.end.complete, reader.end.reason) == (False, "the peer went away")


def test_two_journals_of_one_moment_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kstream.mrd.journal as module

    class StoppedClock(module.datetime):  # type: ignore[misc, name-defined]
        @classmethod
        def now(cls, tz: object = None) -> module.datetime:  # type: ignore[name-defined]
            return module.datetime(2026, 1, 2, tzinfo=module.UTC)

    monkeypatch.setattr(module, "datetime", StoppedClock)
    first, second = journal(tmp_path, CHUNKS), journal(tmp_path, CHUNKS[:2])
    paths = {first.seal(True), second.seal(True), sealed(tmp_path, CHUNKS[:1])}
    assert sorted(len(read(path)[0]) for path in paths) == [1, 2, 5]


@pytest.mark.parametrize("content", [b"", b"\x89KSJ", MAGIC, MAGIC + b"x" * 100, b"\x89HDF\r\n\x1a\n" + b"0" * 99])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match="is not a journal"):
        read(path)
    assert is_journal(path) == (content[:8] == MAGIC)


def test_journal_of_a_later_format_names_the_version_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("kstream.mrd.journal.JournalHead.__init__.__defaults__", ("9.9", 2))
        path = sealed(tmp_path, CHUNKS)
    with pytest.raises(RecordingError, match="format 2, this version reads 1"):
        read(path)


def test_journal_cut_at_any_byte_gives_the_records_before_the_cut(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    whole = path.read_bytes()
    first = whole.index(b"DATA")
    ends = [first + sum(20 + len(c) for c in CHUNKS[:n]) for n in range(len(CHUNKS) + 1)]
    for kept in range(first, len(whole)):
        path.write_bytes(whole[:kept])
        records, reader = read(path)
        n_whole = sum(end <= kept for end in ends) - 1
        assert [chunk for _, chunk in records] == CHUNKS[:n_whole]
        assert reader.end is None
        assert reader.fault.startswith(f"at byte {ends[n_whole]}: the file ends")
        assert not reader.is_damaged
        assert reader.bytes_lost == kept - ends[n_whole]


def test_any_changed_bit_is_found_and_what_came_before_is_kept(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    whole = path.read_bytes()
    first = whole.index(b"DATA")
    for at in range(first, len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        records, reader = read(path)
        assert [chunk for _, chunk in records] == CHUNKS[: len(records)]
        assert reader.fault
        assert len(records) < len(CHUNKS) or reader.end is None or reader.is_damaged


def test_zeros_that_a_power_cut_leaves_are_a_cut_not_damage(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS)
    file.close()
    with file.path.open("ab") as end:
        end.write(bytes(4096))
    records, reader = read(file.path)
    assert len(records) == 5
    assert not reader.is_damaged
    assert reader.bytes_lost == 4096


def test_bytes_behind_the_end_and_wrong_totals_are_damage(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    assert "4 bytes follow the end record" in read(path)[1].fault
    first, second = (whole.index(b"DATA", whole.index(b"DATA") + n) for n in (0, 1))
    path.write_bytes(whole[:first] + whole[second:])
    _, reader = read(path)
    assert reader.is_damaged
    assert "counts 75 bytes in 5 records, but 74 in 4 were read" in reader.fault


def test_full_disk_keeps_what_fitted(tmp_path: Path) -> None:
    """A limit on the size of files in a process of its own: the last record is cut to what the file takes."""
    code = (
        "import os, resource, sys; from pathlib import Path; from kstream.mrd.journal import JournalFile\n"
        "file = JournalFile.create(Path(sys.argv[1]), 1, 'x')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try: [file.append(memoryview(os.urandom(1) * 30_000), i) for i in range(9)]\n"
        "except OSError as error: print(error.strerror, file.seal(False, 'no room').name)"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    (path,) = tmp_path.iterdir()
    assert said.split()[-1] == path.name
    assert said.startswith("File too large")
    records, reader = read(path)
    assert [len(chunk) for _, chunk in records[:3]] == [30_000] * 3
    assert len(records) == 4
    assert 3000 < len(records[3][1]) < 10_000
    assert reader.end is not None
    assert (reader.end.reason, reader.fault) == ("no room", "")


def test_long_payload_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = journal(tmp_path, [])
    with monkeypatch.context() as patch:
        patch.setattr("kstream.mrd.journal.MAX_RECORD_BYTES", 13)
        file.append(memoryview(bytes(range(31))), 0)
    records, _ = read(file.seal(True))
    assert [len(chunk) for _, chunk in records] == [13, 13, 5]
    assert b"".join(chunk for _, chunk in records) == bytes(range(31))


def test_deleted_file_is_noticed_by_sync_and_seal(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS)
    file.path.unlink()
    with pytest.raises(OSError, match="deleted"):
        file.sync()
    with pytest.raises(OSError, match="deleted"):
        file.seal(True)
    assert list(tmp_path.iterdir()) == []


# ---- leftovers


def test_leftover_of_a_dead_writer_is_sealed_with_its_reason(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS)
    file.close()
    with file.path.open("ab") as end:
        end.write(b"DATA\x05")
    (leftover,) = recover_leftovers(tmp_path)
    records, reader = read(leftover.path)
    assert leftover.path.name.endswith(".journal")
    assert [chunk for _, chunk in records] == CHUNKS
    assert reader.end is not None
    assert (reader.end.complete, reader.end.reason) == (False, "the server died while it recorded")
    assert (leftover.n_bytes, leftover.bytes_lost, reader.bytes_lost, reader.fault) == (75, 5, 5, "")
    assert recover_leftovers(tmp_path) == []


def test_journal_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS)
    assert is_being_written(file.path)
    assert recover_leftovers(tmp_path) == []
    assert recover_journal(file.path).status == "in use"
    path = file.seal(True)
    assert not is_being_written(path)


def test_leftover_that_was_sealed_but_not_renamed_keeps_its_end(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    path.rename(path.with_name(path.name + ".part"))
    (leftover,) = recover_leftovers(tmp_path)
    _, reader = read(leftover.path)
    assert reader.end is not None
    assert reader.end.complete


def test_damaged_leftover_is_renamed_and_not_cut(tmp_path: Path) -> None:
    file = journal(tmp_path, CHUNKS)
    file.close()
    damaged = bytearray(file.path.read_bytes())
    damaged[damaged.index(b"BBBB")] ^= 1
    file.path.write_bytes(damaged)
    (leftover,) = recover_leftovers(tmp_path)
    assert leftover.path.read_bytes() == damaged
    assert "checksum" in leftover.reason


def test_empty_leftovers_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "a.journal.part").write_bytes(b"")
    (tmp_path / "b.journal.part").write_bytes(b"something else entirely")
    (tmp_path / "c.txt").write_bytes(b"")
    (leftover,) = recover_leftovers(tmp_path)
    assert "held nothing" in leftover.reason
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.journal.part", "c.txt"]


def test_leftovers_of_a_missing_folder_are_a_recording_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be read"):
        recover_leftovers(tmp_path / "gone")


# ---- recovery


def test_ismrmrd_reads_what_was_recovered(tmp_path: Path) -> None:
    sent = some_acquisitions()
    stream = session_bytes(sent[:4], close=False) + encode(a_waveform(1)) + encode(a_waveform(2))
    stream += b"".join(map(encode, sent[4:])) + encode(Close())
    found = recover_journal(sealed(tmp_path, in_chunks(stream, 101)))
    assert (found.status, found.reason, found.bytes_lost) == ("complete", "", 0)
    assert (found.n_acquisitions, found.n_waveforms, found.bytes_received) == (7, 2, len(stream))
    assert found.output is not None
    with ismrmrd.Dataset(found.output, mode="r") as dataset:
        assert dataset.read_xml_header() == XML
        assert dataset.number_of_acquisitions() == 7
        for i, ours in enumerate(sent):
            theirs = dataset.read_acquisition(i)
            np.testing.assert_array_equal(theirs.data, ours.data)
            np.testing.assert_array_equal(theirs.traj, ours.trajectory)
            assert bytes(theirs.getHead()) == ours.header.tobytes()
        assert dataset.number_of_waveforms() == 2
        for i in range(2):
            waveform = dataset.read_waveform(i)
            np.testing.assert_array_equal(waveform.data, a_waveform(i + 1).data)
            assert (waveform.waveform_id, waveform.scan_counter) == (2, i + 1)
    with Recording(found.output) as recording:
        assert recording.incomplete == ""


def test_configuration_and_parameters_are_kept_beside_the_header(tmp_path: Path) -> None:
    import h5py

    parameters = json.dumps({"parameters": {"images.magnitude_type": "uint16"}})
    messages = [ConfigText('{"preset": "x"}'), Header(XML), Text(parameters), Text("hello"), *some_acquisitions(1)]
    stream = b"".join(map(encode, [*messages, Close()]))
    found = recover_journal(sealed(tmp_path, [stream]))
    assert found.n_other == 1
    assert not found.is_removable
    with h5py.File(found.output) as file:
        assert file["dataset/config"][0] == b'{"preset": "x"}'
        assert file["dataset/configAdditional"][0] == parameters.encode()


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), n_bytes=st.sampled_from([1, 97, 512, 5000]))
def test_session_cut_anywhere_gives_every_acquisition_that_was_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, n_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    sent = some_acquisitions()
    sizes = [len(encode(a)) for a in sent]
    before = len(session_bytes([], close=False))
    cut %= before + sum(sizes)
    stream = session_bytes(sent, close=False)[:cut]
    n_whole = sum(before + sum(sizes[: n + 1]) <= cut for n in range(len(sent)))
    found = recover_journal(sealed(folder, in_chunks(stream, n_bytes), False, "the peer went away"))
    assert found.n_acquisitions == n_whole
    assert found.reason == "the peer went away"
    if n_whole:
        assert found.status == "incomplete"
        assert found.output is not None
        with Recording(found.output) as recording:
            assert recording.incomplete == "the peer went away"
            assert [encode(a) for a in recording.acquisitions()] == [encode(a) for a in sent[:n_whole]]
        assert found.bytes_lost == cut - before - sum(sizes[:n_whole])
    else:
        assert (found.status, found.output) == ("empty", None)


def test_reason_of_any_length_and_text_with_nul_are_stored(tmp_path: Path) -> None:
    stream = b"".join(map(encode, [ConfigText("a\0b"), Header(XML), *some_acquisitions(2)]))
    found = recover_journal(sealed(tmp_path, [stream], False, "why \0 \ud800 " * 30_000))
    assert found.output is not None
    with Recording(found.output) as recording:
        assert recording.incomplete.startswith("why ? ? why ? ?")
        assert recording.n_acquisitions == 2


def test_damage_in_the_journal_keeps_what_came_before(tmp_path: Path) -> None:
    sent = some_acquisitions()
    stream = session_bytes(sent)
    path = sealed(tmp_path, in_chunks(stream, len(encode(sent[0]))))
    damaged = bytearray(path.read_bytes())
    damaged[-700] ^= 1
    path.write_bytes(damaged)
    found = recover_journal(path)
    assert found.status == "incomplete"
    assert "does not match its checksum" in found.reason
    assert 0 < found.n_acquisitions < 7
    assert not found.is_removable


def test_bytes_that_are_not_mrd_end_the_recovery_with_the_reason(tmp_path: Path) -> None:
    stream = session_bytes(some_acquisitions(3), close=False) + b"\xff\xff" + b"?" * 50
    found = recover_journal(sealed(tmp_path, [stream], False, "ignored"))
    assert (found.status, found.n_acquisitions) == ("incomplete", 3)
    assert "id 65535 is unknown" in found.reason
    assert found.bytes_lost == 52


def test_session_that_closed_after_the_handshake_has_nothing_to_recover(tmp_path: Path) -> None:
    found = recover_journal(sealed(tmp_path, [encode(ConfigFile("isalive")) + encode(Close())]))
    assert (found.status, found.n_acquisitions, found.output) == ("empty", 0, None)
    assert "nothing was measured" in found.reason
    assert found.is_removable


def test_existing_file_is_never_touched(tmp_path: Path) -> None:
    path = sealed(tmp_path, [session_bytes(some_acquisitions())])
    there = tmp_path / f"{path.stem}.h5"
    there.write_bytes(b"mine")
    assert recover_journal(path).status == "exists"
    assert there.read_bytes() == b"mine"


def test_acquisition_larger_than_the_default_limits_is_recovered(tmp_path: Path) -> None:
    """The limits were the server's, and an option may have raised them."""
    large = new_acquisition(np.ones((129, 65535), "c8"), scan_counter=1)
    assert len(encode(large)) > 64 * 2**20
    found = recover_journal(sealed(tmp_path, in_chunks(session_bytes([large]), 2**20)))
    assert (found.status, found.n_acquisitions) == ("complete", 1)


def test_journals_of_a_folder_are_found_and_a_missing_path_is_named(tmp_path: Path) -> None:
    path = sealed(tmp_path, CHUNKS)
    left = journal(tmp_path, CHUNKS)
    left.close()
    (tmp_path / "scan.h5").write_bytes(b"")
    assert find_journals(tmp_path) == sorted([path, left.path])
    with pytest.raises(RecordingError, match="no file gone"):
        find_journals(tmp_path / "gone")
    (tmp_path / "none").mkdir()
    with pytest.raises(RecordingError, match="no journals"):
        find_journals(tmp_path / "none")


# ---- journals as recordings


def test_journal_opens_like_a_recording_with_times_of_arrival(tmp_path: Path) -> None:
    sent = some_acquisitions()
    path = sealed(tmp_path, [session_bytes([], close=False), *map(encode, sent), encode(Close())])
    write_recording(tmp_path / "scan.h5", XML, sent)
    with open_recording(path) as ours, open_recording(tmp_path / "scan.h5") as other:
        assert isinstance(ours, JournalRecording)
        assert isinstance(other, Recording)
        assert (ours.n_acquisitions, ours.xml, ours.scan) == (other.n_acquisitions, other.xml, other.scan)
        got = list(ours.acquisitions())
        assert [encode(a) for a in got] == [encode(a) for a in other.acquisitions()]
    assert [a.received_ns for a in got] == [1000 + 10 * (i + 1) for i in range(7)]


def test_journal_without_acquisitions_is_refused_as_a_recording(tmp_path: Path) -> None:
    path = sealed(tmp_path, [encode(ConfigFile("x"))], False, "the peer went away")
    with pytest.raises(RecordingError, match="has no acquisitions") as caught, open_recording(path):
        pass
    assert caught.value.likely == "the peer went away"
