"""/v1/images/generations and /v1/audio/speech."""

import base64
import secrets
import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from ..media_files import png_bytes, wav_bytes
from ..pipelines.text_inputs import LARGEST_SEED
from .asking import asks_for, check_model, given, made_for
from .bodies import ImageBody, SpeechBody
from .generation import Ask

router = APIRouter()


@router.post("/v1/images/generations")
async def images(body: ImageBody, http: HttpRequest) -> dict[str, Any]:
    """Pictures of a caption, PNG in base64."""
    check_model(http, body.model)
    chosen = {name: getattr(body, name) for name in ("num_steps", "guidance_scale", "negative_prompt")}
    asks = asks_for([body.prompt], body, "image", given(**chosen, **body.height_and_width))
    made = await made_for(http, asks, body.timeout_s)
    data = [{"b64_json": base64.b64encode(png_bytes(row.output)).decode()} for row in made]
    return {"created": int(time.time()), "data": data, "output_format": "png"}


@router.post("/v1/audio/speech")
async def speech(body: SpeechBody, http: HttpRequest) -> Response:
    """A text spoken, as WAV or as 16-bit PCM."""
    check_model(http, body.model)
    seed = secrets.randbelow(LARGEST_SEED) if body.seed is None else body.seed
    ask = Ask(body.input, "audio", seed, given(num_steps=body.num_steps, speed=body.speed))
    (made,) = await made_for(http, [ask], body.timeout_s)
    data = wav_bytes(made.output, made.sampling_rate_hz, header=body.response_format == "wav")
    return Response(data, media_type=f"audio/{body.response_format}")
