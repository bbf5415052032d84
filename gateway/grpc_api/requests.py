"""From messages to the gateway's own types; what is wrong with them is named by its path in the message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import msgspec
from google.protobuf.message import DecodeError, Message

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt, Tool, ToolChoice
from quire.gateway.validation import Prompt
from quire.v1 import generate_pb2

# As templates know them; a developer's message is a system message, as in the REST API.
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class Malformed:
    """Stands for a request whose bytes are not a message of its type."""


class TolerateMalformed(grpc.aio.ServerInterceptor):
    """Hands a `Malformed` to the methods of one service where grpc would answer UNKNOWN and log a traceback."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        if handler.request_deserializer is None:  # one that refuses whatever comes
            return handler
        return handler._replace(request_deserializer=_tolerant(handler.request_deserializer))


def check_well_formed(request: Message | Malformed) -> None:
    """Raises InvalidRequestError for what could not be decoded."""
    if isinstance(request, Malformed):
        raise InvalidRequestError("the request is not a valid protobuf message of its type")


def prompt_of(request: generate_pb2.GenerateRequest) -> tuple[Prompt, str]:
    """The prompt, and what the client calls it. Raises InvalidRequestError."""
    field = request.WhichOneof("prompt")
    if field == "text":
        return request.text, field
    if field == "token_ids":
        return list(request.token_ids.ids), field
    if field == "chat":
        return chat_prompt(request.chat), field
    raise InvalidRequestError("one of text, token_ids and chat must be set", field="prompt")


def chat_prompt(chat: generate_pb2.ChatPrompt) -> ChatPrompt:
    """A chat as templates expect it. Raises InvalidRequestError."""
    opens_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    if chat.continue_final_message:
        if chat.HasField("add_generation_prompt") and opens_turn:
            message = "continue_final_message excludes add_generation_prompt"
            raise InvalidRequestError(message, field="chat.continue_final_message")
        opens_turn = False
    tools = [_tool(tool, f"chat.tools[{index}]") for index, tool in enumerate(chat.tools)]
    return ChatPrompt(
        messages=[_message(message, f"chat.messages[{index}]") for index, message in enumerate(chat.messages)],
        add_generation_prompt=opens_turn,
        continue_final_message=chat.continue_final_message,
        tools=tools,
        tool_choice=_tool_choice(chat.tool_choice, tools),
        parallel_tool_calls=chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True,
        template_kwargs=_json_object(chat.chat_template_kwargs, "chat.chat_template_kwargs"),
    )


def _tolerant(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | Malformed]:
    def tolerate(data: bytes) -> Message | Malformed:
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed()

    return tolerate


def _message(message: generate_pb2.ChatMessage, where: str) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        given = f"not {message.role!r}" if message.role else "and is empty"
        raise InvalidRequestError(f"{where}.role must be one of {', '.join(_ROLES)}, {given}", field=f"{where}.role")
    entry: dict[str, Any] = {"role": role, "content": message.content}
    if message.name:
        entry["name"] = message.name
    if message.reasoning_content:
        entry["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        if role != "assistant":
            raise InvalidRequestError("only an assistant's message has tool_calls", field=f"{where}.tool_calls")
        calls = enumerate(message.tool_calls)
        entry["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in calls]
    if message.tool_call_id:
        if role != "tool":
            raise InvalidRequestError("only a tool's message has a tool_call_id", field=f"{where}.tool_call_id")
        entry["tool_call_id"] = message.tool_call_id
    return entry


def _tool_call(call: generate_pb2.ToolCall, where: str) -> dict[str, Any]:
    if not call.name:
        raise InvalidRequestError(f"{where}.name is empty", field=f"{where}.name")
    function = {"name": call.name, "arguments": _json_object(call.arguments, f"{where}.arguments")}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: generate_pb2.Tool, where: str) -> Tool:
    if not tool.name:
        raise InvalidRequestError(f"{where}.name is empty", field=f"{where}.name")
    return Tool(tool.name, tool.description, _json_object(tool.parameters, f"{where}.parameters"), tool.strict)


def _tool_choice(choice: generate_pb2.ToolChoice, tools: list[Tool]) -> ToolChoice:
    modes = generate_pb2.ToolChoice.Mode
    field = "chat.tool_choice"
    if choice.name and choice.mode != generate_pb2.ToolChoice.MODE_NAMED:
        raise InvalidRequestError("only MODE_NAMED has a name", field=f"{field}.name")
    if choice.mode in (generate_pb2.ToolChoice.MODE_UNSPECIFIED, generate_pb2.ToolChoice.MODE_AUTO):
        return ToolChoice("auto")
    if choice.mode == generate_pb2.ToolChoice.MODE_NONE:
        return ToolChoice("none")
    if choice.mode not in modes.values():
        raise InvalidRequestError(f"{field}.mode has no value {choice.mode}", field=f"{field}.mode")
    if not tools:
        raise InvalidRequestError(f"{modes.Name(choice.mode)} needs tools", field=f"{field}.mode")
    if choice.mode == generate_pb2.ToolChoice.MODE_REQUIRED:
        return ToolChoice("required")
    if choice.name not in {tool.name for tool in tools}:
        raise InvalidRequestError(f"there is no tool {choice.name!r}", field=f"{field}.name")
    return ToolChoice("named", choice.name)


def _json_object(text: str, field: str) -> dict[str, Any]:
    """A JSON object; of an empty text, an empty one."""
    if not text:
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"{field} is not a JSON object: {error}", field=field) from None
