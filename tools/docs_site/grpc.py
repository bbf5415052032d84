"""The gRPC API as Markdown, from the public protos and their comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

_PROTOS = Path(__file__).resolve().parents[2] / "protos"
# Numbers of the fields of descriptors, of which the path to a comment is made (google/protobuf/descriptor.proto).
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE, _FILE_SYNTAX = 4, 5, 6, 12
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_ENUM_VALUE, _SERVICE_METHOD = 2, 2


class _File:
    """A file and its comments."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}

    @property
    def about(self) -> str:
        """The comment at the beginning of the file."""
        return self.comment(_FILE_SYNTAX)

    def comment(self, *path: int) -> str:
        """The comment before what a path leads to, in one paragraph or several."""
        return self._comments.get(path, "").strip()

    def inline(self, *path: int) -> str:
        """The same in one line, for a table."""
        return " ".join(self.comment(*path).split()).replace("|", "\\|")


def load() -> list[_File]:
    """The public files (protos/quire/v1), compiled with their comments."""
    from grpc_tools import protoc

    sources = sorted(str(path) for path in (_PROTOS / "quire" / "v1").glob("*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".binpb") as out:
        options = [f"-I{_PROTOS}", "--include_source_info", f"--descriptor_set_out={out.name}"]
        if status := protoc.main(["protoc", *options, *sources]):
            raise RuntimeError(f"protoc failed with status {status}")
        return [_File(file) for file in FileDescriptorSet.FromString(Path(out.name).read_bytes()).file]


def field_comments(message: str) -> dict[str, str]:
    """The comments of a top-level message's fields, by name."""
    for file in load():
        for index, found in enumerate(file.file.message_type):
            if found.name == message:
                place = (_FILE_MESSAGE, index, _MESSAGE_FIELD)
                return {field.name: file.inline(*place, number) for number, field in enumerate(found.field)}
    raise KeyError(message)


def render_services() -> str:
    """Services with their methods, then messages and enums, file by file."""
    return "\n\n".join(part for file in load() for part in _render_file(file))


def _render_file(file: _File) -> Iterator[str]:
    package = file.file.package
    if file.about:
        yield file.about
    for index, service in enumerate(file.file.service):
        yield f"## {package}.{service.name}"
        yield f"In `protos/{file.file.name}`. {file.comment(_FILE_SERVICE, index)}".strip()
        rows = ["| method | takes | gives | |", "|---|---|---|---|"]
        for number, method in enumerate(service.method):
            gives = ("stream of " if method.server_streaming else "") + _type_link(method.output_type)
            note = file.inline(_FILE_SERVICE, index, _SERVICE_METHOD, number)
            rows.append(f"| `{method.name}` | {_type_link(method.input_type)} | {gives} | {note} |")
        yield "\n".join(rows)
    for index, message in enumerate(file.file.message_type):
        yield from _render_message(file, message, (_FILE_MESSAGE, index))
    for index, enum in enumerate(file.file.enum_type):
        yield from _render_enum(file, enum, (_FILE_ENUM, index))


def _render_message(file: _File, message: DescriptorProto, place: tuple[int, ...]) -> Iterator[str]:
    yield f"### {message.name}"
    if comment := file.comment(*place):
        yield comment
    rows = ["| field | number | type | |", "|---|---|---|---|"]
    for index, field in enumerate(message.field):
        one_of = field.HasField("oneof_index") and not field.proto3_optional
        group = f"One of `{message.oneof_decl[field.oneof_index].name}`. " if one_of else ""
        note = group + file.inline(*place, _MESSAGE_FIELD, index)
        rows.append(f"| `{field.name}` | {field.number} | {_field_type(field, message)} | {note} |")
    yield "\n".join(rows) if message.field else "No fields."
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _render_message(file, nested, (*place, _MESSAGE_NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _render_enum(file, enum, (*place, _MESSAGE_ENUM, index))


def _render_enum(file: _File, enum: EnumDescriptorProto, place: tuple[int, ...]) -> Iterator[str]:
    yield f"### {enum.name}"
    if comment := file.comment(*place):
        yield comment
    rows = ["| value | number | |", "|---|---|---|"]
    for index, value in enumerate(enum.value):
        rows.append(f"| `{value.name}` | {value.number} | {file.inline(*place, _ENUM_VALUE, index)} |")
    yield "\n".join(rows)


def _field_type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.type not in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM):
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    else:
        short = field.type_name.rpartition(".")[2]
        entry = next((one for one in message.nested_type if one.name == short and one.options.map_entry), None)
        if entry is not None:
            key, value = (_field_type(part, entry) for part in entry.field)
            return f"map of {key} to {value}"
        name = _type_link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _type_link(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})"
