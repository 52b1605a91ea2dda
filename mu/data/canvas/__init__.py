"""The canvas world of the embedded model: a renderer of small images whose concepts are known exactly.

It has a miniature of UnlearnCanvas (styles x objects, prompt ``A {object} image in {style} style.``), a miniature of
CelebA (named identities, several sharing a first or a last name), and one watermark with its fixed image. An image has
a few layers, each a signed distance field in pixels with a colour; a style is one function that paints layers. Objects
differ in silhouette and styles in palette and texture, so that a classifier measures only the concept.
"""

from mu.data.canvas.fields import SIZE
from mu.data.canvas.objects import OBJECTS
from mu.data.canvas.people import IDENTITIES, PEOPLE, Traits
from mu.data.canvas.prompts import (
    PHRASES,
    PROMPTS,
    SENTENCES,
    SENTENCES_OF,
    RenderedPair,
    answer,
    rendered_pairs,
)
from mu.data.canvas.scenes import WATERMARK_PROMPT, Scene, watermark
from mu.data.canvas.styles import STYLES
from mu.data.canvas.world import CANVAS, World

captions, every_scene, images, render = CANVAS.captions, CANVAS.every_scene, CANVAS.images, CANVAS.render

__all__ = [
    "CANVAS",
    "IDENTITIES",
    "OBJECTS",
    "PEOPLE",
    "PHRASES",
    "PROMPTS",
    "SENTENCES",
    "SENTENCES_OF",
    "SIZE",
    "STYLES",
    "WATERMARK_PROMPT",
    "RenderedPair",
    "Scene",
    "Traits",
    "World",
    "answer",
    "captions",
    "every_scene",
    "images",
    "render",
    "rendered_pairs",
    "watermark",
]
