"""What writes the pages of the site: links of the repository become the site's, reference text comes from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_site import check, errors, examples, grpc, links, pages, python_api, rest

from quire.config import ServeSettings


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").touch()
    (tmp_path / "CONTRIBUTING.md").touch()
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "x.proto").write_text("message X {}")
    names = {tmp_path / "docs" / "a.md": "a.md", tmp_path / "CONTRIBUTING.md": "contributing.md"}
    return links.SiteMap(tmp_path, tmp_path / "site", names)


def test_links_to_pages_and_files_become_the_sites(tree):
    text = "[p](../CONTRIBUTING.md#set-up) [f](../protos/x.proto) [e](https://a.b/c) [h](#here) `[no](code.md)`"
    expected = "[p](contributing.md#set-up) [f](files/protos/x.proto) [e](https://a.b/c) [h](#here) `[no](code.md)`"
    assert links.for_site(text, tree.root / "docs" / "a.md", tree) == expected
    assert (tree.source / "files" / "protos" / "x.proto").read_text() == "message X {}"


def test_a_link_to_nothing_ends_the_build(tree):
    with pytest.raises(ValueError, match="which is not there"):
        links.for_site("[x](gone.md)", tree.root / "docs" / "a.md", tree)


def test_a_folder_is_text_alone(tree):
    assert links.for_site("in [the protos](../protos), all", tree.root / "docs" / "a.md", tree) == "in the protos, all"


def test_every_page_is_in_the_navigation_and_exists():
    assert set(pages.DOCS.glob("*.md")) <= pages.site_map().names.keys()
    assert all(path.is_file() for path in pages.site_map().names)


def test_finished_html_is_followed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="b.html#gone">b</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="there"><script src="https://cdn.example/x.js"></script>')
    assert check.broken_links(tmp_path) == [
        "a.html: b.html#gone has no such anchor",
        "a.html: c.html is not there",
        "b.html: https://cdn.example/x.js is loaded from elsewhere",
    ]


@pytest.mark.slow  # it starts a server
def test_the_rest_reference_has_every_path_and_field():
    paths, schemas = rest.render_paths(), rest.render_schemas()
    for path, methods in rest.document()["paths"].items():
        assert all(f"### {method.upper()} {path}\n" in paths for method in methods)
    for name, schema in rest.document()["components"]["schemas"].items():
        assert all(f"`{field}`" in schemas for field in schema.get("properties", ())), name
    # From the schema's bounds, from a comment in the class, and from the proto.
    assert "| `temperature` | number in [0, 2] |" in schemas
    assert "Usage so far in every chunk" in schemas
    assert "Texts whose tokens are not sampled one after another." in schemas


def test_the_grpc_reference_has_every_method_field_and_comment():
    text = grpc.render_services()
    for file in grpc.load():
        for service in file.file.service:
            assert all(f"| `{method.name}` |" in text for method in service.method)
        for message in file.file.message_type:
            assert f"### {message.name}\n" in text
            assert all(f"| `{field.name}` | {field.number} |" in text for field in message.field)
    assert "0 is greedy. Default 1." in text
    assert "map of uint32 to float" in text


def test_the_python_reference_has_the_public_classes():
    text = python_api.render()
    for line in ("from quire import LLM", "from quire.client import AsyncClient", "generate("):
        assert line in text
    assert 'address: str = "127.0.0.1:50051"' in text or "address: str = '127.0.0.1:50051'" in text
    assert "to_proto" not in text


def test_errors_and_examples_are_whole():
    assert "| 429 | RESOURCE_EXHAUSTED | `rate_limit_exceeded` |" in errors.render()
    assert "startup_failed" not in errors.render()
    assert all(path.read_text() in examples.render() for path in Path(pages.ROOT / "examples").glob("*.py"))


def test_every_flag_of_serve_is_in_the_reference():
    text = pages.generators()["flags"]()
    missing = [name for name in ServeSettings.model_fields if f"--{name.replace('_', '-')}" not in text]
    assert not missing


def test_generated_text_has_no_heading_beside_the_pages_title():
    for name in ("flags", "vllm_flags", "vllm_metrics", "grpc", "python_api", "examples", "errors"):
        code = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
        assert not re.search(r"^# ", code.sub("", pages.generators()[name]()), re.MULTILINE), name


def test_what_nothing_generates_is_refused(tree, monkeypatch):
    source = tree.root / "docs"
    (source / "index.md").write_text("<!-- generated: nonsense -->\n")
    monkeypatch.setattr(pages, "DOCS", source)
    monkeypatch.setattr(pages, "SOURCE", tree.source)
    own = links.SiteMap(tree.root, tree.source, {**tree.names, source / "index.md": "index.md"})
    monkeypatch.setattr(pages, "site_map", lambda: own)
    with pytest.raises(ValueError, match="nothing generates nonsense"):
        pages.stage()
    (source / "forgotten.md").touch()
    with pytest.raises(ValueError, match=r"not in NAVIGATION: forgotten\.md"):
        pages.stage()
