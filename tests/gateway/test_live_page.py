"""The route of the live page: who gets it, with which headers, and that nothing else is served."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import httpx
import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import start_gateway

from quire.gateway.live_page import FOLDER, page_files

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
FILES = {
    "/": "text/html; charset=utf-8",
    "/page/main.js": "text/javascript; charset=utf-8",
    "/page/base.css": "text/css; charset=utf-8",
    "/page/favicon.svg": "image/svg+xml",
    "/page/vendor/uPlot.js": "text/javascript; charset=utf-8",
    "/page/vendor/uPlot.css": "text/css; charset=utf-8",
}


@pytest.mark.parametrize(("path", "media_type"), FILES.items())
async def test_files(http: httpx.AsyncClient, path: str, media_type: str) -> None:
    whole = await http.get(path)
    assert (whole.status_code, whole.headers["content-type"]) == (200, media_type)
    head = await http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))
    for tag in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}'):
        again = await http.get(path, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == whole.headers["etag"]
    assert (await http.get(path, headers={"if-none-match": '"other"'})).status_code == 200


async def test_a_browser_loads_and_asks_only_what_this_server_serves(http: httpx.AsyncClient) -> None:
    for path in FILES:
        headers = (await http.get(path)).headers
        rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert {rules[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


async def test_no_file_of_ours_names_another_host_or_makes_html_of_text() -> None:
    ours = {name: file.content.decode() for name, file in page_files().items() if not name.startswith("vendor/")}
    assert {"index.html", "main.js", "base.css"} <= ours.keys()
    for name, text in ours.items():
        if name != "favicon.svg":  # whose namespace is a URL, and never fetched
            text = re.sub(r"^\s*(//|\*|/\*).*$|\(https://[^)]*\)", "", text, flags=re.MULTILINE)
            assert not re.search(r"https?://|[\"'(]//", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert not re.search(r"\sstyle=|\son[a-z]+=\"|<style", text) or not name.endswith(".html"), name


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/none.js", "/page/../live_page.py", "/page/%2e%2e/live_page.py", "/page/vendor/LICENSE"],
)
async def test_nothing_else(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code in (404, 307)
    assert (await http.get(path, follow_redirects=True)).status_code == 404


async def test_keys_guard_the_data_and_not_the_page(module_scheduler: FakeScheduler, model_folder: Path) -> None:
    gateway = await start_gateway(module_scheduler, model_folder, api_key=["sesame"])
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        assert [(await http.get(path)).status_code for path in FILES] == [200] * len(FILES)
        assert [(await http.get(path)).status_code for path in ("/v1/models", "/monitor/state", "/nothing")] == [
            401
        ] * 3
        assert (await http.post("/", json={})).status_code == 405
    await gateway.close()


async def test_it_can_be_turned_off(module_scheduler: FakeScheduler, model_folder: Path) -> None:
    gateway = await start_gateway(module_scheduler, model_folder, live_page=False)
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        assert {(await http.get(path)).status_code for path in FILES} == {404}
    await gateway.close()


async def test_below_a_root_path(module_scheduler: FakeScheduler, model_folder: Path) -> None:
    gateway = await start_gateway(module_scheduler, model_folder, root_path="/llm")
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        for prefix in ("", "/llm"):
            page = await http.get(f"{prefix}/")
            assert page.status_code == 200
            # All that the page names lies beside it, wherever that is.
            names = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
            assert len(names) > 5
            answers = await asyncio.gather(*(http.get(f"{prefix}/{name}") for name in names))
            assert {answer.status_code for answer in answers} == {200}
    await gateway.close()


@pytest.mark.parametrize(("builder", "prefix"), [(WheelBuilder, "quire/"), (SdistBuilder, "")])
async def test_what_is_installed_has_all_files(builder: type[WheelBuilder] | type[SdistBuilder], prefix: str) -> None:
    packed = {file.distribution_path for file in builder(str(ROOT)).recurse_included_files()}
    assert {f"{prefix}gateway/page/{name}" for name in (*page_files(), "vendor/LICENSE")} <= packed


async def test_the_vendored_files_are_those_that_the_script_makes() -> None:
    sums = re.findall(r"^([0-9a-f]{64})  (gateway/page/vendor/\S+)$", (ROOT / "tools/vendor_page.sh").read_text(), re.M)
    found = {hashlib.sha256(path.read_bytes()).hexdigest(): path.name for path in (FOLDER / "vendor").iterdir()}
    assert {digest: Path(name).name for digest, name in sums} == found
    assert "MIT License" in (FOLDER / "vendor/LICENSE").read_text()
