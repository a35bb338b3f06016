"""File names that are not UTF-8, as archives of other systems leave them. No table can store them.

Python holds the bytes of such a name as lone surrogates. The listing shows them as `\\xNN` and marks the file with the
version `NOT_UTF8`. Every reader makes one reject of such a file.
"""

from __future__ import annotations

NOT_UTF8 = "name is not UTF-8"


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8.

    >>> is_utf8("café"), is_utf8("caf\\udce9")
    (True, False)
    """
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def readable(name: str) -> str:
    r"""The name with the bytes that are not UTF-8 escaped; other names unchanged.

    >>> readable("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    if is_utf8(name):
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def has_bad_name(version: str) -> bool:
    """Whether the version of a file or a shard says that its name is not UTF-8."""
    return version.partition("+")[0] == NOT_UTF8


def bad_name_message(uri: str) -> str:
    """Why the file is not read, and the remedy.

    Args:
        uri: the file, with its name in readable form.
    """
    return f"{uri}: the name is not UTF-8 (\\xNN stands for a byte of it); rename the file"
