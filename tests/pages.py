"""The pages of a local workspace as a browser asks for them, and a photo to show."""

import io
from typing import Any
from urllib.parse import urlsplit

import requests
from PIL import Image


def get(address: str, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(address, headers=headers)


def part(address: str, path: str) -> str:
    """Another address of the same run: with the same key."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}{path}?{parts.query}"


def photo(kind: str, color: str = "red", size: tuple[int, int] = (600, 400), **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, kind, **options)
    return content.getvalue()
