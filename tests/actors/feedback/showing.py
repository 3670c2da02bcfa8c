"""What raters are shown in tests of the page: a picture, a sound and a film, and questions about them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.media import encode_video, encode_wav
from pipeline.feedback.records import Candidate, Item, Task
from pipeline.records import Audio, MediaKind, Message
from tests.feedback.office import Office

RIGHT, WRONG = "A red house stands beside the mountain, and the sun is out.", "A tree. It is raining."
RISES, FALLS, NOISE = "The tone rises.", "The tone falls.", "There is only noise."
SLIDES, STANDS = "A square slides to the right.", "A square stands still."
CRITERIA = ("helpful", "grounded", "fluent", "safe")


def picture() -> bytes:
    """640 x 320 pixels: a house, a mountain, a sun."""
    image = Image.new("RGB", (640, 320), "#dbe8f2")
    draw = ImageDraw.Draw(image)
    draw.ellipse((470, 30, 540, 100), fill="#f4c542")
    draw.polygon(((90, 210), (230, 40), (370, 210)), fill="#7d7d8a")
    draw.rectangle((0, 210, 640, 320), fill="#5e8f5a")
    draw.rectangle((400, 160, 490, 240), fill="#a54a3a")
    draw.polygon(((390, 160), (445, 110), (500, 160)), fill="#6d3128")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tone() -> bytes:
    """2 seconds that rise from 220 Hz."""
    seconds = np.arange(32_000) / 16_000
    return encode_wav(Audio((0.4 * np.sin(2 * np.pi * (220 + 60 * seconds) * seconds)).astype(np.float32), 16_000))


def film() -> bytes:
    """2 seconds of 160 x 120 pixels: a square slides."""
    frames = np.full((16, 120, 160, 3), 235, np.uint8)
    for number, frame in enumerate(frames):
        frame[45:75, 8 * number : 8 * number + 30] = (192, 67, 13)
    return encode_video(frames, 8)


def item(task: Task, name: str, question: str, *answers: str, **more: Any) -> Item:
    return Item(task, name, "demo", (Message("user", question),), (), tuple(map(Candidate, answers)), **more)


def offer_one_of_each(office: Office, files: Mapping[MediaKind, bytes]) -> None:
    """A pair about a picture, a ranking about a sound and ratings about a video, in this order, for two raters."""
    image, audio, video = (office.store.keep(kind, data) for kind, data in files.items())
    pair = item(Task.PAIR, "house", "<image>What stands beside the mountain, and how is the weather?", RIGHT, WRONG)
    ranking = item(Task.RANKING, "tone", "<audio>What happens in this recording?", RISES, FALLS, NOISE)
    rating = item(Task.RATING, "square", "<video>What happens here?", SLIDES, STANDS)
    offered = ((pair, image, 3), (ranking, audio, 2), (rating, video, 1))
    office.store.offer([replace(each, media=(it,), num_raters=2, uncertainty=place) for each, it, place in offered])
