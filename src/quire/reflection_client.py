"""A client of any gRPC server that has reflection: what it serves, and calls with JSON for messages."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import grpc
from google.protobuf import descriptor, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from quire.client.retry import check_timeout
from quire.client.tls import Target, TlsArguments
from quire.errors import InvalidRequestError, QuireError
from quire.rpc import errors_from_status, open_sync_channel

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(descriptor.FieldDescriptor).items()
    if name.startswith("TYPE_")
}


class ReflectionClient:
    """Use `connected`. Every method raises QuireError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool: Any = descriptor_pool.DescriptorPool(self._database)

    @classmethod
    @contextlib.contextmanager
    def connected(cls, address: str, **tls: Unpack[TlsArguments]) -> Iterator[ReflectionClient]:
        """A client of the server at this address."""
        target = Target.of(address, tls)
        with open_sync_channel(target.address, target.credentials) as channel, errors_from_status("the server"):
            yield cls(channel)

    def list(self) -> Iterator[str]:
        """The services and, indented, their methods."""
        for name in sorted(self._database.get_services()):
            yield name
            for method in self._pool.FindServiceByName(name).methods:
                yield f"  {name}/{method.name}"

    def describe(self, symbol: str) -> Iterator[str]:
        """The lines of the definition of a service, message or enum."""
        for find in (self._pool.FindServiceByName, self._pool.FindMessageTypeByName, self._pool.FindEnumTypeByName):
            with contextlib.suppress(KeyError):
                return _definition(find(symbol))
        message = f"the server knows no {symbol!r}; `quire grpc list` shows its services"
        raise InvalidRequestError(message, field="symbol")

    def call(
        self, method: str, requests: Iterable[str], deadline: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> Iterator[str]:
        """Each response as one line of JSON; `requests` are messages as JSON, `deadline` is in seconds."""
        found = self._find_method(method)
        messages = [_parse(text, found.input_type) for text in requests]
        if len(messages) != 1 and not found.client_streaming:
            raise InvalidRequestError(f"{method} takes one message, not {len(messages)}", field="request")
        # On the wire a single message is a stream of one, so this serves methods of all four kinds.
        invoke: Any = self._channel.stream_stream(
            f"/{found.containing_service.full_name}/{found.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
        )
        try:
            for response in invoke(iter(messages), timeout=check_timeout(deadline), metadata=tuple(metadata)):
                yield _to_line(response)
        except grpc.RpcError as error:
            raise _explained(error) from error

    def _find_method(self, method: str) -> descriptor.MethodDescriptor:
        service_name, _, name = method.strip("/").rpartition("/")
        try:
            service: descriptor.ServiceDescriptor = self._pool.FindServiceByName(service_name)
            return service.methods_by_name[name]
        except KeyError:
            message = f"the server has no method {method!r}; `quire grpc list` shows those it has"
            raise InvalidRequestError(message, field="method") from None


def _parse(text: str, kind: descriptor.Descriptor) -> Message:
    message: Message = message_factory.GetMessageClass(kind)()
    try:
        return json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise InvalidRequestError(f"the request is not a {kind.full_name} in JSON: {error}", field="request") from None


def _to_line(message: Message) -> str:
    return json.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False)


def _explained(error: grpc.RpcError) -> QuireError:
    """The same error, which names its status and field: whoever calls by hand wants to see them."""
    try:
        with errors_from_status("the server"):
            raise error
    except QuireError as known:
        field = f" (field: {known.field})" if known.field else ""
        call: Any = error
        return type(known)(f"{call.code().name}: {known.message}{field}", field=known.field)


def _definition(found: Any) -> Iterator[str]:
    """Lines as they might stand in a .proto file."""
    if isinstance(found, descriptor.ServiceDescriptor):
        yield f"service {found.full_name} {{"
        for method in found.methods:
            given = ("stream " if method.client_streaming else "") + method.input_type.full_name
            answer = ("stream " if method.server_streaming else "") + method.output_type.full_name
            yield f"  rpc {method.name}({given}) returns ({answer});"
    elif isinstance(found, descriptor.EnumDescriptor):
        yield f"enum {found.full_name} {{"
        for value in found.values:
            yield f"  {value.name} = {value.number};"
    else:
        yield f"message {found.full_name} {{"
        for field in found.fields:
            yield f"  {_type(field)} {field.name} = {field.number};{_note(field)}"
    yield "}"


def _type(field: Any) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{_type(key)}, {_type(value)}>"
    kind = field.message_type or field.enum_type
    name = _SCALARS[field.type] if kind is None else kind.full_name
    return f"repeated {name}" if field.is_repeated else name


def _note(field: Any) -> str:
    oneof = field.containing_oneof
    if oneof is None:
        return ""
    return "  // optional" if oneof.name == f"_{field.name}" else f"  // one of {oneof.name}"
