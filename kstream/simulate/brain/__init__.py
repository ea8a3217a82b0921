"""Brain, spin echo.

`exam` (the whole), `protocol`, `head` (the anatomy; `brainweb` reads others'), `spin_echo` (its signal), `lines` (what
is measured of it), `scanner`.
"""
