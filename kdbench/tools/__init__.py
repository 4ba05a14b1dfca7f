"""Tools that make and examine shipped material and data; the core imports none of them."""
