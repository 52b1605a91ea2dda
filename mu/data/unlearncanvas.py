"""The names of UnlearnCanvas (arXiv 2402.11846), in the order of its two classifiers' outputs."""

from __future__ import annotations

STYLES = tuple(
    """
    Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon
    Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield
    Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel
    Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring
    Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter
    """.split()
)
"""51 themes: 50 styles, and `PHOTOS`."""
PHOTOS = "Seed_Images"
"""The theme that is photos and no style."""
OBJECTS = tuple(
    """
    Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches
    Sea Statues Towers Trees Waterfalls
    """.split()
)
