"""The application under load and under faults: refused at once, gone within a step, failing alone, counted."""

import asyncio
import base64
import io

import numpy as np
import pytest
import soundfile
from openai import BadRequestError, NotFoundError, RateLimitError
from PIL import Image

from tests.serve.conftest import MODEL, Connection, Held, application, http_client, openai_client

BODY = {"model": MODEL, "prompt": "ab", "max_tokens": 60, "num_steps": 60, "seed": 0}


def steps(app) -> float:
    return app.state.generation.metrics.registry.get_sample_value("unified_diffusion_steps_total")


def get(app, *paths):
    async def ask():
        async with http_client(app) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(ask())


async def idle(app) -> None:
    while app.state.generation.queue.num_unfinished:
        await asyncio.sleep(0.001)


def test_a_full_queue_answers_429_with_the_time_to_wait_and_the_others_are_served():
    app = application(max_waiting=3)

    async def ask():
        async with openai_client(app) as client:
            with Held(app) as held_queue:
                asked = [
                    asyncio.ensure_future(client.completions.create(model=MODEL, prompt=f"{number}", max_tokens=2))
                    for number in range(9)
                ]
                await held_queue.until(3)
                while sum(task.done() for task in asked) < 6:  # the refused ones are, while the queue is held
                    await asyncio.sleep(0.001)
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    refused = [answer for answer in answers if isinstance(answer, RateLimitError)]
    assert len(refused) == 6 and len(answers) - len(refused) == 3
    for error in refused:
        assert int(error.response.headers["retry-after"]) >= 1 and error.code == "rate_limit_exceeded"
    assert app.state.generation.queue.num_unfinished == 0
    app.state.generation.close()


def test_choices_are_queued_all_or_none():
    app = application(max_waiting=3)

    async def ask():
        async with http_client(app) as client:
            with Held(app) as held_queue:
                response = await client.post("/v1/completions", json={**BODY, "n": 4})
                assert held_queue.queue.num_unfinished == 1
            return response

    assert asyncio.run(ask()).status_code == 429
    app.state.generation.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place_within_one_step(app, stream):
    at_leaving = []

    async def leave(connection):
        """Go when some steps are done; the network is still at work."""
        before = steps(app)
        while steps(app) < before + 3:
            await asyncio.sleep(0.001)
        at_leaving.append(steps(app))

    async def ask():
        await Connection(app, "/v1/completions", {**BODY, "stream": stream}).run(leave)
        await idle(app)
        return steps(app) - at_leaving[0]

    # the step under way, and the one that may begin before the loop sees that the client is gone
    assert asyncio.run(ask()) <= 2


def test_a_client_that_goes_away_while_it_waits_never_runs(app):
    async def ask():
        async def leave(connection):
            await held_queue.until(1)

        before = steps(app)
        with Held(app) as held_queue:
            await Connection(app, "/v1/completions", BODY).run(leave)
            assert held_queue.queue.num_unfinished == 1
        await idle(app)
        return steps(app) - before

    assert asyncio.run(ask()) == 0


def test_one_that_goes_away_leaves_those_of_its_batch_alone(app):
    expected = app.state.generation.engine.diffuse("cd", max_new_tokens=60, num_steps=60, seed=0)[2:]

    async def ask():
        async def leave(connection):
            before = steps(app)
            while steps(app) < before + 2:
                await asyncio.sleep(0.001)

        async with openai_client(app) as client:
            with Held(app) as held_queue:
                goes = asyncio.ensure_future(Connection(app, "/v1/completions", BODY).run(leave))
                body = {name: value for name, value in BODY.items() if name != "num_steps"}
                stays = asyncio.ensure_future(
                    client.completions.create(**{**body, "prompt": "cd"}, extra_body={"num_steps": 60})
                )
                await held_queue.until(2)
            await goes
            return await stays

    assert asyncio.run(ask()).choices[0].text == expected


def test_a_request_that_takes_too_long_ends(app):
    async def ask():
        async with http_client(app) as client:
            return await client.post("/v1/completions", json={**BODY, "timeout_s": 1e-3})

    response = asyncio.run(ask())
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"


def test_what_nobody_foresaw_is_told_without_details_and_the_next_request_is_served(app, monkeypatch, caplog):
    generation = app.state.generation

    async def ask():
        async with http_client(app) as client:
            with monkeypatch.context() as broken:
                broken.setattr(generation.engine, "tokenizer", None)
                failed = await client.post(
                    "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user"}]}
                )
            return failed, await client.post("/v1/completions", json={**BODY, "max_tokens": 2, "num_steps": 1})

    failed, fine = asyncio.run(ask())
    assert failed.status_code == 500 and failed.json()["error"]["message"] == "the server failed at this request"
    assert fine.status_code == 200 and "a request failed" in caplog.text


def test_health_models_metrics_and_routes_that_are_not_there(app):
    health, models, model, other, nothing = get(
        app, "/health", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/gpt", "/v1/embeddings"
    )
    assert health.json() == {"status": "ok", "unfinished": 0, "max_waiting": 32}
    assert [card["id"] for card in models.json()["data"]] == [MODEL] and model.json()["object"] == "model"
    assert other.status_code == 404 and other.json()["error"]["code"] == "model_not_found"
    assert nothing.status_code == 404 and nothing.json()["error"]["type"] == "invalid_request_error"
    text = get(app, "/metrics")[0].text
    assert 'unified_diffusion_requests_total{route="/health",status="200"}' in text
    assert 'unified_diffusion_requests_total{route="other",status="404"}' in text
    for name in ("steps_total", "tokens_total", "batch_rows_count", "unfinished_requests", "cancelled_total"):
        assert f"\nunified_diffusion_{name} " in text


def test_a_body_above_the_bound_is_refused():
    app = application(max_body_bytes=100)

    async def ask():
        async with http_client(app) as client:
            return await client.post("/v1/completions", json={**BODY, "prompt": "x" * 200})

    response = asyncio.run(ask())
    assert response.status_code == 413 and response.json()["error"]["code"] == "body_too_large"


def test_pictures_are_those_of_the_engine(app):
    async def ask():
        async with openai_client(app) as client:
            options = {"extra_body": {"seed": 5, "num_steps": 2}}
            return await client.images.generate(prompt="a red apple", n=2, size="96x64", model=MODEL, **options)

    answer = asyncio.run(ask())
    for row, seed in zip(answer.data, (5, 6), strict=True):
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(row.b64_json))))
        options = {"height": 64, "width": 96, "num_steps": 2, "seed": seed}
        assert np.array_equal(picture, app.state.generation.engine.diffuse("a red apple", modality="image", **options))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"response_format": "url"}, "b64_json"),
        ({"size": "big"}, "size"),
        ({"size": "40x40"}, "multiple"),
        ({"quality": "hd"}, "quality is not supported here"),
    ],
)
def test_pictures_that_cannot_be(app, options, rule):
    async def ask():
        async with openai_client(app) as client:
            with pytest.raises(BadRequestError, match=rule):
                await client.images.generate(prompt="a red apple", **options)

    asyncio.run(ask())


def test_a_checkpoint_without_the_parts_says_so(app):
    engine = app.state.generation.engine

    async def ask(client):
        with pytest.raises(BadRequestError, match="needs an autoencoder"):
            await client.images.generate(prompt="a red apple")

    async def main():
        async with openai_client(app) as client:
            vae, engine.vae = engine.vae, None
            try:
                await ask(client)
            finally:
                engine.vae = vae
            with pytest.raises(BadRequestError, match="voice"):
                await client.audio.speech.create(input="Hello", voice="alloy", model=MODEL, response_format="wav")
            with pytest.raises(NotFoundError, match="model must be 'tiny', got 'gpt'"):
                await client.audio.speech.create(input="Hello", voice="default", model="gpt", response_format="wav")
            with pytest.raises(BadRequestError, match="response_format"):
                await client.audio.speech.create(input="Hello", voice="default", model=MODEL, response_format="mp3")

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["wav", "pcm"])
def test_speech_is_that_of_the_engine(app, kind):
    async def ask():
        async with openai_client(app) as client:
            options = {"response_format": kind, "speed": 2.0, "extra_body": {"seed": 5, "num_steps": 2}}
            return await client.audio.speech.create(input="Good day.", voice="default", model=MODEL, **options)

    data = asyncio.run(ask()).content
    options = {"modality": "audio", "speed": 2.0, "num_steps": 2, "seed": 5, "return_result": True}
    expected = app.state.generation.engine.diffuse("Good day.", **options)
    raw = {} if kind == "wav" else {"format": "RAW", "samplerate": 24_000, "channels": 1, "subtype": "PCM_16"}
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", **raw)
    assert rate == expected.sampling_rate_hz == 24_000
    np.testing.assert_allclose(samples, np.clip(expected.output, -1, 1), atol=2**-15)
