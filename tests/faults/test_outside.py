"""Seen from outside: metrics, logs, TLS, queries, start and end; and that every row has a test."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from kstream.config import preset_names
from kstream.mrd.messages import Close, Query, Response, Text
from kstream.serve.settings import ServerSettings
from tests.faults.harness import (
    N_IMAGES,
    STARS,
    Client,
    Oracle,
    Server,
    acquisitions,
    good_session,
    opening,
    reference,
    running,
    scan_messages,
    wait_until,
)
from tests.faults.test_host import kstream

SCAN = acquisitions()
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "server.md").read_text("utf-8")


def test_every_row_of_the_fault_cases_has_a_test() -> None:
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    rows = {int(number) for number in re.findall(r"def test_row_(\d\d)_", text)}
    assert rows == set(range(1, 43))


# ---- metrics


def families(server: Server) -> set[str]:
    """Names of our own metrics, as a scrape spells them."""
    return {
        family.name + "_total" * (family.type == "counter")
        for family in text_string_to_metric_families(server.scrape())
        if family.name.startswith("kstream_") and not family.name.endswith("_created")
    }


def test_metrics_page_has_what_the_documentation_lists_and_nothing_else(server: Server) -> None:
    documented = set(re.findall(r"^\| `(kstream_\w+)", PAGE, re.MULTILINE))
    assert documented == families(server)


def test_every_kind_of_bad_input_in_the_code_is_documented_and_no_other() -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "kstream").rglob("*.py"))
    kinds = set(re.findall(r'Notice\([^)]*\bkind="([a-z_]+)"', text))
    section = PAGE[PAGE.index("| `kind` |") : PAGE.index("Worth an alarm")]
    assert kinds
    assert kinds == set(re.findall(r"^\| `([a-z_]+)` \| [^|]* \| [^|]* \|$", section, re.MULTILINE)) - {"kind"}


ELSEWHERE = {"gadgetron", "replay", "checkup", "probe"}
"""Modules of ``serve`` that are no part of the server."""

OUTCOMES = re.compile(r'code="([a-z_]+)"|code = "([a-z_]+)"')


def test_every_outcome_word_in_the_code_is_documented() -> None:
    rooms = ("errors.py", "stream/*.py", "serve/*.py", "mrd/codec.py", "mrd/session.py")
    paths = [path for room in rooms for path in (ROOT / "kstream").glob(room) if path.stem not in ELSEWHERE]
    words = {a or b for path in paths for a, b in OUTCOMES.findall(path.read_text("utf-8"))}
    words |= {f"{limit}_timeout" for limit in ("handshake", "message", "idle")}
    section = PAGE[PAGE.index("## Outcomes") : PAGE.index("## Metrics")]
    documented = set(re.findall(r"`([a-z_]+)`", section))
    assert words - documented == set()


def test_every_option_of_serve_is_documented() -> None:
    shown = kstream("serve", "--help", env={"COLUMNS": "200", "PATH": "/usr/bin", "TERM": "dumb"}).stdout
    options = set(re.findall(r"--[a-z][a-z-]+", shown)) - {"--help"}
    assert len(options) > 20
    assert {option for option in options if option not in PAGE} == set()


def test_every_limit_of_the_settings_is_documented_with_its_default() -> None:
    for field in fields(ServerSettings):
        if field.type in ("float", "int") and field.name != "queue":
            option = "--" + field.name.replace("_", "-")
            (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{option}`")]
            assert f"| {field.default:g} " in row, option


# ---- logs


def test_counters_and_json_lines_tell_what_happened(tmp_path: Path) -> None:
    with running(tmp_path, "--log-format", "json") as own:
        client = good_session(own)
        wait_until(lambda: own.outcomes() == {"completed": 1})
        assert own.metric("kstream_connections_total") == 1
        assert own.metric("kstream_acquisitions_total") == len(SCAN)
        assert own.metric("kstream_frames_total") == STARS.n_frames
        assert own.metric("kstream_images_total") == len(client.images) == N_IMAGES
        assert own.metric("kstream_latency_seconds_count", kind="magnitude") == STARS.n_frames
        assert own.metric("kstream_received_bytes_total") > sum(a.data.nbytes for a in SCAN)
        assert own.metric("kstream_sent_bytes_total") > sum(i.data.nbytes for i in client.images)
        wait_until(lambda: own.metric("kstream_open_sessions") == 0)
        Client(own.port).send(b"\xff\xff").reason()
    lines = [json.loads(line) for line in own.log.splitlines()]
    assert all({"time", "level", "logger", "session", "frame", "code", "message"} <= line.keys() for line in lines)
    sent = [line for line in lines if " sent " in line["message"] and line["frame"] != "-"]
    assert [str(line["frame"]) for line in sent] == ["0", "1", "2"]
    assert {str(line["session"]) for line in sent} == {"1"}
    (refused,) = [line for line in lines if line["level"] == "ERROR"]
    assert (refused["code"], str(refused["session"])) == ("unknown_message", "2")


def test_every_line_of_a_session_in_the_text_log_names_it(oracle: Oracle) -> None:
    before = len(oracle.server.log)
    oracle.accepted(*scan_messages())
    lines = [line for line in oracle.server.log[before:].splitlines() if not line.startswith("  ")]
    assert lines
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING|ERROR) +session [\d-]+  ", line) for line in lines)


# ---- queries


def test_queries_are_answered_before_during_and_after_the_opening(oracle: Oracle) -> None:
    oracle.expect("completed")
    client = Client(oracle.server.port)
    config, header = opening()
    asked = ["kstream::version", "gadgetron::info", "kstream::presets", "who are you"]
    client.send(
        Query(1, asked[0]), config, Query(2, asked[1]), header, Query(3, asked[2]), *SCAN, Query(2**63, asked[3])
    )
    client.send(Close()).success()
    answers = {m.correlation: m.text for m in client.messages if isinstance(m, Response)}
    assert re.match(r"\d+\.\d+", answers[1])
    assert "kstream" in answers[2]
    assert set(json.loads(answers[3])) == set(preset_names())
    assert answers[2**63] == "Unknown query"
    assert client.pixels == reference(oracle.server)


# ---- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """PEM files: the server's, the authority's, a client's."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "server.pem", folder / "authority.pem", folder / "client.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(paths[0]))
    authority.cert_pem.write_to_path(str(paths[1]))
    authority.issue_cert("scanner@example.org").private_key_and_cert_chain_pem.write_to_path(str(paths[2]))
    return paths


@pytest.fixture(scope="module")
def secured(tls_files: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server, ca, _ = tls_files
    folder = tmp_path_factory.mktemp("secured")
    with running(folder, "--tls", str(server), "--tls-clients", str(ca), "--handshake-s", "1") as own:
        yield own


def client_context(ca: Path, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def test_tls_client_gets_the_same_images(tmp_path: Path, tls_files: tuple[Path, Path, Path], server: Server) -> None:
    with running(tmp_path, "--tls", str(tls_files[0])) as own:
        context = client_context(tls_files[1])
        assert good_session(own, tls=context).pixels == reference(server)
        wait_until(lambda: own.outcomes() == {"completed": 1})


def test_mutual_tls_takes_known_clients_and_nobody_else(
    secured: Server, tls_files: tuple[Path, Path, Path], server: Server
) -> None:
    _, ca, certificate = tls_files
    known = client_context(ca, certificate)
    assert good_session(secured, tls=known).pixels == reference(server)
    before = secured.outcomes().get("tls", 0)
    stranger = Client(secured.port, tls=client_context(ca))
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        stranger.socket.recv(1)
    forger = client_context(ca)
    own_authority = trustme.CA()
    own_authority.issue_cert("scanner@example.org").configure_cert(forger)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        Client(secured.port, tls=forger).socket.recv(1)
    wait_until(lambda: secured.outcomes().get("tls", 0) == before + 2)
    assert good_session(secured, tls=known).pixels == reference(server)


def test_plain_client_on_a_tls_port_is_closed_and_counted(
    secured: Server, tls_files: tuple[Path, Path, Path], server: Server
) -> None:
    before = secured.outcomes().get("tls", 0)
    plain = Client(secured.port).send(*scan_messages())
    try:
        while plain.socket.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    silent = Client(secured.port)
    assert silent.socket.recv(1) == b""
    wait_until(lambda: secured.outcomes().get("tls", 0) == before + 2)
    known = client_context(*tls_files[1:])
    assert good_session(secured, tls=known).pixels == reference(server)


def test_tls_client_of_a_plain_server_is_told_by_its_own_library(oracle: Oracle) -> None:
    """A ClientHello begins with 0x16 0x03, which is the id 790."""
    oracle.expect("unknown_message")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        Client(oracle.server.port, tls=ssl.create_default_context())


@pytest.mark.parametrize("what", ["missing", "not a certificate"])
def test_unreadable_tls_file_is_named_at_the_start(tmp_path: Path, what: str) -> None:
    path = tmp_path / "server.pem"
    if what != "missing":
        path.write_text("-----BEGIN NOTHING-----")
    done = kstream("serve", "--port", "0", "--tls", str(path))
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_old_tls_versions_are_refused(secured: Server, tls_files: tuple[Path, Path, Path]) -> None:
    context = client_context(*tls_files[1:])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert good_session(secured, tls=context).images
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        Client(secured.port, tls=context)


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "coils.metod=rss"), "coils.metod"),
        (("--default-preset", "no-such"), "no preset 'no-such'"),
        (("--warm-up", "no-such"), "no preset 'no-such'"),
        (("--worker", "http://x"), "unknown kind of address"),
        (("--tls-clients", "clients.pem"), "--tls"),
    ],
)
def test_wrong_options_end_with_exit_code_2_and_a_reason(arguments: tuple[str, ...], words: str) -> None:
    done = kstream("serve", "--port", "0", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_parameters_after_the_header_are_taken_and_strange_ones_are_named(oracle: Oracle) -> None:
    sent = Text(json.dumps({"version": "1.1.0", "parameters": {"imagesMagnitudeType": "uint16", "strange": 1}}))
    client = oracle.accepted(*opening(), sent, *SCAN, Close())
    assert {image.data.dtype.name for image in client.images} == {"uint16"}
    assert any("strange" in text for text in client.warnings)
