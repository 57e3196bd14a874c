"""What a sweep has measured, as a CSV, a table, a plot and lines of YAML to copy."""

from __future__ import annotations

import csv
import math
import textwrap
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.table import Table

from local_workspace.deployment import Section, assign
from local_workspace.setting import Setting, changes, short

COLUMNS = ("images_a_second", "slowest", "fastest", "rounds", "workers", "memory_mb", "agreement", "top_1")
# The plot, in pixels.
MARGIN, TOP, ROW, GAP = 16, 80, 30, 10
BAR, FIGURE = 460, 84  # the longest bar, and a column of figures
LONGEST_CAUSE = 90  # characters


def write_csv(settings: list[Setting], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*settings[0].values, *COLUMNS, "cause"])
        for setting in settings:
            figures = [""] * len(COLUMNS)
            if setting.speeds:
                speeds = [round(setting.speed, 1), min(setting.speeds), max(setting.speeds)]
                figures = [*speeds, len(setting.speeds), setting.workers]
                figures += [setting.memory, setting.agreement, setting.top_1]
            table.writerow([*setting.values.values(), *figures, setting.cause])


def by_speed(settings: list[Setting]) -> list[Setting]:
    """The fastest first; those without figures last."""
    return sorted(settings, key=lambda setting: setting.speed if setting.speeds else -1, reverse=True)


def print_table(settings: list[Setting], best: Setting | None) -> None:
    told = any(setting.top_1 is not None for setting in settings)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for key in settings[0].values:
        words = short(key).split("_")
        table.add_column(" ".join(words), justify="right", min_width=max(map(len, words)))
    for name in ["images/s", "slowest", "fastest", "MB", "alike", *["top-1"] * told]:
        table.add_column(name, justify="right", no_wrap=True)
    for setting in by_speed(settings):
        figures = ["failed" if setting.cause else "-"]
        if setting.speeds:
            speeds = [setting.speed, min(setting.speeds), max(setting.speeds)]
            shares = [setting.agreement, *[setting.top_1] * told]
            figures = [*map("{:.1f}".format, speeds), f"{setting.memory:,}", *map(percent, shares)]
        table.add_row(*setting.values.values(), *figures, style="bold green" if setting is best else "")
    Console(highlight=False, markup=False).print(table)
    for setting in settings:
        if setting.cause:
            print(f"failed: {setting.name}: {setting.cause}")
    print("MB: all workers together, each at its peak")
    print(f"alike: files with the class of the first setting, {settings[0].name}")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def as_yaml(values: dict[str, str]) -> str:
    """`values` as lines of a deployment's YAML."""
    root = Section(Path(), "", {})
    for change in changes(values):
        assign(root, change)
    return yaml.safe_dump(root.values, sort_keys=False)


def draw(settings: list[Setting], best: Setting | None, memory: int, title: str) -> Image.Image:
    """A bar for each setting, the fastest on top, and its figures beside it."""
    rows, font = by_speed(settings), ImageFont.load_default(15)
    left = MARGIN + math.ceil(max(font.getlength(setting.name) for setting in rows)) + GAP
    right = left + BAR + 4 * FIGURE
    image = Image.new("RGB", (right + MARGIN, TOP + (len(rows) + 1) * ROW + MARGIN), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), title, "black", ImageFont.load_default(20))
    for place, name in enumerate(("top-1", "alike", "MB")):
        pen.text((right - place * FIGURE, TOP - GAP), name, "dimgray", font, "rs")
    pen.text((left, TOP - GAP), "images a second: median, slowest to fastest round", "dimgray", font, "ls")
    fastest = max((max(setting.speeds) for setting in rows if setting.speeds), default=0) or 1
    for number, setting in enumerate(rows):
        middle = TOP + number * ROW + ROW // 2
        pen.text((left - GAP, middle), setting.name, "black", font, "rm")
        if not setting.speeds:
            cause = textwrap.shorten(setting.cause or "not measured", LONGEST_CAUSE, placeholder=" …")
            pen.text((left, middle), cause, "firebrick", font, "lm")
            continue
        speeds = (setting.speed, min(setting.speeds), max(setting.speeds))
        median, slowest, highest = (left + round(speed / fastest * BAR) for speed in speeds)
        colour = "seagreen" if setting is best else "steelblue" if setting.memory <= memory else "silver"
        pen.rectangle((left, middle - 10, median, middle + 10), colour)
        pen.line((slowest, middle, highest, middle), "black", 2)
        pen.text((highest + GAP, middle), f"{setting.speed:.1f}", "black", font, "lm")
        for place, text in enumerate(
            (percent(setting.top_1), percent(setting.agreement), f"{setting.memory:,}")
        ):
            pen.text((right - place * FIGURE, middle), text, "black", font, "rm")
    key = f"green: the fastest that fits into {memory:,} MB; silver: does not fit. MB: all workers together"
    pen.text((MARGIN, TOP + len(rows) * ROW + ROW // 2), key, "dimgray", font, "lm")
    return image
