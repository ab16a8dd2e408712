"""The page as a file: what is in it is what the session answers, and nothing in a name gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import attention_transfer as at
from attention_transfer.errors import UserError
from attention_transfer.explorer import page_file
from attention_transfer.explorer.answers import Answer
from attention_transfer.explorer.page_file import chosen_layers, collected, html_of, quantised
from attention_transfer.explorer.session import Explorer, Session
from tests.explorer.conftest import explored

LAST = {"0": (2,), "1": (0, 2)}


class Page(HTMLParser):
    """The elements of a page, and the text in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> str:
    """The front end is not what is tested here."""
    text = "export const mount = '<b>ä';\n"
    monkeypatch.setattr(page_file, "page_script", lambda: text)
    return text


def rows_of(found: Any) -> NDArray[np.float32]:
    """(H, Q, N), as the page computes them."""
    shape = (found["heads"], found["queries"], found["tokens"])
    values = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(shape)
    return values * np.frombuffer(base64.b64decode(found["scale"]), "<f4").reshape(shape[:2])[..., None]


def asked(session: Session, network: str, image: str, layer: int, query: int | str) -> NDArray[np.float32]:
    answer: Answer = session.answer("rows", {"network": network, "image": image, "layer": layer, "query": query})
    return np.frombuffer(answer.buffers[0], "<f4").reshape(answer.meta["heads"], -1)  # type: ignore[arg-type] # a number


def test_rows_are_right_within_the_255th_of_their_maximum(explorer: Explorer) -> None:
    content: Any = json.loads(json.dumps(collected(explorer, LAST)))
    session = Session(explorer)
    assert sorted(content["rows"]) == sorted(f"{n}/{i}/{layer}" for n in "01" for i in "012" for layer in LAST[n])
    for key, found in content["rows"].items():
        network, image, layer = key.split("/")
        rows_HQN = rows_of(found)
        assert rows_HQN.shape == (3, 5, 5)
        for query in range(5):
            expected = asked(session, network, image, int(layer), query)
            bound = expected.max(axis=-1, keepdims=True) / 255
            assert (np.abs(rows_HQN[:, query] - expected) <= bound).all()


def test_images_places_and_state_are_those_of_the_session(explorer: Explorer) -> None:
    content: Any = json.loads(json.dumps(collected(explorer, LAST)))
    session = Session(explorer)
    shown = session.answer("image", {"image": "2"})
    assert base64.b64decode(content["images"]["2"]["data"]) == shown.buffers[0]
    assert content["images"]["2"]["meta"] == shown.meta
    assert content["place"]["1/2"] == session.answer("place", {"network": "1", "image": "2"}).meta
    state = json.loads(json.dumps(session.answer("state", {}).meta))
    assert content["state"] == {**state, "upload": False, "causal": False}


def test_without_a_class_token_the_mean_query_is_the_last(explorer: Explorer, tiny_vit: Callable[..., Any]) -> None:
    bare = Explorer([explored("0", tiny_vit(class_token=False, global_pool="avg"))], explorer.offered[:1])
    content: Any = collected(bare, {"0": (1,)})
    rows_HQN = rows_of(content["rows"]["0/0/1"])
    assert rows_HQN.shape == (3, 5, 4)
    expected = asked(Session(bare), "0", "0", 1, "mean")
    assert (np.abs(rows_HQN[:, 4] - expected) <= expected.max(axis=-1, keepdims=True) / 255).all()


def test_a_row_of_nothing_stays_nothing() -> None:
    scale, values = quantised(np.array([[0, 0], [0.5, 0.26]], np.float32))
    assert (scale.tolist(), values.tolist()) == ([0, pytest.approx(0.5 / 255)], [[0, 0], [255, 133]])


def test_names_stay_inside_the_element_that_they_stand_in(explorer: Explorer, script: str) -> None:
    evil = "</script><script>alert(1)</script><!--&amp;\u2028 ä"
    content: Any = collected(explorer, LAST)
    content["state"]["images"][0]["name"] = evil
    page = Page(html_of(content, title=evil))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert json.loads(page.scripts[0])["state"]["images"][0]["name"] == evil
    assert page.scripts[1] == script


def test_the_policy_lets_only_this_script_run(explorer: Explorer, script: str) -> None:
    page = Page(html_of(collected(explorer, LAST)))
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy") or ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; img-src data: blob:;" in policy
    assert "unsafe" not in policy
    main, data = (next(a for tag, a in page.tags if tag == name) for name in ("main", "script"))
    assert main["data-explore"] == data["id"]
    assert not [a for _, a in page.tags if "src" in a or "href" in a]


def test_a_script_that_would_end_its_element_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_file, "page_script", lambda: "'</SCRIPT>'")
    with pytest.raises(ValueError, match="build it anew"):
        html_of({})


def test_as_many_layers_as_there_is_room_for(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    content: Any = collected(explorer, LAST)
    layer = len(content["rows"]["0/0/2"]["data"]) + len(content["rows"]["0/0/2"]["scale"])
    pictures = max(len(image["data"]) for image in content["images"].values())
    found = {}
    for layers in (1, 2, 3):
        monkeypatch.setattr(page_file, "LARGEST", pictures + 2 * layers * (layer + 2))
        found[layers] = chosen_layers(explorer, None)
    assert found == {1: {"0": (2,), "1": (2,)}, 2: {"0": (1, 2), "1": (1, 2)}, 3: {"0": (0, 1, 2), "1": (0, 1, 2)}}
    assert chosen_layers(explorer, [0, -1]) == {"0": (0, 2), "1": (0, 2)}
    monkeypatch.setattr(page_file, "LARGEST", pictures + layer)
    with pytest.raises(UserError, match=r"one layer of each network takes .* choose a smaller image_size"):
        chosen_layers(explorer, None)
    with pytest.raises(UserError, match="choose fewer, or a smaller image_size"):
        chosen_layers(explorer, 2)
    with pytest.raises(UserError, match="layers=9"):
        chosen_layers(explorer, 9)


def test_the_verb_writes_a_file(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.html"
    given: Any = {"images": [str(pictures)], "html": str(out), "layers": [3]}
    at.explore(["builtin/vit_characters"], **given)
    content = json.loads(Page(out.read_text(encoding="utf-8")).scripts[0])
    assert sorted(content["rows"]) == ["0/0/3", "0/1/3", "0/2/3"]
    assert "3 images" in capsys.readouterr().err
    assert len(out.read_bytes()) < 3 * 3_000_000
    with pytest.raises(UserError, match="exists; choose another name or replace it"):
        at.explore(["builtin/vit_characters"], **given)
    at.explore(["builtin/vit_characters"], **given, overwrite=True)
