"""The page in a browser, against answers that can be computed again."""

from __future__ import annotations

import base64
import io
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import FloatRect, Locator, Page, Position, expect

from tests.explorer.page.conftest import Pretended, Reply


def opened(page: Page, address: str, view: str = "") -> Page:
    """The page, once all its networks show a map."""
    page.goto(f"{address}#{view}")
    return settled(page)


def settled(page: Page) -> Page:
    """The page, once nothing is under way and all its networks show a map."""
    page.locator(".network").first.wait_for()
    page.wait_for_function(
        """() => {
          const root = document.querySelector("[data-explore]").shadowRoot;
          return !root.querySelector("[aria-busy=true]") && [...root.querySelectorAll(".network")].every(
            (n) => n.querySelector(".bar") && n.querySelector("canvas").width !== 300);
        }"""
    )
    return page


def network(page: Page, name: str) -> Locator:
    return page.locator(f'section[aria-label="{name} network"]')


def text(at: Locator) -> str:
    return at.text_content() or ""


def area_of(at: Locator) -> FloatRect:
    found = at.bounding_box()
    assert found is not None
    return found


def to_patch(page: Page, pretended: Pretended, name: str, patch: int, *, image: str = "x") -> Position:
    """The middle of a patch of a network's grid, in its picture's pixels."""
    place, _ = pretended.place(name, image)
    left, top, right, bottom = place["box"]
    row, column = divmod(patch, place["columns"])
    size = pretended.images[image]
    area = area_of(network(page, name).locator(".picture"))
    x = (left + (column + 0.5) / place["columns"] * (right - left)) / size["width"]
    y = (top + (row + 0.5) / place["rows"] * (bottom - top)) / size["height"]
    return {"x": x * area["width"], "y": y * area["height"]}


def shown_value(page: Page, name: str) -> str:
    return text(network(settled(page), name).locator(".value"))


def written(value: float) -> float:
    """A number as the page writes it, with four digits."""
    return float(f"{value:.4g}")


def pinned_at(page: Page, pretended: Pretended, name: str, patch: int) -> None:
    network(page, name).locator(".picture").click(position=to_patch(page, pretended, name, patch))
    settled(page)


def test_value_under_the_pointer_is_the_source_s(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a,b&layer=2")
    pinned_at(page, pretended, "a", 3)
    network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", 10))
    rows = pretended.values("a", "x", 2, 2 + 3)
    assert float(shown_value(page, "a")) == written(rows[:, 2 + 10].mean())
    assert text(network(page, "a").locator(".readout")).startswith("row 1, column 4")

    network(page, "a").locator(".head").nth(1).click()
    network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", 10))
    assert float(shown_value(page, "a")) == written(rows[1, 2 + 10])

    page.get_by_role("button", name="Maximum").click()
    network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", 10))
    assert float(shown_value(page, "a")) == written(rows[:, 2 + 10].max())


def test_networks_are_linked_by_position_in_the_original_image(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a,b&layer=2")
    # Patch 9 of `a` has its middle at (70, 30) of 120×80 pixels: row 1, column 3 of the square that `b` sees.
    pinned_at(page, pretended, "a", 9)
    network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", 9))
    rows = pretended.values("b", "x", 2, 1 + 5 * 1 + 3)
    assert float(shown_value(page, "b")) == written(rows[:, 1 + 8].mean())
    # At the left, which the square leaves out:
    network(page, "a").locator(".picture").click(position=to_patch(page, pretended, "a", 6))
    network(page, "b").get_by_text("does not see").wait_for()


def test_hovering_shows_each_patch_s_row_and_leaving_the_class_token_s(
    page: Page, address: str, pretended: Pretended
) -> None:
    opened(page, address, "networks=a")
    for patch in (0, 13, 23):
        network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", patch))
        page.wait_for_timeout(50)
        row = pretended.values("a", "x", 3, 2 + patch)
        assert float(shown_value(page, "a")) == written(row[:, 2 + patch].mean())
    page.mouse.move(2, 2)
    settled(page)
    share = pretended.values("a", "x", 3, 0)[:, 0].mean()
    page.wait_for_function(
        "text => document.querySelector('main').shadowRoot.querySelector('.share').textContent === text",
        arg=f"class {100 * share:.1f} %",
    )


def test_only_the_newest_query_is_asked_for_while_the_pointer_moves(
    page: Page, address: str, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(page, address, "networks=a")
    rows = pretended.rows
    queries: list[int] = []

    def slowly(**asked: Any) -> Reply:
        queries.append(asked["query"])
        time.sleep(0.4)
        return rows(**asked)

    monkeypatch.setattr(pretended, "rows", slowly)
    for patch in range(12):
        network(page, "a").locator(".picture").hover(position=to_patch(page, pretended, "a", patch))
    settled(page)
    assert queries[-1] == 2 + 11
    assert len(queries) < 12


def test_keys_change_layer_head_patch_and_query(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert text(page.locator(".controls output").first) == "2"
    for _ in range(3):  # from the mean to the maximum, head 0 and head 1
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    # From the middle of the grid, row 2 and column 3, to row 3 and column 4.
    patch = 3 * 6 + 4
    assert text(network(page, "a").locator(".readout")).startswith("row 3, column 4")
    assert float(shown_value(page, "a")) == written(pretended.values("a", "x", 2, 2 + patch)[1, 2 + patch])
    page.keyboard.press("c")
    settled(page)
    assert page.get_by_role("button", name="class").get_attribute("aria-pressed") == "true"
    page.keyboard.press("r")
    settled(page)
    assert pretended.asked[-1][1]["layer"] == "rollout"
    page.keyboard.press("]")
    settled(page)
    assert "y.png" in text(page.locator(".caption"))


def test_wheel_changes_the_layer(page: Page, address: str) -> None:
    opened(page, address, "networks=a")
    network(page, "a").locator(".picture").hover()
    page.mouse.wheel(0, 120)
    page.locator(".controls output", has_text="2").first.wait_for()


def test_the_address_restores_the_view(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a,b")
    page.keyboard.press("ArrowDown")
    network(page, "b").locator(".head").nth(2).click()
    pinned_at(page, pretended, "a", 8)
    page.get_by_text("Display").click()
    page.get_by_label("The map alone").check()
    page.get_by_label("Differences from the first network").check()
    settled(page)
    page.wait_for_function("() => location.hash.includes('difference')")
    view, readings = page.url.partition("#")[2], page.locator(".readout").all_text_contents()
    again = page.context.new_page()
    opened(again, address, view)
    again.locator(".value").first.wait_for()
    page.mouse.move(2, 2)
    settled(page)
    assert again.locator(".readout").all_text_contents() == page.locator(".readout").all_text_contents() != [], readings
    assert again.url.partition("#")[2] == view
    assert again.locator(".head[aria-pressed=true]").count() == 2


def test_an_address_that_says_nonsense_shows_the_first_view(page: Page, address: str) -> None:
    opened(page, address, "networks=zz&layer=-3&query=7,7&image=../secret&box=1,2&mass=9&paint=red")
    assert page.locator(".network").count() == 3
    assert text(page.locator(".controls output").first) == "3"


def pixel(page: Page, name: str, x: float, y: float) -> list[int]:
    """The colour of a network's picture at a share of its width and height."""
    found: list[int] = (
        network(page, name)
        .locator(".picture canvas")
        .evaluate("(c, [x, y]) => [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data]", [x, y])
    )
    return found


def test_the_map_is_painted_where_the_patches_lie(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=b&paint=map&mass=0&shared=no")
    row = pretended.values("b", "x", 3, 0).mean(axis=0)[1:]
    colours = [pixel(page, "b", (20 + 16 * (i % 5) + 2) / 120, (16 * (i // 5) + 2) / 80) for i in range(25)]
    bright = [sum(colour[:3]) for colour in colours]
    darkest, brightest = int(np.argmin(row)), int(np.argmax(row))
    assert bright[brightest] == max(bright)
    assert bright[darkest] == min(bright)
    unseen = pixel(page, "b", 5 / 120, 0.5)
    assert abs(unseen[0] - unseen[1]) < 60  # a photograph dimmed to grey


def test_a_network_differs_in_nothing_from_itself_but_from_another(page: Page, address: str) -> None:
    opened(page, address, "networks=a,c&paint=map&mass=0&difference=yes")
    assert text(network(page, "c").locator(".bar span").first).startswith("≤ −")
    assert text(network(page, "a").locator(".bar span").first) == "0"


def test_predictions_say_whether_they_are_right(page: Page, address: str) -> None:
    opened(page, address, "networks=a,c")
    assert text(network(page, "a").locator(".prediction li").first) == "cat ✓75 %"
    page.get_by_role("button", name="y.png").click()
    network(page, "a").get_by_text("✗ dog").wait_for()
    assert text(network(page, "c").locator(".prediction")) == "no classes"


def test_epochs_are_scrubbed(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a,b&open=epochs&query=0.5000,0.5000&pinned=yes")
    page.get_by_label("Epoch").fill("1")
    settled(page)
    value = pretended.values("b", "x", 3, 1 + 12, epoch=5)[:, 1 + 12].mean()
    assert float(shown_value(page, "b")) == written(value)
    assert float(shown_value(page, "a")) == written(pretended.values("a", "x", 3, 2 + 15)[:, 2 + 15].mean())
    assert page.locator(".curves polyline").count() == 2
    assert "from 0.200 to 0.800" in str(page.locator(".curves svg").first.get_attribute("aria-label"))


def test_a_causal_click_shows_what_changes(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a,b&open=causal")
    page.get_by_role("button", name="Layer 3").click()
    page.locator(".outcome").wait_for()
    assert pretended.asked[-1] == (
        "causal",
        {"student": "b", "teacher": "a", "image": "x", "layer": 3, "head": None},
    )
    assert page.locator(".outcome tbody tr").all_text_contents() == ["dog25 %35 %", "cat75 %65 %"]
    page.keyboard.press("Escape")
    network(page, "b").locator(".head").nth(1).click()
    page.get_by_role("button", name="Head 1 of layer 3").click()
    page.get_by_text("dog25 %30 %").or_(page.get_by_role("row", name="dog 25 % 30 %")).first.wait_for()
    assert pretended.asked[-1][1]["head"] == 1
    page.get_by_role("button", name="Rank the heads").click()
    first = page.locator(".headlist li").first
    assert text(first) == "layer 3, head 23.2"
    page.locator(".headlist li button").nth(5).click()  # layer 2, head 0
    page.wait_for_function("() => location.hash.includes('layer=2')")


def test_a_refusal_is_shown_in_a_sentence(page: Page, address: str) -> None:
    opened(page, address, "networks=a,c&open=causal&student=c&replaced=all")
    page.get_by_text("c network has other heads than the student.").wait_for()


def test_a_box_lists_the_heads_that_look_there(page: Page, address: str, pretended: Pretended) -> None:
    opened(page, address, "networks=a")
    area = area_of(network(page, "a").locator(".picture"))
    page.keyboard.down("Shift")
    page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2, steps=3)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.locator(".headlist li").first.wait_for()
    assert page.locator(".headlist li").all_text_contents() == ["layer 2, head 150 %", "layer 0, head 013 %"]
    asked = next(parameters for name, parameters in reversed(pretended.asked) if name == "box")
    assert asked["box"] == pytest.approx([30, 20, 60, 40], abs=1)
    assert asked["images"] == ["x"]
    page.get_by_label("over all images").check()
    page.wait_for_timeout(400)
    assert pretended.asked[-1][1]["images"] == ["x", "y", "z"]


def test_images_are_sorted_by_drift_and_filtered(page: Page, address: str) -> None:
    opened(page, address, "networks=a,b")
    page.get_by_label("Sort").select_option("drift")
    page.locator(".thumb span").first.wait_for()
    names = [label.partition(",")[0] for label in labels(page)]
    assert names == ["z.png", "y.png", "x.png"]
    page.get_by_label("Show").select_option("unlike")
    expect(page.locator(".thumb")).to_have_count(1)
    assert [label.partition(",")[0] for label in labels(page)] == ["y.png"]


def labels(page: Page) -> list[str]:
    read = "thumbs => thumbs.map(thumb => thumb.getAttribute('aria-label'))"  # in one: the list may change meanwhile
    found: list[str] = page.locator(".thumb").evaluate_all(read)
    return found


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_an_image_is_added_and_a_bad_one_refused(page: Page, address: str) -> None:
    opened(page, address, "networks=a")
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": "bad file.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.get_by_role("alert").get_by_text("is no image that can be read").wait_for()
    assert page.locator(".thumb").count() == 3
    chooser.set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": png((40, 20))})
    page.locator(".caption", has_text="mine.png").wait_for()
    assert text(page.locator(".message.error")) == ""


def test_the_picture_is_saved(page: Page, address: str, tmp_path: Path) -> None:
    opened(page, address, "networks=a,b")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "x-attention.png"
    download.value.save_as(tmp_path / "x.png")
    saved = Image.open(tmp_path / "x.png")
    assert saved.size == (2 * 924 + 24, 600 + 64 + 24)
    assert len(saved.convert("RGB").getcolors(1 << 24) or []) > 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_keyboard_and_screen_reader(
    page: Page, address: str, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, address, "networks=a,b&open=epochs,causal,box,keys&replaced=all&sort=drift")
    page.get_by_role("button", name="Rank the heads").click()
    page.locator(".headlist").first.wait_for()
    page.get_by_text("Display").click()
    result = Axe().run(page)
    found = [(v["id"], [node["html"] for node in v["nodes"]]) for v in result.response["violations"]]
    assert found == []


def test_it_fits_a_phone(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, address, "networks=a,b&open=epochs,causal,box,keys")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_a_file_shows_what_it_holds_without_asking_anybody(page: Page, pretended: Pretended, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(in_a_file(pretended), encoding="utf-8")
    page.goto(path.as_uri())
    settled(page)
    assert page.locator("[data-explore]").count() == 2
    first = page.locator("[data-explore]").first
    first.locator(".picture").first.hover(position={"x": 5, "y": 5})
    row = pretended.values("a", "x", 3, 2)
    assert float(text(first.locator(".value").first)) == pytest.approx(row[:, 2].mean(), abs=float(row.max()) / 255)
    assert first.get_by_role("button", name="Add image").count() == 0
    assert first.get_by_text("What if").count() == 0


NOTEBOOK = """async () => {
  const page = await import("./page.js");
  const server = new page.HttpSource();
  const heard = new Set();
  const model = {
    on: (event, callback) => heard.add(callback),
    off: (event, callback) => heard.delete(callback),
    send: async ({id, name, arguments: parameters}) => {
      const views = (buffers) => buffers.map((buffer) => new DataView(buffer));
      const answer = (reply, buffers = []) => heard.forEach((f) => f({id, ...reply}, views(buffers)));
      await server.ask(name, parameters).then(({meta, buffers}) => answer({meta}, buffers),
                                              (error) => answer({error: error.message}));
    },
  };
  const el = document.body.appendChild(document.createElement("div"));
  el.id = "cell";
  const close = page.default.render({model, el});
  window.closeCell = () => { close(); return [heard.size, el.firstChild.shadowRoot.childElementCount]; };
}"""


def test_a_notebook_s_widget_shows_the_same_beside_another_explorer(
    page: Page, address: str, pretended: Pretended
) -> None:
    opened(page, address, "networks=a")
    page.evaluate(NOTEBOOK)
    cell = page.locator("#cell")
    cell.locator(".bar").nth(2).wait_for()
    cell.locator(".picture").first.focus()
    page.keyboard.press("ArrowDown")  # goes to the cell alone
    page.keyboard.press("Shift+ArrowDown")
    cell.locator(".value").nth(2).wait_for()
    value = pretended.values("a", "x", 2, 2 + 3 * 6 + 3)[:, 2 + 3 * 6 + 3].mean()
    cell.locator(".value", has_text=f"{value:#.4g}").first.wait_for()
    assert text(page.locator("main .controls output").first) == "3"
    assert "layer" not in page.url
    assert page.evaluate("() => window.closeCell()") == [0, 0]


def test_what_failed_is_asked_for_again_at_the_next_action(
    page: Page, address: str, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(page, address, "networks=a")

    def failing(**asked: Any) -> Reply:
        raise ValueError("The disk is asleep.")

    with monkeypatch.context() as broken:
        broken.setattr(pretended, "rows", failing)
        page.keyboard.press("ArrowDown")
        page.get_by_text("The disk is asleep.").wait_for()
        asked = len(pretended.asked)
        page.mouse.move(3, 3)
        page.wait_for_timeout(300)
        assert len(pretended.asked) == asked
    page.keyboard.press("Enter")
    settled(page)
    assert text(page.locator(".message.error")) == ""


def in_a_file(pretended: Pretended) -> str:
    """A page with two explorers, of two layers of one network and image."""

    def packed(data: bytes) -> str:
        return base64.b64encode(data).decode()

    state, _ = pretended.state()
    state |= {"networks": state["networks"][:1], "images": state["images"][:1], "upload": False, "causal": False}
    meta, [picture] = pretended.image("x")
    rows = {}
    for layer in (1, 3):
        values = np.stack([pretended.values("a", "x", layer, query) for query in range(26)], axis=1)
        scale = values.max(axis=-1) / 255
        quantised = np.round(values / scale[..., None]).astype(np.uint8)
        block = {"heads": 3, "tokens": 26, "scale": packed(scale.tobytes()), "data": packed(quantised.tobytes())}
        rows[f"a/x/{layer}"] = block
    data = {
        "state": state,
        "images": {"x": {"meta": meta, "data": packed(picture)}},
        "place": {"a/x": pretended.place("a", "x")[0]},
        "rows": rows,
    }
    script = files("attention_transfer.explorer").joinpath("page.js").read_text(encoding="utf-8")
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>file</title></head><body>
<div data-explore="one"></div><div data-explore="one"></div>
<script type="application/json" id="one">{json.dumps(data)}</script><script type="module">{script}</script></body>"""
