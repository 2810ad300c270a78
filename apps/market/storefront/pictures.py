"""Pictures that need no file: a pattern for a listing without photos, initials for a person. Pure.

The same thing always gets the same picture. Colours are attributes of the drawing, never styles, so the
strictest policy for styles lets them pass; all are decoration and hidden from screen readers.
"""

from __future__ import annotations

from hashlib import blake2b

from markupsafe import Markup, escape

from market.users.api import FACES, Profile, face_of

__all__ = ["avatar", "face", "placeholder"]

SVG = '<svg class="{kind}" viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">'


def placeholder(id: int) -> Markup:
    """Soft shapes in two neighbouring colours, 4 by 3."""
    seed = blake2b(str(id).encode(), digest_size=12).digest()
    hue, step = seed[0] * 360 // 256, 25 + seed[1] % 40
    near, far = f"hsl({hue} 38% 80%)", f"hsl({(hue + step) % 360} 42% 66%)"
    deep = f"hsl({(hue + step) % 360} 40% 54%)"
    x, y, r = 60 + seed[2] % 280, 50 + seed[3] % 160, 60 + seed[4] % 60
    shape = (
        f'<circle cx="{x}" cy="{y}" r="{r}" fill="{far}"/>',
        f'<rect x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}" rx="24" fill="{far}"'
        f' transform="rotate({seed[5] % 90} {x} {y})"/>',
        f'<path d="M{x - r} {y + r}L{x} {y - r}L{x + r} {y + r}Z" fill="{far}" stroke="{far}"'
        ' stroke-width="18" stroke-linejoin="round"/>',
    )[seed[6] % 3]
    ground = 190 + seed[7] % 60
    return Markup(  # noqa: S704 - numbers alone
        SVG.format(kind="picture", width=400, height=300)
        + f'<rect width="400" height="300" fill="{near}"/>{shape}'
        f'<path d="M0 {ground}Q100 {ground - 50 + seed[8] % 40} 200 {ground}T400 {ground - 20}V300H0Z"'
        f' fill="{deep}" opacity=".55"/></svg>'
    )


def avatar(name: str) -> Markup:
    """The first letter of a name on a colour of its own."""
    hue = blake2b(name.casefold().encode("utf-8", "replace"), digest_size=1).digest()[0] * 360 // 256
    letter = escape(next((c for c in name if c.isalnum()), "?").upper())
    return Markup(  # noqa: S704 - numbers, and a letter that is escaped
        SVG.format(kind="avatar", width=40, height=40)
        + f'<circle cx="20" cy="20" r="20" fill="hsl({hue} 45% 36%)"/>'
        f'<text x="20" y="27" text-anchor="middle" font-size="19" font-family="system-ui, sans-serif"'
        f' fill="#fff">{letter}</text></svg>'
    )


def face(person: Profile) -> Markup:
    """The picture that the person gave us, else initials; one on another server is not loaded from there."""
    medium = face_of(person.image)
    if medium is None:
        return avatar(person.username)
    return Markup(f'<img class="avatar" src="{FACES}{medium}" alt="" width="40" height="40">')  # noqa: S704 - digits
