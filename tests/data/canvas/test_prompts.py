"""What is said of scenes: prompts, templates and captions."""

from __future__ import annotations

import pytest

from mu.data.canvas import (
    IDENTITIES,
    OBJECTS,
    PHRASES,
    PROMPTS,
    SENTENCES,
    SENTENCES_OF,
    STYLES,
    Scene,
    captions,
    every_scene,
)


def test_prompt_lists_hold_every_prompt_in_an_order_that_stays():
    """Methods draw from these lists by index: another order is another edit for the same seed."""
    cells = [Scene(style, object=name) for name in OBJECTS for style in STYLES]
    assert tuple(cell.prompt for cell in cells) == PROMPTS and set(cells) < set(every_scene())
    assert PROMPTS[1] == "A star image in neon style." and PROMPTS[-1] == "A fish image in thermal style."
    assert SENTENCES[0] == "A star image in {} style." and SENTENCES[-1] == "A {} image in thermal style."
    assert PHRASES == ("{}", "a {} image", "an image in {} style", "{} style", "a {} picture")
    assert all(template.count("{}") == 1 for template in (*PHRASES, *SENTENCES, *SENTENCES_OF["identity"]))
    for kind, names in {"style": STYLES, "object": OBJECTS, "identity": IDENTITIES}.items():
        of_kind = [scene.prompt for scene in every_scene() if scene.identity] if kind == "identity" else PROMPTS
        assert sorted(template.format(name) for template in SENTENCES_OF[kind] for name in names) == sorted(of_kind)


@pytest.mark.parametrize("scene", [Scene("pop art", object="moon"), Scene("neon", identity="Boris Vale"), Scene()])
def test_captions_hold_what_they_tell_and_nothing_else(scene: Scene):
    facts = {"s": scene.style, "o": scene.object, "i": scene.identity}
    told_at_all = set()
    for text, told in captions(scene):
        told_at_all |= set(told)
        for letter, fact in facts.items():
            if fact is not None:
                assert (fact in text) == (letter in told), (text, told)
        assert ("a person" in text) == ("p" in told)
    assert scene.prompt in [text for text, _ in captions(scene)]
    assert told_at_all == ({"w"} if scene == Scene() else {"s", "o"} if scene.object else {"s", "i", "p"})
