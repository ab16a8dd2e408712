"""The page in a browser, against the server and networks themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page
from torch import Tensor, nn

from attention_transfer.evaluation.views import seen
from attention_transfer.explorer.network import ExploredNetwork
from attention_transfer.explorer.page_file import collected, html_of
from attention_transfer.explorer.server import Server, bound
from attention_transfer.explorer.session import Explorer
from tests.explorer.page.test_page import opened, png, settled, text


@pytest.fixture
def served(explorer: Explorer, page: Page) -> Iterator[str]:
    """The address of a server of two tiny networks of 2×2 patches and three images."""
    listening, port = bound("127.0.0.1", 18_900)
    running = uvicorn.Server(uvicorn.Config(Server(explorer, port).app, log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
        page.goto("about:blank")  # so that nothing is under way when the server goes
    finally:
        running.should_exit = True
        thread.join(20)
        listening.close()


def maps(network: ExploredNetwork, path: Path, run: Callable[[nn.Module, Tensor], list[Tensor]]) -> list[Tensor]:
    """Attention maps of every layer, by timm's own unfused code: (H, N, N)."""
    pixels, _ = seen(network.spec, Image.open(path))
    return [maps_1HNN[0] for maps_1HNN in run(network.subject.vit, pixels)]


def test_the_numbers_are_the_networks_own(
    page: Page,
    served: str,
    networks: Sequence[ExploredNetwork],
    pictures: Path,
    unfused_maps: Callable[[nn.Module, Tensor], list[Tensor]],
) -> None:
    opened(page, served)
    page.get_by_role("button", name="b.png").click()  # 8×8 pixels, as the networks see them
    settled(page)
    for layer in (2, 0):
        while text(page.locator(".controls output").first) != str(layer):
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Escape")
        page.keyboard.press("Shift+ArrowDown")  # from the middle, the patch in row 1 and column 1
        settled(page)
        for i, network in enumerate(networks):
            maps_HNN = maps(network, pictures / "ant" / "b.png", unfused_maps)[layer]
            readout = page.locator(".readout").nth(i)
            assert text(readout).startswith("row 1, column 1")
            shown = float(text(readout.locator(".value")))
            assert shown == pytest.approx(float(maps_HNN[:, 4, 4].mean()), rel=2e-3)


def test_everything_that_can_be_asked_is_answered(page: Page, served: str) -> None:
    opened(page, served, "open=causal,box&box=0,0,8,12&sort=drift&replaced=layer")
    page.locator(".outcome td").first.wait_for()
    page.get_by_role("button", name="Rank the heads").click()
    page.get_by_text("Heads by how far").wait_for()
    page.get_by_text("mass in the box").first.wait_for()
    page.locator(".thumb span").first.wait_for()
    page.get_by_role("button", name="Rollout").click()
    settled(page)
    assert page.locator(".error").all_text_contents() == [""]


def test_uploads_of_one_session_are_not_seen_by_another(page: Page, served: str, browser: Browser) -> None:
    opened(page, served)
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": "bad.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.locator(".message.error", has_text="bad.png").wait_for()
    chooser.set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": png((40, 20))})
    page.locator(".caption", has_text="mine.png").wait_for()
    settled(page)
    other = browser.new_context().new_page()
    opened(other, served)
    assert other.locator(".thumb").count() == 3
    other.context.close()


def test_the_file_opens_without_a_server(page: Page, explorer: Explorer, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html_of(collected(explorer, {"0": (0, 2), "1": (2,)})), encoding="utf-8", newline="\n")
    page.goto(path.as_uri())
    settled(page)
    page.keyboard.press("Shift+ArrowDown")
    page.locator(".value").first.wait_for()
    assert page.get_by_role("button", name="mean query").count() == 0
    assert "query=" in page.url
