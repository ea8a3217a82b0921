"""Who has the last word on a setting: the server's own --set, and the client is told."""

import json

import numpy as np
import pytest

from kstream.mrd.messages import Close, ConfigFile, Header, Text
from kstream.serve.server import SUMMARY, MrdServer, ServerSettings
from tests.scans import StackOfStars
from tests.serve.conftest import Client

STARS = StackOfStars()


@pytest.mark.parametrize("settings", [ServerSettings(settings=("images.magnitude_series=7", "coils.kernel=5"))])
def test_what_set_decides_differently_is_told_to_the_client(server: MrdServer) -> None:
    sent = {"images.magnitude_series": 9, "coils.kernel": 5, "coils.crop": 0.7}
    client = Client(server.port)
    client.send(
        ConfigFile("breast-dce-recon"),
        Header(STARS.scan().xml),
        Text(json.dumps({"summary": True, "parameters": sent})),
        *STARS.acquisitions(np.random.default_rng(0)),
        Close(),
    )
    client.receive_all()
    warnings = [text.strip() for text in client.texts if text.startswith("WRN") and "--set" in text]
    assert warnings == ["WRN the server's own --set decides, not what was sent: images.magnitude_series"]
    assert {int(image.header["image_series_index"]) for image in client.images} == {7}
    (summary,) = [json.loads(text[len(SUMMARY) :]) for text in client.texts if text.startswith(SUMMARY)]
    rows = {key: (value, origin) for key, value, origin in summary["config"]}
    assert rows["images.magnitude_series"] == ("7", "--set")
    assert rows["coils.kernel"] == ("5", "--set")
    assert rows["coils.crop"] == ("0.7", "client")
