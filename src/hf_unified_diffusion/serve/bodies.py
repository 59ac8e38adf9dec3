"""The bodies of requests, as OpenAI's clients send them, with a few fields of our own. What is not here is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ..pipelines.text_inputs import LARGEST_SEED

MOST_CHOICES = 8
Zero = Annotated[float, Field(ge=0, le=0)]  # what clients send although it is the default, and we have no other
Text = Annotated[str, StringConstraints(min_length=1)]


class Body(BaseModel):
    """A body without other fields than its own, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """What a stream tells besides the text; drafts are ours."""

    include_usage: bool = False
    include_drafts: bool = False


class Generated(Body):
    """What all that is generated may ask for; the last three are ours."""

    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(default=None, ge=0, lt=LARGEST_SEED)
    num_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    timeout_s: float | None = Field(default=None, gt=0)


class TextBody(Generated):
    """What completions and chats share."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: Text | list[Text] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None

    @property
    def stop_strings(self) -> list[str]:
        """As a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class CompletionBody(TextBody):
    """/v1/completions; `modality` is ours."""

    prompt: Text | list[Text]
    suffix: Text | None = None
    modality: Literal["text", "code"] = "text"


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """What a function was called with, its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All its parts."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class NamedSchema(Body):
    """A JSON Schema with a name; answers follow it whether `strict` says so or not."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """An answer that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class Function(Body):
    """A function that may be called."""

    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatBody(TextBody):
    """/v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    response_format: Annotated[JsonSchemaFormat | PlainFormat, Field(discriminator="type")] | None = None
    tools: list[Tool] | None = Field(default=None, min_length=1)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"


class ImageBody(Generated):
    """/v1/images/generations; `negative_prompt` is ours. `size` is width x height in pixels."""

    model: str | None = None
    prompt: Text
    size: Annotated[str, StringConstraints(pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$")] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    negative_prompt: Text | None = None

    @property
    def height_and_width(self) -> dict[str, int]:
        """Of the picture; nothing where the checkpoint decides."""
        if self.size == "auto":
            return {}
        width, height = map(int, self.size.split("x"))
        return {"height": height, "width": width}


class SpeechBody(Body):
    """/v1/audio/speech; WAV unless PCM is asked for. The last three are ours."""

    model: str
    input: Text
    voice: Literal["default"] = "default"
    response_format: Literal["wav", "pcm"] = "wav"
    speed: float | None = Field(default=None, ge=0.25, le=4)
    seed: int | None = Field(default=None, ge=0, lt=LARGEST_SEED)
    num_steps: int | None = Field(default=None, ge=1)
    timeout_s: float | None = Field(default=None, gt=0)
