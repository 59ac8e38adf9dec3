"""/v1/images/generations and /v1/audio/speech."""

import base64
import secrets
import time
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from ..media_files import pcm_bytes, png_bytes, wav_bytes
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
    ask = Ask(body.input, "audio", seed, given(num_steps=body.num_steps))
    (made,) = await made_for(http, [ask], body.timeout_s)
    if body.response_format == "pcm":
        return Response(pcm_bytes(made.output), media_type="audio/pcm")
    return Response(wav_bytes(made.output, made.sampling_rate_hz), media_type="audio/wav")
