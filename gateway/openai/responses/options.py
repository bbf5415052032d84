"""The objects within a request: tools, the text's format, how to reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from quire.gateway.chat.prompt import Tool
from quire.gateway.request_fields import Only, tag_of
from quire.structured_outputs import StructuredOutputs


class Options(BaseModel):
    """An object in which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class FunctionTool(Options):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: Annotated[Any, Only(["direct"])] = None
    async_: Annotated[Any, Only(False)] = Field(None, alias="async")
    defer_loading: Annotated[Any, Only(False)] = None
    # What it returns, for programs that call it; the model does not see it.
    output_schema: dict[str, Any] | None = None

    def to_tool(self) -> Tool:
        """For the chat template."""
        return Tool(self.name, self.description or "", self.parameters or {}, self.strict is True)


class NamedFunction(Options):
    """The function that must be called."""

    type: Literal["function"]
    name: str


ToolChoiceOption = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<str>")] | Annotated[NamedFunction, Tag("<function>")],
    Discriminator(
        tag_of(),
        custom_error_type="tool_choice",
        custom_error_message="must be auto, none, required or an object of type function",
    ),
]


class PlainFormat(Options):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class JsonSchemaText(Options):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


TextFormat = Annotated[
    Annotated[PlainFormat, Tag("<text>")]
    | Annotated[PlainFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaText, Tag("<json_schema>")],
    Discriminator(
        tag_of(),
        custom_error_type="text_format",
        custom_error_message="must be an object of type text, json_object or json_schema",
    ),
]


class TextConfig(Options):
    """How the answer's text is written."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, Only("medium")] = None

    def structured_outputs(self) -> StructuredOutputs | None:
        """What the text must match; a schema is enforced whether or not it is called strict."""
        if isinstance(self.format, JsonSchemaText):
            return StructuredOutputs(json=self.format.schema_)
        if self.format is not None and self.format.type == "json_object":
            return StructuredOutputs(json_object=True)
        return None


class ReasoningConfig(Options):
    """How the model thinks. The answer has the thoughts themselves, so asking for a summary of them changes nothing."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Annotated[Any, Only("auto")] = None
    mode: Annotated[Any, Only("standard")] = None

    def template_kwargs(self) -> dict[str, Any]:
        """The variables by which chat templates are told."""
        if self.effort is None:
            return {}
        return {"reasoning_effort": self.effort, "enable_thinking": self.effort != "none"}
