"""SPEED: erase many concepts at once inside the null space of what is retained, in closed form."""
